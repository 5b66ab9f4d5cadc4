"""From rows to record batches of features, a chunk at a time: in this process, and in others where there is much to do.

Chunks and what becomes of them are the same whoever encodes them, so that the result does not depend on the number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ftkit.data.feature_columns import from_features
from ftkit.data.pool import Pool
from ftkit.data.problems import Problems
from ftkit.data.table import Table
from ftkit.errors import Problem
from ftkit.tasks.base import Features, Row, RowError, Task

ROWS_AT_A_TIME = 1000
"""Rows of a chunk at most. Documents that are packed into blocks share them within a chunk."""

BYTES_AT_A_TIME = 16 * 2**20
"""Text of a chunk at most, but for a single row: tokens take ten times as much while they are Python numbers."""

FILES_AT_A_TIME = 50
"""The same where rows hold files: an image becomes a few hundred kilobytes of numbers."""

WORTH_SECONDS = 20.0
"""Seconds that encoding must still take in this process for others to be started; that takes them about three."""

FEWEST_SECONDS = 1.0
"""Seconds of encoding that tell how fast it is."""

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""


def encoded_batches(
    table: Table,
    task: Task,
    processor: Any,
    *,
    processor_key: str,
    training: bool,
    progress: Progress | None = None,
    num_workers: int = 1,
) -> Generator[pa.RecordBatch, None, None]:
    """The features of all rows in order. num_workers: processes that may take over, from 2 on. Close the iterator to end them early.

    Raises DataError for rows that the task cannot encode, FtkitError if a process was killed.
    """
    chunks = _chunks(table, FILES_AT_A_TIME if any(column.file for column in task.columns().values()) else ROWS_AT_A_TIME)
    pool: Pool | None = None
    done, seconds = 0, 0.0
    try:
        while done < len(table) and not (pool is not None and pool.ready()):
            if num_workers > 1 and _is_worth_it(seconds, done, len(table)):
                pool = Pool.for_task(task, processor, processor_key, training=training, count=num_workers)
                num_workers = 1
            mark, (start, done) = time.perf_counter(), next(chunks)
            rows = table.rows(np.arange(start, done))
            batch = encode_chunk(task, rows, processor, start=start, training=training, place=table.place)
            seconds += time.perf_counter() - mark
            if batch is not None:
                yield batch
            if progress is not None:
                progress(done, len(table))
        for batch, stop in pool.encode(table, chunks) if pool is not None and done < len(table) else ():
            if batch is not None:
                yield batch
            if progress is not None:
                progress(stop, len(table))
    finally:
        if pool is not None:
            pool.close()


def _chunks(table: Table, rows: int) -> Iterator[tuple[int, int]]:
    """The first row of each chunk, and the one after its last. They depend on nothing but the rows."""
    start = 0
    while start < len(table):
        stop = min(start + rows, len(table))
        fitting = int(np.searchsorted(np.cumsum(table.text_bytes(start, stop)), BYTES_AT_A_TIME, side="right"))
        stop = min(stop, start + max(1, fitting))
        yield start, stop
        start = stop


def _is_worth_it(seconds: float, done: int, total: int) -> bool:
    """Whether the rest would take long enough at the speed so far."""
    return seconds >= FEWEST_SECONDS and seconds * (total - done) > WORTH_SECONDS * done


def encode_chunk(
    task: Task, rows: Sequence[Row], processor: Any, *, start: int, training: bool, place: Callable[[int], str]
) -> pa.RecordBatch | None:
    """Features of rows that follow each other, each with its `example`; None if there are none.

    start: number of the first row. place: where a row stands, by its number.
    """
    found = encode_checked(task, rows, processor, training=training, place=lambda index: place(start + index))
    features = [dict(feature) for feature in found]
    if len(features) != len(rows) and not all("row" in feature for feature in features):
        raise ValueError(f"{task.name}.encode gave {len(features)} features for {len(rows)} rows without saying `row`")
    for index, feature in enumerate(features):
        feature["example"] = start + feature.pop("row", index)
    return from_features(features) if features else None


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
