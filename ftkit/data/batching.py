"""Which rows make up which batch: pure functions of lengths, seed and epoch. No torch.

B = rows of a batch, L = its longest row in tokens; a batch costs B * L tokens with padding.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeAlias, overload

import numpy as np

from ftkit.data.digests import index_type

BATCHES_PER_CHUNK = 50
"""Rows of this many batches are sorted by length together: less padding than random batches, and still a random order."""

NUMBERS_AT_A_TIME = 2**16

_Cut: TypeAlias = "tuple[np.ndarray, np.ndarray, np.ndarray | None]"


class BatchList(Sequence[np.ndarray]):
    """The batches of an epoch, each an array of int64 row indices: an array for all rows and one for where batches begin.

    make: gives the rows in order, where batches begin and end in them, and the order of the batches (None: as they are); called when
    a batch is asked for. count: the number of batches, where it is known before.
    """

    def __init__(self, make: Callable[[], _Cut], count: int | None = None) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return len(self._cut[1]) - 1 if self._count is None else self._count

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        rows, bounds, order = self._cut
        number = range(len(self))[index]
        place = number if order is None else int(order[number])
        return rows[bounds[place] : bounds[place + 1]].astype(np.int64)

    @cached_property
    def _cut(self) -> _Cut:
        return self._make()


def epoch_batches(
    lengths: np.ndarray,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    max_tokens: int | None,
    bucket: bool,
    weights: np.ndarray | None = None,
) -> BatchList:
    """Batches of one training epoch: indices into `lengths`, at most `batch_size` each.

    lengths: tokens of each row (rows,). max_tokens: bound on B * L; a longer row is a batch of its own.
    bucket: put rows of similar length together. weights: how often each row appears (rows,): 2 is twice, 0.5 is a fresh half of the
    rows of that weight in each epoch; the number of rows is the same in all epochs.
    """

    def make() -> _Cut:
        generator = np.random.Generator(np.random.PCG64([seed, epoch]))
        rows = generator.permutation(_repeated(len(lengths), weights, generator))
        if not bucket:
            return rows, _bounds(lengths[rows], batch_size, max_tokens), None
        bounds, chunk = [np.zeros(1, np.int64)], batch_size * BATCHES_PER_CHUNK
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            part[:] = part[np.argsort(-lengths[part].astype(np.int64), kind="stable")]
            bounds.append(start + _bounds(lengths[part], batch_size, max_tokens)[1:])
        ends = np.concatenate(bounds)
        return rows, ends, generator.permutation(len(ends) - 1)

    return BatchList(make, None if max_tokens else -(-rows_per_epoch(len(lengths), weights) // batch_size))


def rows_per_epoch(rows: int, weights: np.ndarray | None = None) -> int:
    """Rows seen in one epoch, the same for all epochs."""
    if weights is None:
        return rows
    return sum(int(weight) * count + _share(weight, count) for weight, count in _counts(weights))


def eval_batches(lengths: np.ndarray, *, batch_size: int, max_tokens: int | None) -> BatchList:
    """Batches that hold each feature exactly once, longest first, so that memory runs out at once or never."""

    def make() -> _Cut:
        rows = np.argsort(-lengths.astype(np.int64), kind="stable").astype(index_type(len(lengths)))
        return rows, _bounds(lengths[rows], batch_size, max_tokens), None

    return BatchList(make)


def _repeated(rows: int, weights: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
    """Row indices, each as often as its weight says."""
    kind = index_type(rows)
    if weights is None:
        return np.arange(rows, dtype=kind)
    parts: list[np.ndarray] = []
    for weight, count in _counts(weights):
        members = np.flatnonzero(weights == weight).astype(kind)
        parts.append(np.repeat(members, int(weight)))
        parts.append(generator.permutation(members)[: _share(weight, count)])
    return np.concatenate(parts) if parts else np.empty(0, dtype=kind)


def _counts(weights: np.ndarray) -> list[tuple[float, int]]:
    values, counts = np.unique(weights, return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def _share(weight: float, count: int) -> int:
    """Rows drawn for the part of a weight after the point."""
    return round((weight - int(weight)) * count)


def _bounds(lengths: np.ndarray, batch_size: int, max_tokens: int | None) -> np.ndarray:
    """Where batches of rows in this order begin, and the end: int64 (batches + 1,). lengths: of the rows in their order."""
    if max_tokens is None:
        return np.append(np.arange(0, len(lengths), batch_size, dtype=np.int64), len(lengths))
    starts = array("q")
    start = longest = 0
    for place, length in enumerate(_numbers(lengths)):
        grown = max(longest, length)
        count = place - start + 1
        if count > 1 and (count > batch_size or count * grown > max_tokens):
            starts.append(start)
            start, grown = place, length
        longest = grown
    if len(lengths):
        starts.append(start)
    return np.append(np.array(starts, dtype=np.int64), len(lengths))


def _numbers(values: np.ndarray) -> Iterator[int]:
    """The values one after the other, without a list of all."""
    for start in range(0, len(values), NUMBERS_AT_A_TIME):
        yield from values[start : start + NUMBERS_AT_A_TIME].tolist()
