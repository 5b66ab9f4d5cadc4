"""Columns of files: paths in the data are replaced by what the files hold, so that rows, their hashes and comparisons see content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ftkit.data.building import TableBuilder
from ftkit.data.kinds import TEXT, kind_of_field
from ftkit.data.plain_files import read_plain
from ftkit.data.problems import Problems
from ftkit.data.table import Origin, Table
from ftkit.errors import Problem
from ftkit.paths import home_expanded

CONTENT = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])

ROWS_AT_A_TIME = 64
"""Rows whose files are in memory before they are written where the table keeps them."""


def load_contents(table: Table, name: str, *, lenient: bool = False) -> Table:
    """The table with {"bytes", "path"} in place of paths in a column. Other values, and {"bytes", "path"} with bytes, stay.

    A relative path starts from the folder of the row's data file, or else from the working folder.
    Raises DataError with up to 20 files that are missing or cannot be read; lenient: these have null for `bytes`.
    """
    if not any(_holds_paths(batch, name) for batch, _ in table.stored()):
        return table
    problems = Problems()
    with TableBuilder(Origin(label=table.origin_label(0))) as builder:
        for batch, rows in table.stored():
            if not _holds_paths(batch, name):
                builder.add_batch(batch)
                continue
            for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                chosen = slice(start, start + ROWS_AT_A_TIME)
                builder.add_batch(_loaded(batch.slice(start, ROWS_AT_A_TIME), name, rows[chosen], table, problems))
        if not lenient:
            problems.raise_if_any()
        return table.with_stored(builder.finish())


def _holds_paths(batch: pa.RecordBatch, name: str) -> bool:
    """Whether the column is text, or is {"bytes", "path"} with bytes missing."""
    index = batch.schema.get_field_index(name)
    if index < 0:
        return False
    field = batch.schema.field(index)
    if pa.types.is_struct(field.type) and {"bytes", "path"} <= {inner.name for inner in field.type}:
        column = batch.column(index)
        return column.field("bytes").null_count > column.null_count
    return kind_of_field(field) == TEXT


def _loaded(batch: pa.RecordBatch, name: str, rows: np.ndarray, table: Table, problems: Problems) -> pa.RecordBatch:
    """rows: row of the table that each row of the batch is, -1 for those that the table leaves out; they are not read."""
    index = batch.schema.get_field_index(name)
    values = [
        None if row < 0 else _content(value, int(row), name, table, problems)
        for value, row in zip(batch.column(index).to_pylist(), rows.tolist(), strict=True)
    ]
    return batch.set_column(index, pa.field(name, CONTENT), pa.array(values, CONTENT))


def _content(value: Any, row: int, name: str, table: Table, problems: Problems) -> dict[str, Any] | None:
    path = value.get("path") if isinstance(value, dict) else value
    if (isinstance(value, dict) and value.get("bytes") is not None) or not path:
        return value if isinstance(value, dict) else None
    roots = dict.fromkeys((Path(table.origin_label(row)).parent, Path()))
    reason = ""
    for root in roots:
        try:
            return {"bytes": read_plain(root / home_expanded(path)), "path": path}
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(getattr(error, "strerror", None) or error)
    problems.add(_unreadable(path, reason, list(roots), table.place(row), name))
    return {"bytes": None, "path": path}


def _unreadable(path: str, reason: str, roots: Sequence[Path], place: str, name: str) -> Problem:
    shown = path if len(path) <= 120 else f"{path[:117]}..."
    if reason:
        hint = "Give the path of a file, or remove the row"
        return Problem(message=f"the file {shown!r} cannot be read: {reason}", place=place, key=name, hint=hint)
    looked = " and ".join(str(root.absolute()) for root in roots)
    hint = "Nothing is fetched from the net: download it first" if "://" in path else f"Looked in {looked}"
    return Problem(message=f"there is no file {shown!r}", place=place, key=name, hint=hint)
