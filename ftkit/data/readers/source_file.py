"""One file of a source, as the readers of single formats see it, and reading of text with a stated encoding."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ftkit.data.building import TableBuilder
from ftkit.data.table import Origin
from ftkit.errors import DataError, Problem

CHUNK_ROWS = 10_000
CHUNK_BYTES = 16 * 2**20
"""Readers hold at most this much of a file as Python values."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """What a reader needs to know.

    label: how messages name the file. columns: names worth reading, None for all. split: part of a data set with named splits.
    """

    path: Path
    label: str
    columns: frozenset[str] | None = None
    weight: float = 1.0
    encoding: str = "utf-8"
    delimiter: str | None = None
    split: str = "train"

    def builder(self, unit: str) -> TableBuilder:
        """A table builder whose places are lines or rows of this file."""
        return TableBuilder(Origin(label=self.label, unit="line" if unit == "line" else "row", weight=self.weight), self.columns)


def open_bytes(file: SourceFile) -> BinaryIO:
    """The file's bytes, decompressed if its name ends in .gz."""
    if file.path.suffix == ".gz":
        return gzip.open(file.path, "rb")  # type: ignore[return-value]
    return open(file.path, "rb")


def text_lines(file: SourceFile) -> Iterator[tuple[int, str]]:
    """Lines with their numbers (from 1) and line ends.

    Raises DataError on bytes that are not valid in the stated encoding, with the line, the byte and a likely encoding.
    """
    encoding = known_encoding(file.encoding)
    try:
        with open_bytes(file) as stream:
            if "\n".encode(encoding) == b"\n":
                yield from _decoded_lines(file, stream, encoding)
            else:
                yield from _wide_lines(file, stream, encoding)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(Problem(message=f"not a whole gzip file: {error}", place=file.label)) from error


def known_encoding(name: str) -> str:
    """Python's name of an encoding. Raises DataError if there is no such text encoding."""
    try:
        info = codecs.lookup(name)
        "".encode(name)
        return info.name
    except LookupError as error:
        message = f"unknown encoding {name!r}"
        raise DataError(Problem(message=message, key="encoding", hint="Usual ones: utf-8, latin-1, cp1252, utf-16.")) from error


def decode(file: SourceFile, data: bytes, encoding: str, place: str) -> str:
    """Text of bytes; a byte order mark at the start is dropped. Raises DataError."""
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _undecodable(data, error, encoding, place) from error


def _decoded_lines(file: SourceFile, stream: BinaryIO, encoding: str) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        for number, line in enumerate(stream, start=1):
            text = line.decode(encoding)
            yield number, text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        raise _undecodable(line, error, encoding, f"{file.label}, line {number}") from error


def _wide_lines(file: SourceFile, stream: BinaryIO, encoding: str) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with io.TextIOWrapper(stream, encoding=encoding, newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                yield number, line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        message = f"not valid {encoding}: {getattr(error, 'reason', error)}"
        raise DataError(Problem(message=message, place=f"{file.label}, after line {number}", key="encoding")) from error


def _undecodable(data: bytes, error: UnicodeDecodeError, encoding: str, place: str) -> DataError:
    byte = data[error.start]
    message = f"byte 0x{byte:02X} (byte {error.start + 1} of the line) is not valid {encoding}"
    return DataError(
        Problem(message=message, place=place, key="encoding", hint=f"Try `encoding: {_likely(data)}` for this source.")
    )


def _likely(data: bytes) -> str:
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    # In latin-1 these are control characters, in cp1252 quotes and dashes.
    return "cp1252" if any(0x80 <= byte <= 0x9F for byte in data) else "latin-1"
