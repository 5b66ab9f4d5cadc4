"""csv and tsv, with a header line. Values stay strings; an empty field stays an empty string."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import islice

from ftkit.data.problems import Problems, shorten
from ftkit.data.readers.source_file import CHUNK_BYTES, CHUNK_ROWS, SourceFile, text_lines
from ftkit.data.table import Table
from ftkit.errors import DataError, Problem

Record = tuple[int, list[str]]


def read(file: SourceFile) -> Table:
    """Rows of a delimited file; blank lines are skipped. Raises DataError with every line that has the wrong number of fields."""
    records = _records(file)
    header = next(records, None)
    problems = Problems()
    if header is None:
        raise DataError(Problem(message="holds no rows", place=file.label))
    names = header[1]
    _check_header(file, names)
    with file.builder("line") as builder:
        indices = {name: names.index(name) for name in builder.note_columns(names)}
        for chunk in _chunks(records):
            good = [record for record in chunk if _fits(file, record, names, problems)]
            if good and not len(problems):
                columns = {name: [fields[index] for _, fields in good] for name, index in indices.items()}
                builder.add_columns(columns, [line for line, _ in good])
        problems.raise_if_any()
        return builder.finish()


def _records(file: SourceFile) -> Iterator[Record]:
    # The csv module's limit of 131072 characters a field is there to catch unbalanced quotes; strict=True does so too.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader((line for _, line in text_lines(file)), delimiter=file.delimiter or ",", strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        hint = 'Inside a quoted field, write a quote character twice: "".'
        raise DataError(Problem(message=f"not valid csv: {error}", place=f"{file.label}, line {line}", hint=hint)) from error


def _check_header(file: SourceFile, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        message = f"the header names {', '.join(map(repr, twice))} more than once"
        raise DataError(Problem(message=message, place=f"{file.label}, line 1", hint="The first line must name the columns."))


def _fits(file: SourceFile, record: Record, names: list[str], problems: Problems) -> bool:
    line, fields = record
    if len(fields) == len(names):
        return True
    message = f"{len(fields)} fields ({shorten(fields[0], 30)} ...), but the header has {len(names)}"
    hint = "A field that contains the delimiter or a line break must be quoted."
    problems.add(Problem(message=message, place=f"{file.label}, line {line}", hint=hint))
    return False


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    rows = CHUNK_ROWS
    while chunk := list(islice(records, rows)):
        yield chunk
        # The size of the rows so far sets how many make up a chunk.
        size = sum(len(field) for _, fields in chunk for field in fields) / len(chunk)
        rows = max(1, min(CHUNK_ROWS, int(CHUNK_BYTES / max(size, 1))))
