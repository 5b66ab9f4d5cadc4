"""Rows of one split, backed by Arrow: in memory, or memory-mapped from files larger than memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ftkit.data.arrays import int64_array, numpy_of
from ftkit.data.arrow_files import PAGES_AROUND, note_read
from ftkit.data.canonical import canonical, without_bytes
from ftkit.data.kinds import NOTHING, TEXT, is_json, kind_of_field, merged_kind, widen_whole_numbers
from ftkit.errors import DataError, Problem

if TYPE_CHECKING:
    from ftkit.data.progress import Watcher

POSITION = "\0position"
"""Hidden column: the line (from 1) of a row, or its index into `Origin.files`."""

STEP = 4096
"""Rows decoded at a time. The fingerprint depends on it."""

STEP_WITH_BYTES = 32
"""The same where columns hold bytes: photographs take some megabytes each."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a run of rows comes from. `label` is the file as messages name it; `files` the paths of a class folder."""

    label: str
    unit: Literal["line", "row", "file"] = "row"
    weight: float = 1.0
    files: tuple[str, ...] = ()

    def place(self, position: int) -> str:
        """`position`: line or row from 1, or index into `files`."""
        return self.files[position] if self.unit == "file" else f"{self.label}, {self.unit} {position}"


class Table:
    """Immutable rows. A selection shares the storage of the table it was made from.

    column_names: the columns that rows have. A value that a row lacks is None.
    source_columns: all columns that the source has, also those that were not read.
    conflicts: columns that were left out because their values do not fit together, with the reason.
    """

    def __init__(
        self,
        batches: Sequence[pa.RecordBatch],
        origins: Sequence[tuple[Origin, int]],
        column_names: Sequence[str],
        *,
        combined: Mapping[str, int] | None = None,
        indices: np.ndarray | None = None,
        source_columns: Sequence[str] = (),
        conflicts: Mapping[str, Problem] | None = None,
    ) -> None:
        self._batches, self._origins = list(batches), list(origins)
        self._starts = _starts([batch.num_rows for batch in batches])
        self._origin_starts = _starts([rows for _, rows in origins])
        self._combined = dict(combined or {})
        self._indices = indices
        self._fingerprint: str | None = None
        self.column_names: list[str] = list(column_names)
        self.source_columns: list[str] = list(source_columns)
        self.conflicts: dict[str, Problem] = dict(conflicts or {})

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._indices is None else len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows([index])[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for rows in self.row_chunks():
            yield from rows

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Rows by index, in the order asked for. Raises IndexError."""
        return _as_rows(self._columns_at(self._checked(indices)))

    def chunks(self) -> Iterator[dict[str, list[Any]]]:
        """All rows in order, as {column: values}, a few thousand rows at a time, few where they hold files."""
        step = self._step()
        for start in range(0, len(self), step):
            yield self._columns_at(np.arange(start, min(start + step, len(self))))

    def row_chunks(self) -> Iterator[list[dict[str, Any]]]:
        """All rows in order, as many at a time as `chunks` gives."""
        for columns in self.chunks():
            yield _as_rows(columns)

    def values(self, name: str) -> Iterator[Any]:
        """The values of one column, one after the other."""
        for columns in self.project({name: name}).chunks():
            yield from columns[name]

    def column(self, name: str) -> list[Any]:
        """All values of one column."""
        return list(self.values(name))

    def select(self, indices: np.ndarray) -> Table:
        """The rows with these indices, in this order; nothing is copied. Raises IndexError."""
        chosen = self._base_rows(self._checked(indices))
        if self._starts[-1] < 2**31:
            chosen = chosen.astype(np.int32)
        return self._like(self._batches, self.column_names, self._combined, chosen)

    def project(self, columns: Mapping[str, str | Sequence[str]]) -> Table:
        """The table with columns {new name: column, or columns whose values are put into a list}. Raises KeyError."""
        parts: dict[str, str] = {}
        combined: dict[str, int] = {}
        for name, sources in columns.items():
            if isinstance(sources, str):
                count = self._combined.get(sources)
                parts.update(zip(_parts(name, count), _parts(sources, count), strict=True))
                if count is not None:
                    combined[name] = count
            else:
                parts.update(zip(_parts(name, len(sources)), sources, strict=True))
                combined[name] = len(sources)
        missing = set(parts.values()) - {part for name in self.column_names for part in _parts(name, self._combined.get(name))}
        if missing:
            raise KeyError(", ".join(sorted(missing)))
        batches = [_renamed(batch, parts) for batch in self._batches]
        return self._like(batches, list(columns), combined, self._indices)

    def stored(self) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """The stored batches, each with the row of this table (-1: left out) that each of its rows is: int64 (rows,)."""
        rows = np.full(int(self._starts[-1]), -1, dtype=np.int64)
        rows[self._base_rows(np.arange(len(self)))] = np.arange(len(self))
        for start, batch in zip(self._starts.tolist(), self._batches, strict=False):
            yield batch, rows[start : start + batch.num_rows]

    def with_stored(self, other: Table) -> Table:
        """The same rows with the values that `other` stores; it must store as many rows, in the same order."""
        return self._like(other._batches, self.column_names, self._combined, self._indices)

    def place(self, index: int) -> str:
        """Where the row comes from: `data/train.csv, line 17`, `x.parquet, row 3`, or the path of its file."""
        row = int(self._base_rows(self._checked([index]))[0])
        number = int(np.searchsorted(self._origin_starts, row, side="right")) - 1
        block = int(np.searchsorted(self._starts, row, side="right")) - 1
        batch = self._batches[block]
        if POSITION in batch.schema.names:
            position = batch.column(POSITION)[row - int(self._starts[block])].as_py()
        else:
            position = row - int(self._origin_starts[number]) + 1
        return self._origins[number][0].place(position)

    def origin_label(self, index: int) -> str:
        """The file (or other origin) of a row, as messages name it."""
        row = int(self._base_rows(self._checked([index]))[0])
        return self._origins[int(np.searchsorted(self._origin_starts, row, side="right")) - 1][0].label

    def weights(self) -> np.ndarray | None:
        """Weight of each row's source: float64 (rows,). None if all are 1."""
        weights = np.array([origin.weight for origin, _ in self._origins], dtype=np.float64)
        if not len(self) or np.all(weights == 1.0):
            return None
        rows = self._base_rows(np.arange(len(self)))
        return weights[np.searchsorted(self._origin_starts, rows, side="right") - 1]

    def fingerprint(self, watch: Watcher | None = None) -> str:
        """sha256 (hex) of column names and values in order; independent of the format that they were read from.

        watch: its `progress` is told how many rows are done of how many.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256(canonical(self.column_names))
            for start in range(0, len(self), STEP):
                stop = min(start + STEP, len(self))
                digest.update(canonical(self._to_hash(start, stop)))
                if watch is not None:
                    watch.progress(stop, len(self))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _to_hash(self, start: int, stop: int) -> list[list[Any]]:
        """The columns of some rows, with digests in place of bytes, of which `canonical` makes the same."""
        step, found = self._step(), dict[str, list[Any]]({name: [] for name in self.column_names})
        for at in range(start, stop, step):
            for name, values in self._columns_at(np.arange(at, min(at + step, stop))).items():
                found[name] += values if step == STEP else map(without_bytes, values)
        return list(found.values())

    def _step(self) -> int:
        """Rows to decode at a time."""
        needed = {part for name in self.column_names for part in _parts(name, self._combined.get(name))}
        fields = (field for batch in self._batches[:1] for field in batch.schema if field.name in needed)
        return STEP_WITH_BYTES if any(_holds_bytes(field.type) for field in fields) else STEP

    def packed(self, start: int, stop: int) -> tuple[dict[str, Any], list[pa.RecordBatch]]:
        """The rows from `start` to `stop` for another process: what `unpacked` takes there, as JSON and record batches."""
        rows = self._base_rows(np.arange(start, stop))
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        needed = [part for name in self.column_names for part in _parts(name, self._combined.get(name))]
        batches = [
            _taken(self._batches[blocks[group[0]]], rows[group] - self._starts[blocks[group[0]]], needed)
            for group in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(blocks)) + 1)
        ]
        return {"names": self.column_names, "combined": self._combined, "label": self.origin_label(start)}, batches

    def text_bytes(self, start: int, stop: int) -> np.ndarray:
        """Bytes of UTF-8 in the texts of each row from `start` to `stop`: int64 (stop - start,)."""
        found = [np.zeros(0, np.int64)]
        for batch in self.packed(start, stop)[1]:
            sizes = np.zeros(batch.num_rows, np.int64)
            for field, column in zip(batch.schema, batch.columns, strict=True):
                if kind_of_field(field) == TEXT and not pa.types.is_dictionary(field.type):
                    sizes += numpy_of(pa.compute.binary_length(column).fill_null(0))
            found.append(sizes)
        return np.concatenate(found)

    @classmethod
    def unpacked(cls, facts: Mapping[str, Any], batches: Sequence[pa.RecordBatch]) -> Table:
        """The rows that `packed` gave. Where they stood is not known any more."""
        origin = Origin(label=facts["label"])
        return cls(batches, [(origin, sum(batch.num_rows for batch in batches))], facts["names"], combined=facts["combined"])

    @classmethod
    def concatenate(cls, tables: Sequence[Table], *, conflicts: Literal["raise", "note", "keep"] = "raise") -> Table:
        """The rows of all tables, one table after the other.

        conflicts: what becomes of a column that holds different kinds of values in two of them: it raises DataError; it is left out and
        noted in `conflicts`, for columns that nobody may need; it is kept as it is.
        """
        if len(tables) == 1:
            return tables[0]
        names = list(dict.fromkeys(name for table in tables for name in table.column_names))
        found = _conflicts_between(names, tables) if conflicts != "keep" else {}
        if found and conflicts == "raise":
            raise DataError(list(found.values()))
        names = [name for name in names if name not in found]
        batches = [batch for table in tables for batch in table._batches]
        indices = None
        if any(table._indices is not None for table in tables):
            offsets = _starts([int(table._starts[-1]) for table in tables])
            parts = [table._base_rows(np.arange(len(table))) + offset for table, offset in zip(tables, offsets, strict=False)]
            indices = np.concatenate(parts)
        return cls(
            widen_whole_numbers(batches, names),
            [origin for table in tables for origin in table._origins],
            names,
            combined={name: count for table in tables for name, count in table._combined.items()},
            indices=indices,
            source_columns=list(dict.fromkeys(name for table in tables for name in table.source_columns)),
            conflicts={**found, **{name: problem for table in tables for name, problem in table.conflicts.items()}},
        )

    def kind(self, name: str) -> str:
        """What kind of value a column holds, in words. `nothing`: only nulls."""
        fields = [batch.schema.field(name) for batch in self._batches if name in batch.schema.names]
        return merged_kind(kind_of_field(field) for field in fields) or "mixed"

    def _like(
        self, batches: list[pa.RecordBatch], names: Sequence[str], combined: Mapping[str, int], indices: np.ndarray | None
    ) -> Table:
        return Table(
            batches,
            self._origins,
            names,
            combined=combined,
            indices=indices,
            source_columns=self.source_columns,
            conflicts=self.conflicts,
        )

    def _checked(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        rows = np.asarray(indices, dtype=np.int64)
        if not rows.size:
            return rows
        smallest = rows.min()
        if smallest < -len(self) or rows.max() >= len(self):
            raise IndexError(f"row index out of range for {len(self)} rows")
        return rows if smallest >= 0 else np.where(rows < 0, rows + len(self), rows)

    def _base_rows(self, rows: np.ndarray) -> np.ndarray:
        return rows if self._indices is None else self._indices[rows].astype(np.int64)

    def _columns_at(self, rows: np.ndarray) -> dict[str, list[Any]]:
        rows = self._base_rows(rows)
        needed = [part for name in self.column_names for part in _parts(name, self._combined.get(name))]
        try:
            values = self._decode(rows, needed)
        except (ValueError, OverflowError, pa.ArrowException) as error:
            # Dates that Python has no year for, time zones that nobody knows.
            message, hint = f"holds a value that cannot be read: {error}", "Write the column as text"
            raise DataError(Problem(message=message, place=self.origin_label(0), hint=hint)) from error
        columns: dict[str, list[Any]] = {}
        for name in self.column_names:
            parts = [values[part] for part in _parts(name, self._combined.get(name))]
            columns[name] = [list(row) for row in zip(*parts, strict=True)] if name in self._combined else parts[0]
        return columns

    def _decode(self, rows: np.ndarray, names: Sequence[str]) -> dict[str, list[Any]]:
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        if rows.size and blocks.min() == blocks.max():
            return _decoded(self._batches[blocks[0]], rows - self._starts[blocks[0]], names)
        values: dict[str, list[Any]] = {name: [None] * len(rows) for name in names}
        order = np.argsort(blocks, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1) if rows.size else ():
            block = blocks[group[0]]
            for name, items in _decoded(self._batches[block], rows[group] - self._starts[block], names).items():
                target = values[name]
                for at, item in zip(group.tolist(), items, strict=True):
                    target[at] = item
        return values


def _parts(name: str, count: int | None) -> list[str]:
    """Stored columns of a column that combines `count` of them."""
    return [name] if count is None else [f"{name}\0{index}" for index in range(count)]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _starts(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def _as_rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _taken(batch: pa.RecordBatch, rows: np.ndarray, names: Sequence[str]) -> pa.RecordBatch:
    """These rows of a batch, with those of the columns that it has."""
    fields = [field for field in batch.schema if field.name in names]
    contiguous = bool(np.all(np.diff(rows) == 1))
    note_read(min(batch.nbytes, len(fields) * len(rows) * PAGES_AROUND))
    chosen = batch.slice(int(rows[0]), len(rows)) if contiguous else batch
    if not fields:
        return _rows_only(len(rows))
    columns = [chosen.column(field.name) for field in fields]
    if not contiguous:
        columns = [column.take(int64_array(rows)) for column in columns]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _decoded(batch: pa.RecordBatch, rows: np.ndarray, names: Sequence[str]) -> dict[str, list[Any]]:
    taken = _taken(batch, rows, names)
    values: dict[str, list[Any]] = {}
    for name in names:
        index = taken.schema.get_field_index(name)
        items = [None] * len(rows) if index < 0 else taken.column(index).to_pylist()
        if index >= 0 and is_json(taken.schema.field(index)):
            items = [None if item is None else json.loads(item) for item in items]
        values[name] = items
    return values


def _rows_only(count: int) -> pa.RecordBatch:
    """A batch without columns would have no length."""
    return pa.RecordBatch.from_arrays([pa.nulls(count)], names=["\0empty"])


def _renamed(batch: pa.RecordBatch, parts: Mapping[str, str]) -> pa.RecordBatch:
    chosen = {new: batch.schema.get_field_index(old) for new, old in {**parts, POSITION: POSITION}.items()}
    chosen = {new: index for new, index in chosen.items() if index >= 0}
    if not chosen:
        return _rows_only(batch.num_rows)
    fields = [batch.schema.field(index).with_name(new) for new, index in chosen.items()]
    return pa.RecordBatch.from_arrays([batch.column(index) for index in chosen.values()], schema=pa.schema(fields))


def _conflicts_between(names: Iterable[str], tables: Sequence[Table]) -> dict[str, Problem]:
    conflicts: dict[str, Problem] = {}
    for name in names:
        kinds = [(table.kind(name), table) for table in tables if name in table.column_names]
        if merged_kind(kind for kind, _ in kinds) is not None:
            continue
        first_kind, first = next(pair for pair in kinds if pair[0] != NOTHING)
        other_kind, other = next(pair for pair in kinds if merged_kind([pair[0], first_kind]) is None)
        message = f"the column holds {other_kind} here, but {first_kind} in {first.origin_label(0)}"
        hint = "Give the column the same type in all sources."
        conflicts[name] = Problem(message=message, place=other.origin_label(0), key=name, hint=hint)
    return conflicts
