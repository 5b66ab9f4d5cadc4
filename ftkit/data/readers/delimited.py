"""csv and tsv, with a header line. Values stay strings; an empty field stays an empty string."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import islice

from ftkit.data.building import NO_ROWS_HINT
from ftkit.data.problems import Problems, shorten
from ftkit.data.readers.source_file import CHUNK_BYTES, CHUNK_ROWS, SourceFile, row_lines
from ftkit.data.table import Table
from ftkit.errors import DataError, Problem

Record = tuple[int, list[str]]

SHOWN_NAMES = 8
"""Columns of the header that messages list."""


def read(file: SourceFile) -> Table:
    """Rows of a delimited file; blank lines are skipped. Raises DataError with every line that has the wrong number of fields."""
    records = _records(file)
    header = next(records, None)
    problems = Problems()
    if header is None:
        raise DataError(Problem(message="holds no rows", place=file.label, hint=NO_ROWS_HINT))
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
    latest = ""

    def lines() -> Iterator[str]:
        nonlocal latest
        for _, text in row_lines(file):
            latest = latest or text.rstrip("\r\n")
            yield text

    reader = csv.reader(lines(), delimiter=file.delimiter or ",", strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line, latest = reader.line_num + 1, ""
    except csv.Error as error:
        hint = 'Inside a quoted field, write a quote character twice: "".'
        message = f"not valid csv: {error} ({shorten(latest, 40)})"
        raise DataError(Problem(message=message, place=f"{file.label}, line {line}", hint=hint)) from error


def _check_header(file: SourceFile, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        message = f"the header names {', '.join(map(repr, twice))} more than once"
        if twice == [""]:
            message = f"the header leaves {names.count('')} of {len(names)} columns without a name"
        raise DataError(Problem(message=message, place=f"{file.label}, line 1", hint="The first line must name the columns."))


def _fits(file: SourceFile, record: Record, names: list[str], problems: Problems) -> bool:
    line, fields = record
    if len(fields) == len(names):
        return True
    listed = ", ".join(names[:SHOWN_NAMES]) + (" ..." if len(names) > SHOWN_NAMES else "")
    message = f"{len(fields)} fields ({shorten(fields[0], 30)} ...), but the header has {len(names)}: {listed}"
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
