"""Arrow arrays of Python values, made from buffers, and back: `pa.array` and `to_numpy` import pandas, which takes a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ftkit.data.kinds import ARROW_TYPES, BINARY, BOOLEAN, LIST, NOTHING, NUMBER, OBJECT, TEXT, WHOLE


def int64_array(values: np.ndarray) -> pa.Array:
    """An Arrow array over int64 numbers, without a copy where they are contiguous."""
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values, dtype=np.int64))])


def numpy_of(numbers: pa.Array) -> np.ndarray:
    """The values of an Arrow array over whole or floating point numbers without nulls, without a copy: (numbers,), read-only."""
    kind = np.dtype(f"{'f' if pa.types.is_floating(numbers.type) else 'i'}{numbers.type.bit_width // 8}")
    if not len(numbers):
        return np.empty(0, kind)
    return np.frombuffer(numbers.buffers()[1], dtype=kind, count=len(numbers), offset=numbers.offset * kind.itemsize)


def array_of(values: Sequence[Any], kind: str) -> pa.Array:
    """An Arrow array of values of one kind (see `kinds`), None being null. Lists and objects must be JSON text already.

    Raises UnicodeEncodeError for text with lone surrogates, OverflowError for numbers beyond 64 bits.
    """
    if kind == NOTHING:
        return pa.nulls(len(values))
    missing = np.fromiter((value is None for value in values), dtype=bool, count=len(values))
    valid = pa.py_buffer(_bits(~missing)) if missing.any() else None
    return pa.Array.from_buffers(ARROW_TYPES[kind], len(values), [valid, *_BUFFERS[kind](values)])


def _text(values: Sequence[str | None]) -> list[pa.Buffer]:
    return _bytes([b"" if value is None else value.encode() for value in values])


def _bytes(values: Sequence[bytes | None]) -> list[pa.Buffer]:
    items = [value or b"" for value in values]
    offsets = np.zeros(len(items) + 1, dtype=np.int64)
    np.cumsum([len(item) for item in items], out=offsets[1:])
    return [pa.py_buffer(offsets), pa.py_buffer(b"".join(items))]


def _whole(values: Sequence[int | None]) -> list[pa.Buffer]:
    return [pa.py_buffer(np.array([value or 0 for value in values], dtype=np.int64))]


def _numbers(values: Sequence[float | None]) -> list[pa.Buffer]:
    return [pa.py_buffer(np.array([0.0 if value is None else float(value) for value in values], dtype=np.float64))]


def _booleans(values: Sequence[bool | None]) -> list[pa.Buffer]:
    return [pa.py_buffer(_bits(np.array([bool(value) for value in values], dtype=bool)))]


def _bits(values: np.ndarray) -> np.ndarray:
    return np.packbits(values, bitorder="little")


_BUFFERS: dict[str, Callable[[Sequence[Any]], list[pa.Buffer]]] = {
    TEXT: _text,
    LIST: _text,
    OBJECT: _text,
    BINARY: _bytes,
    WHOLE: _whole,
    NUMBER: _numbers,
    BOOLEAN: _booleans,
}
