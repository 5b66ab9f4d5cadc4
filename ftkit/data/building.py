"""Builds a table out of rows that arrive in chunks; what does not fit into memory goes to disk."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from ftkit.data.arrays import array_of, int64_array
from ftkit.data.kinds import ARROW_TYPES, JSON_MARK, LIST, STRUCTURED, kinds_of, merged_kind, widen_whole_numbers
from ftkit.data.problems import shorten
from ftkit.data.progress import Meter
from ftkit.data.spilling import Batches
from ftkit.data.table import POSITION, Origin, Table
from ftkit.errors import DataError, Problem

NO_ROWS_HINT = "Give a file with rows, or leave this source out."


class TableBuilder:
    """Collects one file's rows: `with builder: ... builder.finish()`. An error removes what was written to disk so far.

    columns: names of the columns to keep; None keeps all. meter: is told of each row. mixed: keep columns whose values are of several
    kinds, or no values of Arrow, as JSON. rows: those added so far.
    """

    def __init__(
        self, origin: Origin, columns: Collection[str] | None = None, meter: Meter | None = None, *, mixed: bool = False
    ) -> None:
        self._origin, self._wanted, self._meter, self._mixed = origin, columns, meter, mixed
        self._source_columns: dict[str, None] = {}
        self._kept: dict[str, None] = {}
        self._first: dict[str, tuple[str, int, Any]] = {}
        self._conflicts: dict[str, Problem] = {}
        self._batches = Batches()
        self.rows = 0

    def __enter__(self) -> TableBuilder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._batches.discard()

    def note_columns(self, names: Sequence[str]) -> list[str]:
        """Records columns that the file has; returns those to keep. Raises DataError for a name that is no text."""
        new = [name for name in names if name not in self._source_columns]
        if wrong := next((name for name in new if not _is_encodable(name)), None):
            message = f"the column {shorten(wrong)} has a lone surrogate in its name, which is no character"
            raise DataError(Problem(message=message, place=self._origin.label, hint="Rename the column."))
        self._source_columns.update(dict.fromkeys(new))
        self._kept.update(dict.fromkeys(name for name in new if self._wanted is None or name in self._wanted))
        return [name for name in names if name in self._kept]

    def add_rows(self, rows: Sequence[Mapping[str, Any]], positions: Sequence[int]) -> None:
        """Appends rows; a key that a row lacks is a null. `positions`: see `Origin.place`."""
        names = self.note_columns(list(dict.fromkeys(chain.from_iterable(rows))))
        self.add_columns({name: [row.get(name) for row in rows] for name in names}, positions)

    def add_columns(self, columns: Mapping[str, Sequence[Any]], positions: Sequence[int]) -> None:
        """Appends rows given as Python values by column."""
        arrays, fields = [int64_array(np.asarray(positions, dtype=np.int64))], [pa.field(POSITION, pa.int64())]
        for name, values in columns.items():
            kind = _storable_kind(values) if self._mixed else self._kind(name, values, positions)
            if name in self._conflicts:
                continue
            text = _as_json(values, escaped=self._mixed) if kind in STRUCTURED else None
            if kind in STRUCTURED and text is None:
                array = self._nested(name, values, positions)
            else:
                array = self._array(name, values if text is None else text, kind, positions)
            if array is not None:
                arrays.append(array)
                fields.append(pa.field(name, array.type, metadata=None if text is None else JSON_MARK))
        self.add_batch(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)))

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Appends rows given in Arrow."""
        self.rows += batch.num_rows
        if self._meter is not None:
            self._meter.add(batch.num_rows)
        self._batches.add(batch)

    def finish(self) -> Table:
        """The table. Raises DataError if it has no rows."""
        if not self.rows:
            raise DataError(Problem(message="holds no rows", place=self._origin.label, hint=NO_ROWS_HINT))
        batches = self._batches.finish()
        names = [name for name in self._kept if name not in self._conflicts]
        return Table(
            widen_whole_numbers(batches, names),
            [(self._origin, self.rows)],
            names,
            source_columns=list(self._source_columns),
            conflicts=self._conflicts,
        )

    def _kind(self, name: str, values: Sequence[Any], positions: Sequence[int]) -> str:
        kinds = kinds_of(values)
        if kinds and name not in self._first:
            at = next(index for index, value in enumerate(values) if value is not None)
            self._first[name] = (next(iter(kinds_of([values[at]]))), positions[at], values[at])
        if not kinds:
            return "nothing"
        first_kind, first_position, first_value = self._first[name]
        merged = merged_kind({first_kind, *kinds})
        if merged not in ARROW_TYPES:
            at = next(
                index for index, value in enumerate(values) if merged_kind({first_kind, *kinds_of([value])}) not in ARROW_TYPES
            )
            found = next(iter(kinds_of([values[at]])))
            if found not in ARROW_TYPES:
                self._refuse(
                    name, positions[at], f"a value of type {found} cannot be read", "Give text, numbers, lists or objects."
                )
                return first_kind
            where = self._origin.place(first_position)
            message = f"{shorten(values[at])} is {found}, but {shorten(first_value)} ({where}) is {first_kind}"
            self._refuse(name, positions[at], message, "Give all rows of the column the same type.")
            return first_kind
        return merged_kind(kinds) or merged

    def _array(self, name: str, values: Sequence[Any], kind: str, positions: Sequence[int]) -> pa.Array | None:
        try:
            return array_of(values, kind)
        except (UnicodeEncodeError, OverflowError):
            at = next(index for index, value in enumerate(values) if not _fit([value], kind))
            limit = "has a lone surrogate, which is no character" if isinstance(values[at], str) else "does not fit into 64 bits"
            self._refuse(name, positions[at], f"{shorten(values[at])} {limit}", "Correct the value.")
            return None

    def _nested(self, name: str, values: Sequence[Any], positions: Sequence[int]) -> pa.Array | None:
        """Lists or objects that JSON cannot hold (bytes of images)."""
        try:
            return pa.array(values)
        except (UnicodeEncodeError, OverflowError, pa.ArrowException) as error:
            self._refuse(name, positions[0], f"values that do not fit together: {error}", "Give all rows the same structure.")
            return None

    def _refuse(self, name: str, position: int, message: str, hint: str) -> None:
        self._conflicts[name] = Problem(message=message, place=self._origin.place(position), key=name, hint=hint)


def table_from_rows(
    rows: Sequence[Mapping[str, Any]], origin: str, *, first_row: int = 1, numbers: Sequence[int] | None = None
) -> Table:
    """A table of rows given in memory (numpy values become Python ones); messages call them `<origin>, row N`.

    numbers: N of each row (default: from `first_row` on).

    Raises DataError if there are none.
    """
    plain = [{name: _python_value(value) for name, value in row.items()} for row in rows]
    with TableBuilder(Origin(label=origin)) as builder:
        builder.add_rows(plain, numbers if numbers is not None else range(first_row, first_row + len(rows)))
        return builder.finish()


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_json(values: Sequence[Any], *, escaped: bool) -> list[str | None] | None:
    """Each value as JSON text; None if one of them cannot be. escaped: in ASCII, which also holds lone surrogates."""
    try:
        return [None if value is None else json.dumps(value, ensure_ascii=escaped) for value in values]
    except TypeError:
        return None


def _storable_kind(values: Sequence[Any]) -> str:
    """The kind that all of these are of; a list, which is kept as JSON, where that is none, or none that holds them."""
    kind = merged_kind(kinds_of(values))
    if kind is None or kind not in ARROW_TYPES:
        return LIST
    return kind if kind in STRUCTURED or _fit(values, kind) else LIST


def _python_value(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _fit(values: Sequence[Any], kind: str) -> bool:
    try:
        array_of(values, kind)
    except (UnicodeEncodeError, OverflowError):
        return False
    return True
