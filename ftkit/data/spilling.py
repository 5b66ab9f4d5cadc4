"""Record batches on their way to a table or a store: in memory, or on disk where they are too many."""

from __future__ import annotations

import pyarrow as pa

from ftkit.data.arrow_files import SegmentWriter, explained_cache_errors, map_batches
from ftkit.data.aside import Aside
from ftkit.paths import cache_folder

SPILL_BYTES = 256 * 2**20
"""What takes more memory than this is kept on disk."""

FOLDER = "tables"
WAY_OUT = "Free some space, or set FTKIT_CACHE to a folder that can be written."


class Batches:
    """Collects record batches: `add ...`, then `finish` or `discard`.

    Beyond SPILL_BYTES they go to a file in the cache folder. It is mapped and loses its name once it is written, so that its space is
    free when the process ends, however it ends. Raises DataError if it cannot be written.
    """

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._aside: Aside | None = None
        self._writer: SegmentWriter | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Appends a batch."""
        if self._writer is not None:
            self._write([batch])
            return
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._bytes > SPILL_BYTES:
            self._write(self._batches)
            self._batches = []

    def finish(self) -> list[pa.RecordBatch]:
        """All batches in their order."""
        if self._writer is None or self._aside is None:
            return self._batches
        with explained_cache_errors(cache_folder() / FOLDER, WAY_OUT):
            names = list(self._writer.finish())
            batches = [batch for name in names for batch in map_batches(self._aside.path / name)]
        self._aside.remove()
        return batches

    def discard(self) -> None:
        """Removes what was written so far."""
        if self._writer is not None and self._aside is not None:
            self._writer.abandon()
            self._aside.remove()

    def _write(self, batches: list[pa.RecordBatch]) -> None:
        with explained_cache_errors(cache_folder() / FOLDER, WAY_OUT):
            if self._writer is None:
                self._aside = Aside(cache_folder() / FOLDER)
                self._writer = SegmentWriter(self._aside.path)
            for batch in batches:
                self._writer.write(batch)
