"""CoNLL files: a word and its labels a line, a blank line after each sentence.

    Anna   NNP  B-PER        columns `tokens` (the first), `tags` (the last),
    lives  VBZ  O            and each by its number: `column_1`, `column_2`, `column_3`

Columns stand between tabs if the line has one, else between blanks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ftkit.data.problems import Problems, shorten
from ftkit.data.readers.source_file import CHUNK_BYTES, CHUNK_ROWS, SourceFile, row_lines
from ftkit.data.table import Table
from ftkit.errors import Problem

DOCUMENT_MARK = "-DOCSTART"
LABEL = re.compile(r"O|[BIESLU](-.+)?")

Sentence = list[list[str]]
"""The columns of each word."""


def read(file: SourceFile) -> Table:
    """A row for each sentence, placed at the line of its first word; -DOCSTART- lines and comments (`# ...`) are skipped.

    Raises DataError with every line (20 at most) that has another number of columns than the first one, or no word or label.
    """
    problems = Problems()
    sentences: list[Sentence] = []
    positions: list[int] = []
    size = 0
    with file.builder("line") as builder:

        def add() -> None:
            indices = _columns(len(sentences[0][0]))
            kept = builder.note_columns(list(indices))
            builder.add_columns(
                {name: [[word[indices[name]] for word in words] for words in sentences] for name in kept}, positions
            )

        for line, words in _sentences(file, problems):
            sentences.append(words)
            positions.append(line)
            size += sum(len(column) for word in words for column in word)
            if len(sentences) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                add()
                sentences, positions, size = [], [], 0
        problems.raise_if_any()
        if sentences:
            add()
        return builder.finish()


def _columns(width: int) -> dict[str, int]:
    """Index of each column by name. A file of one column has no labels."""
    named = {"tokens": 0, "tags": width - 1} if width > 1 else {"tokens": 0}
    return {**named, **{f"column_{index + 1}": index for index in range(width)}}


def _sentences(file: SourceFile, problems: Problems) -> Iterator[tuple[int, Sentence]]:
    """The first line and the words of each sentence; lines that do not fit are noted and left out."""
    words: Sentence = []
    first = width = width_line = 0
    for number, line in row_lines(file):
        fields = _fields(line, file.delimiter)
        if not any(fields) or fields[0].startswith(DOCUMENT_MARK):
            if words:
                yield first, words
                words = []
            continue
        if _is_comment(line, fields, width, inside=bool(words)):
            continue
        if not width:
            width, width_line = len(fields), number
        if message := _misfit(fields, width, width_line):
            hint = "Every word takes a line with all columns; a blank line ends the sentence."
            problems.add(Problem(message=message, place=f"{file.label}, line {number}", hint=hint))
            continue
        first = first if words else number
        words.append(fields)
    if words:
        yield first, words


def _fields(line: str, delimiter: str | None) -> list[str]:
    """Only blanks and tabs separate: other white space can be a word."""
    line = line.rstrip("\r\n")
    if delimiter is None and "\t" not in line:
        return re.split(" +", line.strip(" "))
    return [field.strip(" ") for field in line.split(delimiter or "\t")]


def _is_comment(line: str, fields: list[str], width: int, *, inside: bool) -> bool:
    """`# ...` is a comment, unless it looks like the word `#` with its labels."""
    if not (line.startswith("# ") or line.rstrip() == "#"):
        return False
    return len(fields) != width or not (inside or LABEL.fullmatch(fields[-1]))


def _misfit(fields: list[str], width: int, width_line: int) -> str:
    if len(fields) != width:
        return f"{len(fields)} columns ({shorten(' '.join(fields), 40)}), but line {width_line} has {width}"
    if not fields[0] or not fields[-1]:
        return f"the {'first' if not fields[0] else 'last'} column is empty ({shorten(' '.join(fields), 40)})"
    return ""
