"""Texts that are hardly any, damaged, or of a length of their own."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import regex

from ftkit.data.table import Table
from ftkit.diagnostics.findings import Finding, Hits, about_rows, share
from ftkit.diagnostics.roles import Roles, text_of

LENGTH_Z = 6.0
"""Distance from the median of the logarithm of lengths, in robust standard deviations, from which a length is suspicious. Lengths of
texts are near to log-normal; beyond 6 one row in a thousand million would lie by chance, which leaves room for heavier tails."""

LENGTH_FACTOR = 4.0
"""By which such a length must differ from the median, too: rows of some collections are all about as long."""

FEWEST_FOR_LENGTHS = 50
"""Rows below which a spread of lengths says little."""

SHORTER_THAN_SOURCE = 0.5
"""Targets whose median length is below this share of their sources' are taken for summaries."""

MAD_TO_DEVIATION = 1.4826
"""Median absolute deviation to standard deviation of a normal distribution (Iglewicz & Hoaglin 1993)."""

_CONTENT = regex.compile(r"[^\p{P}\p{Z}\p{Cc}\p{Cf}]")
"""Letters, digits, emojis and other signs, in contrast to blanks and punctuation."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")

# The characters that the bytes 0x80 to 0xbf become when UTF-8 is read as Latin-1 or Windows-1252.
_AFTER = "\x80-\xbf" + re.escape(bytes(range(0x80, 0xA0)).decode("cp1252", "ignore"))
# After a capital, `Ã”` and the like end a Portuguese word in quotes.
_MOJIBAKE = re.compile(f"(?<![A-ZÀ-Þ])[ÃÂ][{_AFTER}]|â[€\x80][{_AFTER}]|ï»¿|ð[Ÿ\x9f]|(?:[ÐÑ][{_AFTER}]){{2}}")


class TextColumn:
    """What is odd about the texts of a column. lengths: characters of each row, int64; -1 where there is no text."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bare, self.control, self.garbled, self.lost = Hits(), Hits(), Hits(), Hits()
        self._lengths: list[np.ndarray] = []

    @property
    def lengths(self) -> np.ndarray:
        """See the class."""
        return np.concatenate([np.empty(0, np.int64), *self._lengths])

    def read(self, values: Sequence[Any], start: int) -> None:
        """Looks at the next rows. start: the number of the first."""
        texts = [text_of(value) for value in values]
        self._lengths.append(np.array([len(text) or -1 for text in texts], dtype=np.int64))
        for row, text in enumerate(texts, start):
            garbled = not text.isascii() and self._read_beyond_ascii(row, text)
            # Garbled text has control characters of its own.
            if not garbled and not text.isprintable() and (match := _CONTROL.search(text)):
                self.control.add(row, f"{match.group()!r} at character {match.start() + 1:,}")
            if not _CONTENT.search(text) and text.strip():
                self.bare.add(row)

    def _read_beyond_ascii(self, row: int, text: str) -> bool:
        """Whether the text is garbled."""
        if "\ufffd" in text:
            self.lost.add(row)
        if match := _MOJIBAKE.search(text):
            self.garbled.add(row, repr(match.group()))
        return match is not None

    def findings(self, split: str, table: Table) -> list[Finding]:
        """One for each kind of oddity that there is."""
        where, total = f"{split}: {self.name}:", len(table)
        kinds = [
            (
                "bare-texts",
                self.bare,
                "hold nothing but blanks and punctuation",
                "Remove them, or find out what became of their text",
            ),
            ("control-characters", self.control, "hold control characters", "Strip them: the model has hardly seen any"),
            (
                "garbled-texts",
                self.garbled,
                "look like UTF-8 that was read in another encoding",
                "Find out where they were written, or repair them (the package ftfy does)",
            ),
            (
                "lost-characters",
                self.lost,
                "hold U+FFFD, what is left of a character that could not be read",
                "Go back to the source",
            ),
        ]
        return [
            about_rows(check, "warning", f"{where} {share(hits.count, total)} {what}", table, hits, hint)
            for check, hits, what, hint in kinds
            if hits.count
        ]


def text_findings(split: str, table: Table, roles: Roles) -> list[Finding]:
    """Everything odd about the texts of a split, inputs and targets. Reads each text once."""
    columns = {name: TextColumn(name) for name in dict.fromkeys((*roles.texts, *roles.text_targets))}
    if not columns:
        return []
    start = 0
    for chunk in table.project({name: name for name in columns}).chunks():
        for name, column in columns.items():
            column.read(chunk[name], start)
        start += len(next(iter(chunk.values())))
    found = [finding for column in columns.values() for finding in column.findings(split, table)]
    found += [finding for column in columns.values() for finding in _odd_lengths(split, table, column.name, column.lengths)]
    return found + _long_targets(
        split, table, [columns[name] for name in roles.texts], [columns[name] for name in roles.text_targets]
    )


def odd_lengths(lengths: np.ndarray) -> np.ndarray:
    """Rows (int64) whose length is far from the others', by a robust z-score of its logarithm. lengths: (rows,), -1: none."""
    known = np.flatnonzero(lengths > 0)
    if len(known) < FEWEST_FOR_LENGTHS:
        return np.empty(0, np.int64)
    logs = np.log(lengths[known])
    distance = np.abs(logs - np.median(logs))
    deviation = MAD_TO_DEVIATION * np.median(distance)
    # Where more than half of the lengths are equal there is no spread to measure by.
    return known[distance > max(LENGTH_Z * deviation, math.log(LENGTH_FACTOR))] if deviation > 0 else np.empty(0, np.int64)


def _odd_lengths(split: str, table: Table, name: str, lengths: np.ndarray) -> list[Finding]:
    rows = odd_lengths(lengths)
    if not len(rows):
        return []
    hits = Hits()
    for row in rows.tolist():
        hits.add(row, f"{lengths[row]:,} characters")
    middle = int(np.median(lengths[lengths > 0]))
    message = (
        f"{split}: {name}: {share(len(rows), len(table))} are far longer or shorter than the others (median {middle:,} characters)"
    )
    return [about_rows("odd-lengths", "note", message, table, hits, "Look whether they are what they should be")]


def _long_targets(split: str, table: Table, sources: Sequence[TextColumn], targets: Sequence[TextColumn]) -> list[Finding]:
    """Where targets are much shorter than sources as a rule, those that are longer."""
    targets = [column for column in targets if (column.lengths > 0).any()]
    if len(targets) != 1 or not sources or targets[0].name in {column.name for column in sources}:
        return []
    source = np.sum([np.maximum(column.lengths, 0) for column in sources], axis=0)
    target = targets[0].lengths
    known = target > 0
    if known.sum() < FEWEST_FOR_LENGTHS or np.median(target[known]) >= SHORTER_THAN_SOURCE * np.median(source[known]):
        return []
    hits = Hits()
    for row in np.flatnonzero(known & (target > source)).tolist():
        hits.add(row, f"{target[row]:,} characters for {source[row]:,}")
    message = f"{split}: {targets[0].name}: {share(hits.count, len(table))} are longer than their source"
    return (
        [about_rows("long-targets", "note", message, table, hits, "Look whether source and target are mixed up")]
        if hits.count
        else []
    )
