"""One file of a source, as the readers of single formats see it, and reading of text with a stated encoding."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ftkit.data.building import TableBuilder
from ftkit.data.problems import shorten
from ftkit.data.progress import Meter
from ftkit.data.readers.disguises import LONGEST, disguised
from ftkit.data.table import Origin
from ftkit.errors import DataError, Problem

CHUNK_ROWS = 10_000
CHUNK_BYTES = 16 * 2**20
"""Readers hold at most this much of a file as Python values."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """What a reader needs to know.

    label: how messages name the file. columns: names worth reading, None for all. split: part of a data set with named splits.
    meter: is told how far reading is. mixed: see `read_source`.
    """

    path: Path
    label: str
    columns: frozenset[str] | None = None
    weight: float = 1.0
    encoding: str = "utf-8"
    delimiter: str | None = None
    split: str = "train"
    meter: Meter | None = None
    mixed: bool = False

    def builder(self, unit: str) -> TableBuilder:
        """A table builder whose places are lines or rows of this file."""
        origin = Origin(label=self.label, unit="line" if unit == "line" else "row", weight=self.weight)
        return TableBuilder(origin, self.columns, self.meter, mixed=self.mixed)


def open_bytes(file: SourceFile) -> BinaryIO:
    """The file's bytes, decompressed if its name ends in .gz."""
    stream: BinaryIO = gzip.open(file.path, "rb") if file.path.suffix == ".gz" else open(file.path, "rb")  # type: ignore[assignment]
    if file.meter is not None:
        file.meter.opened_stream(stream)
    return stream


def text_lines(file: SourceFile) -> Iterator[tuple[int, str]]:
    """Lines with their numbers (from 1) and line ends.

    Raises DataError on bytes that are not valid in the stated encoding, with the line, the byte and a likely encoding.
    """
    encodings = known_encodings(file.encoding)
    try:
        with open_bytes(file) as stream:
            if "\n".encode(encodings[0]) != b"\n":
                yield from _wide_lines(file, stream, encodings[0])
                return
            for number, line in enumerate(stream, start=1):
                yield number, decode(line, encodings, file.label, number)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        plain = str(error).startswith("Not a gzipped file")
        hint = "Take .gz off its name, or compress it." if plain else "Copy or write it again."
        raise DataError(Problem(message=f"not a whole gzip file: {error}", place=file.label, hint=hint)) from error


def row_lines(file: SourceFile) -> Iterator[tuple[int, str]]:
    """`text_lines` of formats with a row a line. Raises DataError also where old Mac line ends make one line of the whole file."""
    for number, line in text_lines(file):
        if number == 1 and not line.endswith("\n") and "\r" in line.rstrip("\r"):
            message = f"is one single line, with the line ends of old Macs: {shorten(line, 40)}"
            raise DataError(Problem(message=message, place=f"{file.label}, line 1", hint="Write it with \\n between the lines."))
        yield number, line


def known_encodings(names: str) -> tuple[str, ...]:
    """Python's names of the encodings in `utf-8` or `utf-8,latin-1` (the first that fits a line or file is used).

    Raises DataError if there is no such text encoding.
    """
    return tuple(_known_encoding(name.strip()) for name in names.split(","))


def decode(data: bytes, encodings: Sequence[str], label: str, line: int = 1) -> str:
    """Text of bytes that start at a line; a byte order mark at the start of a file is dropped.

    Raises DataError for bytes that fit none of the encodings, for files of another kind, and for zero bytes, which no text has.
    """
    if line == 1 and (problem := disguised(data[:LONGEST], label)):
        raise DataError(problem)
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as failure:
            error = failure
            continue
        if "\0" in text:
            raise _with_zeros(data, label, line)
        return text.removeprefix("\ufeff") if line == 1 else text
    raise _undecodable(data, error, label, line) from error


def _known_encoding(name: str) -> str:
    try:
        "a".encode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError, TypeError) as error:
        message = f"unknown encoding {name!r}"
        raise DataError(Problem(message=message, key="encoding", hint="Usual ones: utf-8, latin-1, cp1252, utf-16.")) from error


def _wide_lines(file: SourceFile, stream: BinaryIO, encoding: str) -> Iterator[tuple[int, str]]:
    """Lines in an encoding whose line ends are not one byte."""
    number = 0
    try:
        with io.TextIOWrapper(stream, encoding=encoding, newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                yield number, line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        message = f"not valid {encoding}: {getattr(error, 'reason', error)}"
        hint = "Is the file whole, and in this encoding? Without `encoding` it is read as utf-8."
        raise DataError(Problem(message=message, place=f"{file.label}, after line {number}", key="encoding", hint=hint)) from error


def _undecodable(data: bytes, error: UnicodeDecodeError, label: str, line: int) -> DataError:
    before = data[: error.start]
    column = error.start - before.rfind(b"\n")
    message = f"byte 0x{data[error.start]:02X} (byte {column} of the line) is not valid {error.encoding}"
    likely = _likely(data)
    mixed = "" if likely == "utf-16" else f", or `encoding: utf-8,{likely}` if only some lines or files need it"
    hint = f"Try `encoding: {likely}` for this source{mixed}."
    lines_before = before.count(b"\n")
    place = f"{label}, line {line + lines_before}"
    return DataError(Problem(message=message, place=place, key="encoding", hint=hint))


def _with_zeros(data: bytes, label: str, line: int) -> DataError:
    """Every other byte of plain text in UTF-16 is zero; elsewhere zero bytes are what a crash or a copy that broke off leaves."""
    at = max(0, data.find(0))
    line += data[:at].count(b"\n")
    column = at - data[:at].rfind(b"\n")
    message = f"byte 0x00 (byte {column} of the line) is no text"
    wide = {(False, True): "utf-16-le", (True, False): "utf-16-be"}.get((not data[0], not data[1])) if len(data) > 1 else None
    if line == 1 and wide:
        hint = f"The file looks like UTF-16. Try `encoding: {wide}` for this source."
        return DataError(Problem(message=message, place=f"{label}, line 1", key="encoding", hint=hint))
    return DataError(
        Problem(message=message, place=f"{label}, line {line}", hint="Take the zero bytes out, or write the file again.")
    )


def _likely(data: bytes) -> str:
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    # In latin-1 these are control characters, in cp1252 quotes and dashes.
    return "cp1252" if any(0x80 <= byte <= 0x9F for byte in data) else "latin-1"
