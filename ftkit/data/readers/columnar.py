"""Parquet, Arrow IPC files and folders written by `datasets.Dataset.save_to_disk`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ftkit.data.arrow_files import plain_types
from ftkit.data.arrow_files import read_batches as read_ipc
from ftkit.data.building import TableBuilder
from ftkit.data.problems import shorten
from ftkit.data.readers.disguises import LONGEST, disguised
from ftkit.data.readers.source_file import SourceFile
from ftkit.data.table import Origin, Table
from ftkit.errors import DataError, Problem
from ftkit.files import parse_json, read_json

WRITE_AGAIN = "Copy or write it again."


def read_parquet(file: SourceFile) -> Table:
    """Rows of a Parquet file; only the wanted columns are read. Raises DataError if the file is damaged."""
    import pyarrow.parquet as pq

    try:
        with file.builder("row") as builder, pq.ParquetFile(file.path) as parquet:
            schema = parquet.schema_arrow
            names = builder.note_columns(schema.names)
            _refuse_doubled_columns(file, schema.names)
            if file.meter is not None:
                file.meter.opened(lambda: builder.rows / max(1, parquet.metadata.num_rows))
            for batch in parquet.iter_batches(batch_size=8192, columns=names):
                batch.validate(full=True)
                builder.add_batch(with_class_names(plain_types(batch), schema.metadata))
            return builder.finish()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(file, "Parquet", error) from error


def read_arrow(file: SourceFile) -> Table:
    """Rows of an Arrow IPC file or stream, or of a `save_to_disk` folder, memory-mapped."""
    if file.path.is_dir():
        folder = _split_folder(file)
        try:
            names = [str(entry["filename"]) for entry in _read_json(file, folder / "state.json")["_data_files"]]
        except (KeyError, TypeError) as error:
            raise _damaged(file, "save_to_disk", ValueError("state.json names no data files")) from error
        paths = [folder / Path(name).name for name in names]
    else:
        paths = [file.path]
    try:
        with file.builder("row") as builder:
            names_kept: list[str] | None = None
            for batch in (batch for path in paths for batch in read_ipc(path)):
                _refuse_doubled_columns(file, batch.schema.names)
                # Damaged offsets would otherwise be read outside the file.
                batch.validate(full=True)
                names_kept = names_kept or builder.note_columns(batch.schema.names)
                if batch.num_rows:
                    builder.add_batch(with_class_names(plain_types(batch.select(names_kept)), batch.schema.metadata))
            return builder.finish()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise _damaged(file, "Arrow", error) from error


def read_batches(file: SourceFile, batches: Iterable[pa.RecordBatch]) -> Table:
    """A table of record batches that are in memory or memory-mapped already."""
    origin = Origin(label=file.label, weight=file.weight)
    builder = TableBuilder(origin, file.columns)
    filled = [batch for batch in batches if batch.num_rows]
    if not filled:
        return builder.finish()
    schema = filled[0].schema
    names = builder.note_columns(schema.names)
    kept = [with_class_names(plain_types(batch.select(names)), schema.metadata) for batch in filled]
    return Table(kept, [(origin, sum(batch.num_rows for batch in kept))], names, source_columns=schema.names)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` wrote this folder with `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def with_class_names(batch: pa.RecordBatch, metadata: Mapping[bytes, bytes] | None) -> pa.RecordBatch:
    """The batch with names in place of class numbers, where `datasets` recorded them (-1, no class, becomes null)."""
    for name, names in _class_names(metadata).items():
        index = batch.schema.get_field_index(name)
        if index < 0:
            continue
        column = batch.column(index)
        if pa.types.is_integer(column.type):
            named = _named(column, names)
        elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            named = type(column).from_arrays(column.offsets, _named(column.values, names))
            named = _with_nulls_of(named, column)
        else:
            continue
        batch = batch.set_column(index, pa.field(name, named.type), named)
    return batch


def _split_folder(file: SourceFile) -> Path:
    if not (file.path / "dataset_dict.json").is_file():
        return file.path
    content = _read_json(file, file.path / "dataset_dict.json")
    splits = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
        raise _damaged(file, "save_to_disk", ValueError("dataset_dict.json names no splits"))
    if file.split not in splits:
        message = f"has no split {file.split!r}, only: {', '.join(splits)}"
        raise DataError(Problem(message=message, place=file.label, key="split", hint="Name one with `split:` of the source."))
    return file.path / file.split


def _read_json(file: SourceFile, path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        place = f"{file.label}/{path.relative_to(file.path)}"
        raise DataError(Problem(message=f"cannot be read: {reason}", place=place, hint=WRITE_AGAIN)) from error


def _refuse_doubled_columns(file: SourceFile, names: Sequence[str]) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(
            Problem(message=f"has more than one column {doubled[0]!r}", place=file.label, hint="Rename or drop all but one")
        )


def _damaged(file: SourceFile, kind: str, error: Exception) -> DataError:
    if file.path.is_file():
        with open(file.path, "rb") as stream:
            problem = disguised(stream.read(LONGEST), file.label)
        if problem is not None and kind not in problem.message:
            return DataError(problem)
    reason = shorten(str(error).splitlines()[0] if str(error) else type(error).__name__, 160)
    return DataError(Problem(message=f"not a whole {kind} file: {reason}", place=file.label, hint=WRITE_AGAIN))


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    try:
        features = parse_json((metadata or {}).get(b"huggingface", b"{}").decode("utf-8"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    found: dict[str, list[str]] = {}
    for name, feature in features.items() if isinstance(features, dict) else ():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else feature
        names = inner.get("names") if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else None
        if names and isinstance(names, list) and all(isinstance(label, str) for label in names):
            found[name] = names
    return found


def _named(numbers: pa.Array, names: list[str]) -> pa.Array:
    lookup = dict(enumerate(names))
    return pa.array([lookup.get(number) for number in numbers.to_pylist()], pa.large_string())


def _with_nulls_of(named: pa.Array, column: pa.Array) -> pa.Array:
    if not column.null_count:
        return named
    rows = zip(named.to_pylist(), column.is_valid().to_pylist(), strict=True)
    return pa.array([value if valid else None for value, valid in rows], named.type)
