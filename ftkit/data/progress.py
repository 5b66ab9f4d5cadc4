"""How the data layer tells how far it is. Whoever watches is given by the caller; nobody watches by default."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from ftkit.data.table import Table


class Watcher(Protocol):
    """What `ftkit.run.observer.Observer` offers to the data layer."""

    def part(self, name: str) -> None:
        """A part of the current stage begins: `reading train`, `checking rows` ..."""

    def progress(self, done: int, total: int | None, share: float | None = None) -> None:
        """Rows done, of how many; where that is not known, the share of the work that is done (0 to 1), if that is."""


class _Unwatched:
    def part(self, name: str) -> None:
        pass

    def progress(self, done: int, total: int | None, share: float | None = None) -> None:
        pass


UNWATCHED: Watcher = _Unwatched()


class CountedRows:
    """The rows of a table; going through them tells how far it is. For what takes rows and knows nothing of watching."""

    def __init__(self, table: Table, watch: Watcher) -> None:
        self._table, self._watch = table, watch

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._table[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        done = 0
        for rows in self._table.row_chunks():
            yield from rows
            done += len(rows)
            self._watch.progress(done, len(self._table))


class Meter:
    """Tells a watcher how much of a source's files is read.

    sizes: bytes of the files, in the order in which they are opened.
    """

    def __init__(self, watch: Watcher, sizes: list[int]) -> None:
        self._watch, self._sizes = watch, sizes
        self._rows = self._opened = 0
        self._position: Callable[[], float] = float

    def opened(self, position: Callable[[], float]) -> None:
        """The next file is open. position: tells the share of it that is read."""
        self._opened, self._position = self._opened + 1, position

    def opened_stream(self, stream: BinaryIO) -> None:
        """The next file is open as a stream, decompressed or not."""
        size = self._sizes[self._opened] if self._opened < len(self._sizes) else 0
        self.opened(lambda: 1.0 if stream.closed or not size else os.lseek(stream.fileno(), 0, os.SEEK_CUR) / size)

    def add(self, rows: int) -> None:
        """So many more rows are read."""
        self._rows += rows
        done, total = sum(self._sizes[: self._opened - 1]), sum(self._sizes)
        current = self._sizes[self._opened - 1] if 0 < self._opened <= len(self._sizes) else 0
        share = min(1.0, (done + current * self._position()) / total) if total else None
        self._watch.progress(self._rows, None, share)
