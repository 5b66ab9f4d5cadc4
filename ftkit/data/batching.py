"""Which rows make up which batch: pure functions of lengths, seed and epoch. No torch.

B = rows of a batch, L = its longest row in tokens; a batch costs B * L tokens with padding.
"""

from __future__ import annotations

import numpy as np

BATCHES_PER_CHUNK = 50
"""Rows of this many batches are sorted by length together: less padding than random batches, and still a random order."""


def epoch_batches(
    lengths: np.ndarray,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    max_tokens: int | None,
    bucket: bool,
    weights: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Batches of one training epoch: arrays of int64 indices into `lengths`, at most `batch_size` each.

    lengths: tokens of each row (rows,). max_tokens: bound on B * L; a longer row is a batch of its own.
    bucket: put rows of similar length together. weights: how often each row appears (rows,): 2 is twice, 0.5 is a fresh half of the
    rows of that weight in each epoch; the number of rows is the same in all epochs.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = generator.permutation(_repeated(len(lengths), weights, generator))
    if not bucket:
        return _cut(order, lengths, batch_size, max_tokens)
    chunk = batch_size * BATCHES_PER_CHUNK
    batches: list[np.ndarray] = []
    for start in range(0, len(order), chunk):
        rows = order[start : start + chunk]
        batches += _cut(rows[np.argsort(-lengths[rows].astype(np.int64), kind="stable")], lengths, batch_size, max_tokens)
    return [batches[index] for index in generator.permutation(len(batches))]


def batches_per_epoch(
    lengths: np.ndarray,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    max_tokens: int | None,
    bucket: bool,
    weights: np.ndarray | None = None,
) -> int:
    """Exactly `len(epoch_batches(...))` for the same arguments. Without `max_tokens` it is the same for all epochs."""
    if max_tokens is None:
        return -(-rows_per_epoch(len(lengths), weights) // batch_size)
    return len(
        epoch_batches(lengths, seed=seed, epoch=epoch, batch_size=batch_size, max_tokens=max_tokens, bucket=bucket, weights=weights)
    )


def rows_per_epoch(rows: int, weights: np.ndarray | None = None) -> int:
    """Rows seen in one epoch, the same for all epochs."""
    if weights is None:
        return rows
    return sum(int(weight) * count + _share(weight, count) for weight, count in _counts(weights))


def eval_batches(lengths: np.ndarray, *, batch_size: int, max_tokens: int | None) -> list[np.ndarray]:
    """Batches (int64 indices) that hold each feature exactly once, longest first, so that memory runs out at once or never."""
    return _cut(np.argsort(-lengths.astype(np.int64), kind="stable"), lengths, batch_size, max_tokens)


def _repeated(rows: int, weights: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
    """Row indices, each as often as its weight says."""
    if weights is None:
        return np.arange(rows, dtype=np.int64)
    parts: list[np.ndarray] = []
    for weight, count in _counts(weights):
        members = np.flatnonzero(weights == weight).astype(np.int64)
        parts.append(np.repeat(members, int(weight)))
        parts.append(generator.permutation(members)[: _share(weight, count)])
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _counts(weights: np.ndarray) -> list[tuple[float, int]]:
    values, counts = np.unique(weights, return_counts=True)
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def _share(weight: float, count: int) -> int:
    """Rows drawn for the part of a weight after the point."""
    return round((weight - int(weight)) * count)


def _cut(order: np.ndarray, lengths: np.ndarray, batch_size: int, max_tokens: int | None) -> list[np.ndarray]:
    if max_tokens is None:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    batches: list[np.ndarray] = []
    start = longest = 0
    for end, length in enumerate(lengths[order].tolist()):
        grown = max(longest, length)
        count = end - start + 1
        if count > 1 and (count > batch_size or count * grown > max_tokens):
            batches.append(order[start:end])
            start, grown = end, length
        longest = grown
    if start < len(order):
        batches.append(order[start:])
    return batches
