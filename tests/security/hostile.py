"""Makes hostile files: pickles that leave a mark when they are loaded, safetensors with lying headers, code that marks its import."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class _Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self._mark), 0o777, True)


@dataclass(frozen=True)
class Mark:
    """What there would be if a hostile file had been executed. Made and checked by `clean_mark` (see conftest)."""

    path: Path

    def pickle(self) -> bytes:
        """A pickle that makes it."""
        return pickle.dumps({"weight": _Bomb(self.path)})

    def torch_file(self) -> bytes:
        """The same as torch writes its files: a zip archive with a pickle inside."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", self.pickle())
            archive.writestr("archive/version", "3\n")
        return stream.getvalue()

    def npy(self) -> bytes:
        """The same as numpy writes an array of objects."""
        head = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        head += b" " * (-(len(head) + 11) % 64) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + self.pickle()

    def npz(self) -> bytes:
        """An archive of such arrays."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("text.npy", self.npy())
        return stream.getvalue()

    def code(self) -> str:
        """Python that makes it."""
        return f"import os\nos.makedirs({str(self.path)!r}, exist_ok=True)\n"

    def shell(self) -> str:
        """A shell command that makes it."""
        return f"mkdir -p '{self.path}'"


def safetensors_bytes(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file. header: JSON value, or bytes as they are. length: what it says of the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LYING: Mapping[str, bytes] = {
    "a header of 2^63 bytes": safetensors_bytes({"a": tensor([1], 0, 4)}, bytes(4), length=2**63),
    "a header of 2^64 - 1 bytes": safetensors_bytes({}, length=2**64 - 1),
    "a header longer than the file": safetensors_bytes({"a": tensor([1], 0, 4)}, bytes(4), length=10_000),
    "overlapping tensors": safetensors_bytes({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
    "tensors behind the end": safetensors_bytes({"a": tensor([2**40], 0, 2**42)}, bytes(8)),
    "a negative offset": safetensors_bytes({"a": tensor([1], -4, 0)}, bytes(4)),
    "a shape that overflows": safetensors_bytes({"a": tensor([2**62, 2**62, 4], 0, 4)}, bytes(4)),
    "a nested header": safetensors_bytes(b'{"__metadata__": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001),
    "a header that is a list": safetensors_bytes([1, 2]),
    "no JSON": safetensors_bytes(b"\xff\xfe{"),
    "a pickle": pickle.dumps({"a": 1}),
    "nothing": b"",
}
"""Files that are not what they say, by what is wrong with them."""


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """All below a folder: content of files, targets of links, '' for folders."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }
