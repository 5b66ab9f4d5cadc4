"""Encoded rows: made once in batches, kept in an Arrow file that is memory-mapped, and found again by the hash of all that made them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Generator, Sequence
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ftkit.data.arrays import numpy_of
from ftkit.data.arrow_files import PAGES_AROUND, SegmentWriter, explained_cache_errors, map_batches, note_read, sync_folder
from ftkit.data.aside import Aside, in_turn
from ftkit.data.canonical import canonical
from ftkit.data.encoding import Progress, encoded_batches
from ftkit.data.feature_columns import to_values
from ftkit.data.spilling import Batches
from ftkit.data.table import Table
from ftkit.files import read_json
from ftkit.paths import cache_folder
from ftkit.tasks.base import Features, Task

MANIFEST = "manifest.json"
WAY_OUT = "Free some space, set FTKIT_CACHE to a folder that can be written, or set `data.cache: false`."


class FeatureStore:
    """Features of a split, in the order of its rows.

    lengths: tokens of each feature, int32 (features,). example: row that each feature comes from, int64 (features,).
    key: what the cache entry is called, '' where there is none. hit: whether it was there already.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], *, key: str, hit: bool) -> None:
        self._batches = list(batches)
        self._starts = np.concatenate([[0], np.cumsum([batch.num_rows for batch in batches], dtype=np.int64)]).astype(np.int64)
        self.lengths = self._gathered("length", np.int32)
        self.key, self.hit = key, hit

    @property
    def example(self) -> np.ndarray:
        """See the class. Read anew each time: only few need it."""
        return self.numbers("example")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: Sequence[int] | np.ndarray) -> list[Features]:
        """Features by index, in the order asked for; each has `example` and `length`. Raises IndexError."""
        features: list[Features] = []
        for index in np.asarray(indices, dtype=np.int64).tolist():
            if not 0 <= index < len(self):
                raise IndexError(f"feature {index} of {len(self)}")
            block = int(np.searchsorted(self._starts, index, side="right")) - 1
            batch = self._batches[block]
            note_read(batch.num_columns * PAGES_AROUND)
            features.append(to_values(batch, index - int(self._starts[block])))
        return features

    def numbers(self, name: str) -> np.ndarray:
        """The values of a feature that is a whole number, int64 (features,). Raises KeyError if there is no such feature."""
        return self._gathered(name, np.int64)

    def _gathered(self, name: str, kind: type[np.signedinteger]) -> np.ndarray:
        found = np.empty(len(self), dtype=kind)
        for start, batch in zip(self._starts.tolist(), self._batches, strict=False):
            column = batch.column(name)
            found[start : start + batch.num_rows] = numpy_of(column)
            note_read(column.nbytes)
        return found


def encode_table(
    table: Table,
    task: Task,
    processor: Any,
    *,
    processor_key: str,
    cache: bool,
    training: bool = False,
    progress: Progress | None = None,
    num_workers: int = 1,
) -> FeatureStore:
    """Features of all rows of a table, from the cache where an entry with the same key is whole.

    processor_key: names the tokenizer (or image processor) and all its files. training: as `Task.encode` takes it.
    num_workers: processes that may help; the features do not depend on them.
    Raises DataError if the cache cannot be written, and what `encoded_batches` raises.
    """
    encoded = partial(
        encoded_batches,
        table,
        task,
        processor,
        processor_key=processor_key,
        training=training,
        progress=progress,
        num_workers=num_workers,
    )
    if not cache:
        return FeatureStore(_collected(encoded()), key="", hit=False)
    key = cache_key(table, task, processor_key, training=training)
    folder = cache_folder() / "tokens" / key
    with in_turn(folder.with_name(f".turn-{key}")):
        if (batches := _read(folder)) is not None:
            return FeatureStore(batches, key=key, hit=True)
        return FeatureStore(_write(folder, encoded()), key=key, hit=False)


def _collected(encoded: Generator[pa.RecordBatch, None, None]) -> list[pa.RecordBatch]:
    """All batches, kept for as long as they are in use."""
    collected = Batches()
    try:
        for batch in encoded:
            collected.add(batch)
        return collected.finish()
    except BaseException:
        collected.discard()
        raise
    finally:
        encoded.close()


def cache_key(table: Table, task: Task, processor_key: str, *, training: bool = False) -> str:
    """sha256 (hex) over all that features depend on: rows, processor, task, its options and state, its code, library versions."""
    parts = {
        "rows": table.fingerprint(),
        "processor": processor_key,
        "training": training,
        "task": task.name,
        "options": task.options.model_dump(mode="json"),
        "state": task.state(),
        "code": {name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for name, file in _code_files(type(task)).items()},
        "versions": {name: _version(name) for name in ("ftkit", "transformers", "tokenizers", "pyarrow", "pillow")},
    }
    return hashlib.sha256(canonical(parts)).hexdigest()


def _code_files(task: type) -> dict[str, str]:
    """Source files of the task's classes and of this module, and of the modules of their package's kin that they import."""
    files: dict[str, str] = {}
    waiting = [__name__, *(cls.__module__ for cls in task.__mro__)]
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if name in files or module is None or file is None or not (name.startswith("ftkit") or name == task.__module__):
            continue
        files[name] = file
        names = {getattr(value, "__module__", None) or getattr(value, "__name__", None) for value in vars(module).values()}
        waiting += [other for other in names if isinstance(other, str)]
    return files


@lru_cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _write(folder: Path, encoded: Generator[pa.RecordBatch, None, None]) -> list[pa.RecordBatch]:
    """Writes an entry aside and renames it; the manifest is written last, so that an entry without one is not whole."""
    with explained_cache_errors(folder.parent, WAY_OUT):
        aside = Aside(folder.parent)
    writer = SegmentWriter(aside.path)
    try:
        for batch in encoded:
            with explained_cache_errors(folder.parent, WAY_OUT):
                writer.write(batch)
        with explained_cache_errors(folder.parent, WAY_OUT):
            _write_manifest(aside.path, writer.finish())
            _replace(folder, aside.release())
            return _written(folder)
    finally:
        encoded.close()
        writer.abandon()
        aside.remove()


def _write_manifest(folder: Path, digests: dict[str, str]) -> None:
    files = {name: {"sha256": digest, "bytes": (folder / name).stat().st_size} for name, digest in digests.items()}
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _written(folder: Path) -> list[pa.RecordBatch]:
    batches = _read(folder)
    if batches is None:
        raise OSError(None, f"{folder.name} was written but does not read back whole")
    return batches


def _replace(folder: Path, aside: Path) -> None:
    """Puts a whole entry in place of a damaged one; keeps an entry that another process finished meanwhile."""
    if folder.exists() and _read(folder) is None:
        shutil.rmtree(folder)
    try:
        os.rename(aside, folder)
    except OSError:
        if _read(folder) is None:
            raise
    sync_folder(folder.parent)


def _read(folder: Path) -> list[pa.RecordBatch] | None:
    """The batches of an entry, None if it is absent or damaged."""
    try:
        files = read_json(folder / MANIFEST)["files"]
        for name, facts in files.items():
            path = folder / Path(name).name
            if path.stat().st_size != facts["bytes"] or _sha256(path) != facts["sha256"]:
                return None
        return [batch for name in files for batch in map_batches(folder / Path(name).name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
