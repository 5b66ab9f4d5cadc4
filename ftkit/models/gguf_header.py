"""Reads the metadata of a GGUF file: no tensor is touched, nothing is executed.

Layout (little endian): b"GGUF", u32 version, u64 tensor count, u64 entry count, then entries of
(string key, u32 type, value); a string is u64 length + UTF-8 bytes, an array is u32 type, u64 length, items.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_ENTRIES = 100_000
_MAX_STRING_BYTES = 16 * 2**20


def read_gguf_header(path: Path) -> dict[str, Any]:
    """Metadata by key; of an array only its length is kept.

    Raises ValueError, with a message fit for the user, if the file is not GGUF, is cut short or is malformed.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if file.read(4) != b"GGUF":
            raise ValueError("is not a GGUF file (its first four bytes are not `GGUF`)")
        version = _scalar(file, "<I")
        if version not in _VERSIONS:
            raise ValueError(f"has GGUF version {version}, versions {_VERSIONS[0]} and {_VERSIONS[1]} are known")
        _scalar(file, "<Q")
        count = _scalar(file, "<Q")
        if count > _MAX_ENTRIES:
            raise ValueError(f"claims {count} metadata entries, at most {_MAX_ENTRIES} are read")
        entries: dict[str, Any] = {}
        for _ in range(count):
            key = _string(file)
            entries[key] = _value(file, _scalar(file, "<I"), size)
        return entries


def _read(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise ValueError("ends inside its metadata: the file is cut short")
    return data


def _scalar(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, _read(file, struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    length = _scalar(file, "<Q")
    if length > _MAX_STRING_BYTES:
        raise ValueError(f"holds a text of {length} bytes, at most {_MAX_STRING_BYTES} are read")
    return _read(file, length).decode("utf-8", errors="replace")


def _value(file: BinaryIO, kind: int, size: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        item, length = _scalar(file, "<I"), _scalar(file, "<Q")
        # Every item takes at least one byte, so a longer array cannot be real; checked before looping over it.
        if length > size:
            raise ValueError(f"claims an array of {length} items, the file has {size} bytes")
        _skip_items(file, item, length, size)
        return length
    if kind not in _SCALARS:
        raise ValueError(f"holds metadata of the unknown type {kind}")
    return _scalar(file, _SCALARS[kind])


def _skip_items(file: BinaryIO, kind: int, length: int, size: int) -> None:
    if kind in _SCALARS:
        file.seek(struct.calcsize(_SCALARS[kind]) * length, 1)
    elif kind == _STRING:
        for _ in range(length):
            file.seek(_scalar(file, "<Q"), 1)
    else:
        raise ValueError(f"holds an array of the type {kind}, which is not known")
    if file.tell() > size:
        raise ValueError("ends inside its metadata: the file is cut short")
