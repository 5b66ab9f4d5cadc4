"""Writes predictions: JSON lines, or a table of delimited text where a file's ending says so."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

from ftkit.cli.output import document_text, emit
from ftkit.files import json_text, to_json

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def print_predictions(predictions: Iterator[dict[str, Any]], *, as_json: bool) -> None:
    """On standard output: a line each; with `as_json` one document."""
    if as_json:
        emit({"predictions": list(predictions)})
        return
    for prediction in predictions:
        emit(prediction, indent=None)


def write_predictions(predictions: Iterable[dict[str, Any]], output: Path) -> int:
    """To a file. Returns the number of rows."""
    delimiter = DELIMITERS.get(output.suffix.lower())
    with _opened(output) as stream:
        return _write_lines(predictions, stream) if delimiter is None else _write_table(predictions, stream, delimiter)


@contextmanager
def _opened(output: Path) -> Iterator[TextIO]:
    """The file appears when it is whole. What is no file (a pipe, a device) is written to as it is."""
    output = output.resolve()
    plain = not output.exists() or output.is_file()
    written = output.with_name(f".tmp-{os.getpid()}-{output.name}") if plain else output
    try:
        with written.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            yield stream
        if plain:
            os.replace(written, output)
    except OSError as error:
        # A disk that is full names no file.
        error.filename = error.filename or str(output)
        raise
    finally:
        if plain:
            written.unlink(missing_ok=True)


def _write_lines(predictions: Iterable[dict[str, Any]], stream: TextIO) -> int:
    count = 0
    for prediction in predictions:
        stream.write(document_text(prediction) + "\n")
        count += 1
    return count


def _write_table(predictions: Iterable[dict[str, Any]], stream: TextIO, delimiter: str) -> int:
    """Rows under one header. It has every entry that any row has, so that all rows are kept, as text, until the last is there."""
    columns: dict[str, None] = {}
    with TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as kept:
        for prediction in predictions:
            cells = dict(_cells(to_json(prediction)))
            columns.update(dict.fromkeys(cells))
            kept.write(json_text(cells) + "\n")
        kept.seek(0)
        writer = csv.DictWriter(stream, list(columns), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        count = 0
        for line in kept:
            writer.writerow(json.loads(line))
            count += 1
    return count


def _cells(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The entries of a result as cells; those of a mapping get a column each: `probabilities.sports`. Lists are JSON text."""
    for name, item in value.items():
        if isinstance(item, dict) and item:
            yield from _cells(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "" if item is None else item if isinstance(item, str) else document_text(item)
