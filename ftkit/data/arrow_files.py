"""Arrow files on disk: written in pieces, memory-mapped for reading."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakSet

import pyarrow as pa
import pyarrow.compute

from ftkit.errors import DataError

RESIDENT_BYTES = 64 * 2**20
"""Mapped files take up about so much of the process's memory at most, and leave the rest to the system's file cache."""

PAGES_AROUND = 2**16
"""Bytes that the system maps at once around the one that is read."""


class _HashingFile:
    """A file being written that knows the sha256 of what it was given."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "wb")
        self.digest = hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self._file.write(view)
        return view.nbytes

    def close(self) -> None:
        self.closed = True
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        self.closed = True
        # What is still buffered does not fit on a full disk, and need not.
        with suppress(OSError):
            self._file.close()


class SegmentWriter:
    """Writes record batches to Arrow IPC files of a folder; a change of schema starts the next file.

    `finish` gives {file name: sha256} in order of writing.
    """

    def __init__(self, folder: Path, prefix: str = "part") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._prefix = folder, prefix
        self._digests: dict[str, str] = {}
        self._sink: _HashingFile | None = None
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._schema: pa.Schema | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends a batch."""
        if self._writer is None or not batch.schema.equals(self._schema, check_metadata=True):
            self._close_file()
            self._sink = _HashingFile(self._folder / self._name())
            self._writer = pa.ipc.new_file(self._sink, batch.schema)
            self._schema = batch.schema
        self._writer.write_batch(batch)

    def finish(self) -> dict[str, str]:
        """Closes the last file; returns the sha256 of each file by name."""
        self._close_file()
        return self._digests

    def abandon(self) -> None:
        """Closes the file being written, as it is."""
        if self._sink is not None:
            self._sink.abandon()
        self._writer = self._sink = self._schema = None

    def _name(self) -> str:
        return f"{self._prefix}-{len(self._digests):05d}.arrow"

    def _close_file(self) -> None:
        if self._writer is None or self._sink is None:
            return
        name = self._name()
        self._writer.close()
        self._sink.close()
        self._digests[name] = self._sink.digest.hexdigest()
        self._writer = self._sink = self._schema = None


def map_batches(path: Path) -> list[pa.RecordBatch]:
    """The batches of an Arrow IPC file, memory-mapped.

    Raises pa.ArrowInvalid or ValueError if it is none, OSError if it cannot be read.
    """
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _RESIDENCY.add(memory)
    reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(memory)))
    batches = []
    for index in range(reader.num_record_batches):
        batches.append(reader.get_batch(index))
        note_read(PAGES_AROUND)
    return batches


def note_read(size: int) -> None:
    """Says that about so many bytes of mapped files were read: now and then their pages are handed back to the system.

    Without that a pass over a large file would show as so much memory in use, though the system can take it back at any time.
    """
    _RESIDENCY.read(size)


class _Residency:
    """Mapped files that are in use."""

    def __init__(self) -> None:
        self._mapped: WeakSet[mmap.mmap] = WeakSet()
        self._bytes = 0

    def add(self, memory: mmap.mmap) -> None:
        self._mapped.add(memory)

    def read(self, size: int) -> None:
        self._bytes += size
        if self._bytes > RESIDENT_BYTES:
            self._release()

    def _release(self) -> None:
        self._bytes = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            for memory in list(self._mapped):
                memory.madvise(mmap.MADV_DONTNEED)


_RESIDENCY = _Residency()


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow IPC file or stream, one after the other, copied: a mapped file that its owner cuts while it is in use
    would end the process by SIGBUS. Raises pa.ArrowInvalid if it is neither."""
    with pa.OSFile(str(path), "rb") as source:
        start = source.read(6)
        source.seek(0)
        if start == b"ARROW1":
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            yield from pa.ipc.open_stream(source)


def plain_types(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with string and binary views and run-end encoded columns as ordinary ones, which all of Arrow's functions take."""
    for index, field in enumerate(batch.schema):
        column = batch.column(index)
        if pa.types.is_run_end_encoded(field.type):
            column = pa.compute.run_end_decode(column)
        if pa.types.is_string_view(column.type):
            column = column.cast(pa.large_string())
        elif pa.types.is_binary_view(column.type):
            column = column.cast(pa.large_binary())
        if column.type != field.type:
            batch = batch.set_column(index, field.with_type(column.type), column)
    return batch


def sync_folder(folder: Path) -> None:
    """Makes renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained_cache_errors(folder: Path, way_out: str) -> Iterator[None]:
    """Turns a full disk or a folder that cannot be written into a DataError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot write to the cache folder {folder}: {reason}", hint=way_out) from error
