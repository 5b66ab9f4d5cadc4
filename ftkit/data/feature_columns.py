"""Features as Arrow columns, and back. Lists come back as lists, numpy arrays as numpy arrays of the same type and shape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from ftkit.data.arrays import array_of, int64_array, numpy_of
from ftkit.data.kinds import BOOLEAN, NUMBER, WHOLE
from ftkit.tasks.base import Features

ARRAY_MARK = b"ftkit-array"
SHAPE = "\0shape"
_KINDS: dict[type, str] = {bool: BOOLEAN, int: WHOLE, float: NUMBER}


def from_features(features: Sequence[Features]) -> pa.RecordBatch:
    """A record batch of features (at least one). A key that a feature lacks is a null. Raises pa.ArrowInvalid for mixed types."""
    arrays: list[pa.Array] = []
    fields: list[pa.Field] = []
    for name in dict.fromkeys(key for feature in features for key in feature):
        values = [feature.get(name) for feature in features]
        if any(isinstance(value, np.ndarray) for value in values):
            for field, array in _array_columns(name, values):
                fields.append(field)
                arrays.append(array)
        else:
            array = _narrow(_numbers(values) or pa.array(values))
            arrays.append(array)
            fields.append(pa.field(name, array.type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def to_values(batch: pa.RecordBatch, row: int) -> Features:
    """One feature; keys whose value is null are left out."""
    feature: Features = {}
    schema = batch.schema
    for index, field in enumerate(schema):
        if field.name.endswith(SHAPE):
            continue
        column = batch.column(index)
        if not column[row].is_valid:
            continue
        if field.metadata and ARRAY_MARK in field.metadata:
            shape = batch.column(schema.get_field_index(field.name + SHAPE))[row].as_py()
            dtype = np.dtype(field.metadata[ARRAY_MARK].decode())
            feature[field.name] = np.frombuffer(column[row].as_buffer(), dtype=dtype).reshape(shape).copy()
        else:
            feature[field.name] = _plain(column, row)
    return feature


def _numbers(values: Sequence[Any]) -> pa.Array | None:
    """What `pa.array` makes of numbers, or of lists of whole ones, without importing pandas as that does; None for other values."""
    kinds = {*map(type, values)}
    try:
        if len(kinds) == 1 and (kind := _KINDS.get(next(iter(kinds)))):
            return array_of(values, kind)
        if kinds == {list} and {*map(type, chain.from_iterable(values))} == {int}:
            offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
            items = int64_array(np.fromiter(chain.from_iterable(values), dtype=np.int64, count=int(offsets[-1])))
            buffers = [None, pa.py_buffer(offsets)]
            return pa.Array.from_buffers(pa.list_(items.type), len(values), buffers, children=[items])
    except OverflowError:
        return None
    return None


def _array_columns(name: str, values: Sequence[Any]) -> list[tuple[pa.Field, pa.Array]]:
    arrays = [None if value is None else np.ascontiguousarray(value) for value in values]
    dtypes = {array.dtype.str for array in arrays if array is not None}
    if len(dtypes) != 1:
        raise TypeError(f"feature {name!r} mixes arrays of types {', '.join(sorted(dtypes))}")
    data = pa.array([None if array is None else array.tobytes() for array in arrays], pa.large_binary())
    shapes = pa.array([None if array is None else list(array.shape) for array in arrays], pa.list_(pa.int64()))
    field = pa.field(name, data.type, metadata={ARRAY_MARK: dtypes.pop().encode()})
    return [(field, data), (pa.field(name + SHAPE, shapes.type), shapes)]


def _narrow(array: pa.Array) -> pa.Array:
    """int64 as int32, and lists alike, where the values fit: token ids and positions do."""
    narrow = _narrow_type(array.type)
    if narrow == array.type:
        return array
    try:
        return array.cast(narrow)
    except pa.ArrowInvalid:
        return array


def _narrow_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_narrow_type(kind.value_type))
    return pa.int32() if pa.types.is_int64(kind) else kind


def _plain(column: pa.Array, row: int) -> Any:
    """Python value of one row; long lists of numbers through numpy, which is many times faster than `as_py`."""
    value = column[row]
    kind = column.type
    if pa.types.is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        items = value.values
        if not items.null_count:
            return numpy_of(items).tolist()
    return value.as_py()
