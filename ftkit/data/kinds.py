"""Kinds of values, as messages name them, and the Arrow types that hold them.

Values with structure (lists, objects) that come from JSON are kept as JSON text: Arrow would fill in absent keys of objects with nulls
and refuse objects that differ in type from row to row, as tool calls do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

TEXT, WHOLE, NUMBER, BOOLEAN, LIST, OBJECT, BINARY, NOTHING = (
    "text",
    "a whole number",
    "a number",
    "true/false",
    "a list",
    "an object",
    "binary",
    "nothing",
)

KIND_OF_PYTHON: dict[type, str] = {
    str: TEXT,
    int: WHOLE,
    float: NUMBER,
    bool: BOOLEAN,
    list: LIST,
    tuple: LIST,
    dict: OBJECT,
    bytes: BINARY,
    type(None): NOTHING,
}

ARROW_TYPES: dict[str, pa.DataType] = {
    TEXT: pa.large_string(),
    WHOLE: pa.int64(),
    NUMBER: pa.float64(),
    BOOLEAN: pa.bool_(),
    LIST: pa.large_string(),
    OBJECT: pa.large_string(),
    BINARY: pa.large_binary(),
    NOTHING: pa.null(),
}

STRUCTURED = {LIST, OBJECT}
JSON_MARK = {b"ftkit": b"json"}


def kinds_of(values: Iterable[Any]) -> set[str]:
    """Kinds of Python values, nulls aside."""
    kinds = {KIND_OF_PYTHON.get(cls, cls.__name__) for cls in set(map(type, values))}
    return kinds - {NOTHING}


def is_json(field: pa.Field) -> bool:
    """Whether the column holds JSON text that stands for lists or objects."""
    return bool(field.metadata) and field.metadata.get(b"ftkit") == b"json"


def kind_of_field(field: pa.Field) -> str:
    """Kind of the values of an Arrow column."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    types = pa.types
    if is_json(field) or types.is_nested(kind):
        return "a list or an object"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return TEXT
    if types.is_boolean(kind):
        return BOOLEAN
    if types.is_integer(kind):
        return WHOLE
    if types.is_floating(kind):
        return NUMBER
    return NOTHING if types.is_null(kind) else str(kind)


def merged_kind(kinds: Iterable[str]) -> str | None:
    """The one kind that holds all of these, None if there is none. Whole numbers are numbers too."""
    found = set(kinds) - {NOTHING}
    if found == {WHOLE, NUMBER}:
        return NUMBER
    return found.pop() if len(found) == 1 else None if found else NOTHING


def widen_whole_numbers(batches: Sequence[pa.RecordBatch], names: Iterable[str]) -> list[pa.RecordBatch]:
    """The batches with columns of whole numbers turned to floats where another batch has floats in that column."""
    for name in names:
        fields = [batch.schema.field(name) for batch in batches if name in batch.schema.names]
        if {WHOLE, NUMBER} <= {kind_of_field(field) for field in fields}:
            batches = [_as_float(batch, name) for batch in batches]
    return list(batches)


def _as_float(batch: pa.RecordBatch, name: str) -> pa.RecordBatch:
    index = batch.schema.get_field_index(name)
    if index < 0 or kind_of_field(batch.schema.field(index)) != WHOLE:
        return batch
    # Unsafe: a whole number beyond 2**53 is rounded, as it would be next to a float in any JSON reader.
    column = batch.column(index).cast(pa.float64(), safe=False)
    return batch.set_column(index, pa.field(name, pa.float64()), column)
