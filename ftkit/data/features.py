"""Encoded rows: made once in batches, kept in an Arrow file that is memory-mapped, and found again by the hash of all that made them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ftkit.data.arrow_files import SegmentWriter, explained_cache_errors, map_batches, sync_folder
from ftkit.data.feature_columns import from_features, to_values
from ftkit.data.problems import Problems
from ftkit.data.table import Table, canonical
from ftkit.errors import Problem
from ftkit.paths import cache_folder
from ftkit.tasks.base import Features, Row, RowError, Task

ROWS_PER_BATCH = 1000
MANIFEST = "manifest.json"
WAY_OUT = "Free some space, set FTKIT_CACHE to a folder that can be written, or set `data.cache: false`."

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""


class FeatureStore:
    """Features of a split, in the order of its rows.

    lengths: tokens of each feature, int32 (features,). example: row that each feature comes from, int64 (features,).
    key: what the cache entry is called. hit: whether it was there already.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], *, key: str, hit: bool) -> None:
        self._batches = list(batches)
        self._starts = np.concatenate([[0], np.cumsum([batch.num_rows for batch in batches], dtype=np.int64)]).astype(np.int64)
        self.lengths = self.numbers("length").astype(np.int32)
        self.example = self.numbers("example")
        self.key, self.hit = key, hit

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, indices: Sequence[int] | np.ndarray) -> list[Features]:
        """Features by index, in the order asked for; each has `example` and `length`. Raises IndexError."""
        features: list[Features] = []
        for index in np.asarray(indices, dtype=np.int64).tolist():
            if not 0 <= index < len(self):
                raise IndexError(f"feature {index} of {len(self)}")
            block = int(np.searchsorted(self._starts, index, side="right")) - 1
            features.append(to_values(self._batches[block], index - int(self._starts[block])))
        return features

    def numbers(self, name: str) -> np.ndarray:
        """The values of a feature that is a whole number, int64 (features,). Raises KeyError if there is no such feature."""
        parts = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self._batches]
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


def encode_table(
    table: Table,
    task: Task,
    processor: Any,
    *,
    processor_key: str,
    cache: bool,
    training: bool = False,
    progress: Progress | None = None,
) -> FeatureStore:
    """Features of all rows of a table, from the cache where an entry with the same key is whole.

    processor_key: names the tokenizer (or image processor) and all its files. training: as `Task.encode` takes it.
    Raises DataError if the cache cannot be written.
    """
    key = cache_key(table, task, processor_key, training=training)
    encoded = _encoded(table, task, processor, training, progress)
    if not cache:
        return FeatureStore(list(encoded), key=key, hit=False)
    folder = cache_folder() / "tokens" / key
    if (batches := _read(folder)) is not None:
        return FeatureStore(batches, key=key, hit=True)
    return FeatureStore(_write(folder, encoded), key=key, hit=False)


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
    """Source files of the task's classes, of the modules of its package's kin that they import, and of this module."""
    files = {__name__: __file__}
    waiting = [cls.__module__ for cls in task.__mro__]
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


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def encode_checked(
    task: Task, rows: Sequence[Row], processor: Any, *, training: bool, place: Callable[[int], str]
) -> list[Features]:
    """`task.encode`, with DataError for rows that only encoding finds to be unfit (an image that is cut short), up to 20 at once.

    place: where a row stands, by its index into `rows`.
    """
    try:
        return task.encode(rows, processor, training=training)
    except RowError:
        problems = Problems()
        for index, row in enumerate(rows):
            try:
                task.encode([row], processor, training=training)
            except RowError as error:
                problems.add(Problem(message=error.message, place=place(index), key=error.column, hint=error.hint))
        problems.raise_if_any()
        raise


def _places(table: Table, start: int) -> Callable[[int], str]:
    return lambda index: table.place(start + index)


def _encoded(table: Table, task: Task, processor: Any, training: bool, progress: Progress | None) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(table), ROWS_PER_BATCH):
        rows = table.rows(np.arange(start, min(start + ROWS_PER_BATCH, len(table))))
        features = [
            dict(feature) for feature in encode_checked(task, rows, processor, training=training, place=_places(table, start))
        ]
        if len(features) != len(rows) and not all("row" in feature for feature in features):
            raise ValueError(f"{task.name}.encode gave {len(features)} features for {len(rows)} rows without saying `row`")
        for index, feature in enumerate(features):
            feature["example"] = start + feature.pop("row", index)
        if features:
            yield from_features(features)
        if progress is not None:
            progress(start + len(rows), len(table))


def _write(folder: Path, batches: Iterator[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Writes an entry aside and renames it; the manifest is written last, so that an entry without one is not whole."""
    with explained_cache_errors(folder.parent, WAY_OUT):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    writer = SegmentWriter(aside)
    try:
        for batch in batches:
            with explained_cache_errors(folder.parent, WAY_OUT):
                writer.write(batch)
        with explained_cache_errors(folder.parent, WAY_OUT):
            _write_manifest(aside, writer.finish())
            _replace(folder, aside)
            return _written(folder)
    finally:
        writer.abandon()
        shutil.rmtree(aside, ignore_errors=True)


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
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
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
