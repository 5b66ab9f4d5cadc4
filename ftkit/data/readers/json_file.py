"""JSON: a list of objects, or an object with such a list under `data` (SQuAD: of articles). Read piece by piece, never as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ftkit.data.problems import shorten
from ftkit.data.readers import json_syntax, squad
from ftkit.data.readers.source_file import CHUNK_BYTES, CHUNK_ROWS, SourceFile, text_lines
from ftkit.data.table import Table
from ftkit.errors import DataError, Problem

LIST_KEY = "data"

_SPACE = " \t\r\n"


def read(file: SourceFile) -> Table:
    """Rows of a JSON file; questions of a SQuAD file. Raises DataError with line and column where it is not valid JSON."""
    found = _objects(_Text(file))
    beginning = next(found, None)
    if beginning is not None and squad.is_article(beginning[0]):
        return squad.read_articles(file, (article for article, _ in chain([beginning], found)))
    rows: list[dict[str, Any]] = []
    first = count = size = 0
    with file.builder("row") as builder:
        for row, length in chain([] if beginning is None else [beginning], found):
            rows.append(row)
            count, size = count + 1, size + length
            if len(rows) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                builder.add_rows(rows, range(first + 1, count + 1))
                rows, first, size = [], count, 0
        if rows:
            builder.add_rows(rows, range(first + 1, count + 1))
        return builder.finish()


def read_squad(file: SourceFile) -> Table:
    """Questions of a SQuAD file. Raises DataError where it is not valid JSON or not SQuAD's."""
    return squad.read_articles(file, (article for article, _ in _objects(_Text(file))))


class _Text:
    """The text still ahead, filled from the file as needed; knows line and column of its start."""

    def __init__(self, file: SourceFile) -> None:
        self.label = file.label
        self._pieces = _pieces(file)
        self._text, self._at = "", 0
        self._line, self._column = 1, 1

    def peek(self) -> str:
        """The next character that is not white space, '' at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def ahead(self, count: int) -> str:
        """The next characters of the line, at most `count`."""
        return self._text[self._at : self._at + count].split("\n", 1)[0]

    def skip(self, expected: str) -> None:
        """Consumes one of the expected characters."""
        found = self.peek()
        if not found or found not in expected:
            names = " or ".join(f"`{character}`" for character in expected)
            message = f"invalid JSON: expected {names}, found {f'`{found}`' if found else 'the end of the file'}"
            raise self.error(message, "Correct it, or write the file with a JSON library." if found else "Is the file whole?")
        self._at += 1

    def end(self) -> None:
        """Raises DataError if anything but white space is left."""
        if found := self.peek():
            hint = "If each line is an object of its own, set `format: jsonl`."
            raise self.error(f"invalid JSON: expected the end of the file, found `{found}`", hint)

    def value(self) -> tuple[Any, int]:
        """Consumes one JSON value; also gives its length in characters."""
        self.peek()
        while True:
            try:
                value, end = json_syntax.DECODER.raw_decode(self._text, self._at)
                json_syntax.check_depth(value, self._text, self._at, end)
            except json.JSONDecodeError as error:
                if self._fill():
                    continue
                problem = json_syntax.reason(self._text, error), json_syntax.way_out(self._text, error)
                raise self.error(*problem, at=error.pos) from error
            except json_syntax.DuplicateKeyError as error:
                raise self.error(error.message, error.hint, key=error.key) from error
            except RecursionError as error:
                raise self.error("invalid JSON: nested too deeply", "Write the rows flatter.") from error
            except ValueError as error:
                # Python converts no whole number of thousands of digits.
                raise self.error("invalid JSON: a number is too long", "Write it as text.") from error
            # A number that touches the end of the buffer may go on in the next piece.
            if end == len(self._text) and self._fill():
                continue
            length, self._at = end - self._at, end
            return value, length

    def error(self, message: str, hint: str, *, at: int | None = None, key: str = "") -> DataError:
        """A DataError at an offset of the buffer, where nothing is said at what is to be read next."""
        at = self._at if at is None else at
        before = self._text[:at]
        lines = before.count("\n")
        column = at - before.rfind("\n") if lines else self._column + at
        return DataError(Problem(message=message, place=f"{self.label}:{self._line + lines}:{column}", key=key, hint=hint))

    def _fill(self) -> bool:
        # Twice what is left: a value that needs many pieces costs a constant number of parses of its length.
        wanted, pieces = max(1, len(self._text) - self._at), []
        for piece in self._pieces:
            pieces.append(piece)
            wanted -= len(piece)
            if wanted <= 0:
                break
        if not pieces:
            return False
        used = self._text[: self._at]
        lines = used.count("\n")
        self._line += lines
        self._column = len(used) - used.rfind("\n") if lines else self._column + len(used)
        self._text, self._at = self._text[self._at :] + "".join(pieces), 0
        return True


def _pieces(file: SourceFile, size: int = 2**20) -> Iterator[str]:
    held: list[str] = []
    length = 0
    for _, line in text_lines(file):
        held.append(line)
        length += len(line)
        if length >= size:
            yield "".join(held)
            held, length = [], 0
    if held:
        yield "".join(held)


def _objects(text: _Text) -> Iterator[tuple[dict[str, Any], int]]:
    start = text.peek()
    if start == "[":
        yield from _elements(text)
    elif start == "{":
        yield from _under_data(text)
    elif start:
        found = shorten(text.ahead(20))
        message = f"neither a list of objects nor an object with such a list under `data`: it begins with {found}"
        hint = "Write the rows as `[{...}, {...}]`, or say what `format` the file has."
        raise DataError(Problem(message=message, place=text.label, hint=hint))
    text.end()


def _under_data(text: _Text) -> Iterator[tuple[dict[str, Any], int]]:
    keys: list[str] = []
    text.skip("{")
    found = False
    while text.peek() != "}":
        if keys:
            text.skip(",")
        if text.peek() != '"':
            text.skip('"')
        keys.append(text.value()[0])
        text.skip(":")
        if keys[-1] == LIST_KEY and text.peek() == "[":
            found = True
            yield from _elements(text)
        else:
            text.value()
    text.skip("}")
    if not found:
        hint = "Write the rows as `[{...}, {...}]`; if each line is an object of its own, set `format: jsonl`."
        message = f"has no list under `{LIST_KEY}`; its keys are: {', '.join(keys) or 'none'}"
        raise DataError(Problem(message=message, place=text.label, hint=hint))


def _elements(text: _Text) -> Iterator[tuple[dict[str, Any], int]]:
    text.skip("[")
    count = 0
    while text.peek() != "]":
        if count:
            text.skip(",")
        count += 1
        value, length = text.value()
        if not isinstance(value, dict):
            message = f"{shorten(value)} is not an object; each element of the list is one"
            hint = 'Write it as {"column": value, ...}.'
            raise DataError(Problem(message=message, place=f"{text.label}, row {count}", hint=hint))
        yield value, length
    text.skip("]")
