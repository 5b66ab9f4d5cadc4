"""Digests of rows, and values as numbers: 16 and 4 bytes a row, so that ten million rows are compared without an object for each.

Digests are uint64 (rows, 2): the first and the second eight bytes of a 16-byte hash, read as big-endian numbers. Sorted by both they
are in the order of the bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

import numpy as np

from ftkit.data.canonical import canonical
from ftkit.data.progress import UNWATCHED, Watcher
from ftkit.data.table import Table


def digest_chunks(
    table: Table, names: Sequence[str], files: Collection[str] = (), watch: Watcher = UNWATCHED
) -> Iterator[np.ndarray]:
    """Digests of each row's values in some columns, uint64 (some rows, 2). files: columns that count by their files' content, whatever
    the files are called."""
    done = 0
    for columns in table.project({name: name for name in names}).chunks():
        values = [[_content(value) for value in columns[name]] if name in files else columns[name] for name in names]
        plain = all(set(map(type, column)) == {str} for column in values)
        write = _plain_row if plain else canonical
        data = b"".join(hashlib.blake2b(write(row), digest_size=16).digest() for row in zip(*values, strict=True))
        found = from_bytes(data)
        yield found
        done += len(found)
        watch.progress(done, len(table))


def row_digests(table: Table, names: Sequence[str], files: Collection[str] = (), watch: Watcher = UNWATCHED) -> np.ndarray:
    """The digests of all rows, uint64 (rows, 2); see `digest_chunks`."""
    # Each half next to itself: sorting by a half would else copy it.
    found = np.empty((len(table), 2), dtype=np.uint64, order="F")
    start = 0
    for chunk in digest_chunks(table, names, files, watch):
        found[start : start + len(chunk)] = chunk
        start += len(chunk)
    return found


def from_bytes(data: bytes) -> np.ndarray:
    """Digests whose bytes stand one after the other, uint64 (len(data) / 16, 2)."""
    return np.frombuffer(data, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def as_bytes(digests: np.ndarray) -> list[bytes]:
    """The inverse of `from_bytes`, one by one."""
    data = digests.astype(">u8").tobytes()
    return [data[start : start + 16] for start in range(0, len(data), 16)]


def _plain_row(row: tuple[str, ...]) -> bytes:
    """What `canonical` makes of a row of texts, three times as fast."""
    return f"[{','.join(map(encode_basestring, row))}]".encode("utf-8", "surrogatepass")


def _content(value: Any) -> Any:
    return value.get("bytes") or value.get("path") if isinstance(value, dict) else value


def index_type(count: int) -> type[np.signedinteger]:
    """The smaller of int32 and int64 that numbers so many things."""
    return np.int32 if count < 2**31 else np.int64


class EqualRows:
    """Rows grouped by their digests.

    order: the rows, those with equal digests next to each other and ascending (rows,). starts: where each group begins in `order`,
    and their end (groups + 1,). Groups are in the order of their digests.
    """

    def __init__(self, digests: np.ndarray) -> None:
        kind = index_type(len(digests))
        self.order = np.lexsort((digests[:, 1], digests[:, 0])).astype(kind)
        self.starts = group_starts((digests[:, 0], digests[:, 1]), self.order)

    def group_of_row(self) -> np.ndarray:
        """The number of each row's group (rows,)."""
        found = np.empty_like(self.order)
        found[self.order] = np.repeat(np.arange(len(self.starts) - 1, dtype=self.order.dtype), np.diff(self.starts))
        return found


def group_starts(keys: Sequence[np.ndarray], order: np.ndarray) -> np.ndarray:
    """Where runs of rows with equal keys begin in a sorted order, and its end (runs + 1,)."""
    begins = np.ones(len(order) + 1, dtype=bool)
    if len(order):
        begins[1:-1] = False
    for key in keys:
        ordered = key[order]
        begins[1:-1] |= ordered[1:] != ordered[:-1]
    return np.flatnonzero(begins).astype(order.dtype)


class KnownDigests:
    """Distinct digests of some rows, to look others up in. group_of_row: the number of each row's digest (rows,)."""

    def __init__(self, digests: np.ndarray) -> None:
        equal = EqualRows(digests)
        self.group_of_row = equal.group_of_row()
        self.first = equal.order[equal.starts[:-1]]
        self._high, self._low = digests[self.first, 0], digests[self.first, 1]

    def __len__(self) -> int:
        return len(self._high)

    def find(self, digests: np.ndarray) -> np.ndarray:
        """The number of each digest, -1 for those that are not known: int64 (rows,)."""
        at = np.searchsorted(self._high, digests[:, 0])
        last = len(self) - 1
        while True:
            near = np.minimum(at, last)
            same = (at <= last) & (self._high[near] == digests[:, 0])
            # Half a digest in common is all but impossible, and yet no reason to be wrong.
            behind = same & (self._low[near] < digests[:, 1])
            if not behind.any():
                return np.where(same & (self._low[near] == digests[:, 1]), near, -1)
            at = at + behind


@dataclass(frozen=True)
class Codes:
    """Values as numbers. numbers: int32 (rows,), indices into `values`, which has each value once."""

    numbers: np.ndarray
    values: list[Hashable]


def codes_of(values: Iterable[Hashable], count: int) -> Codes:
    """Numbers for so many values, in the order in which they first appear. Raises TypeError for lists and objects."""
    known: dict[Hashable, int] = {}
    numbers = np.fromiter((known.setdefault(value, len(known)) for value in values), dtype=np.int32, count=count)
    return Codes(numbers, list(known))
