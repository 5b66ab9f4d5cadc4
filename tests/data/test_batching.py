from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.data.batching import epoch_batches, eval_batches, rows_per_epoch

LENGTHS = st.lists(st.integers(1, 40), max_size=200).map(lambda values: np.array(values, dtype=np.int32))
MAX_TOKENS = st.sampled_from([None, 1, 17, 64, 1000])


def cost(batch: np.ndarray, lengths: np.ndarray) -> int:
    return len(batch) * int(lengths[batch].max())


def check_bounds(batches: list[np.ndarray], lengths: np.ndarray, batch_size: int, max_tokens: int | None) -> None:
    for batch in batches:
        assert batch.dtype == np.int64
        assert 1 <= len(batch) <= batch_size
        assert max_tokens is None or len(batch) == 1 or cost(batch, lengths) <= max_tokens


@given(LENGTHS, st.integers(1, 9), MAX_TOKENS, st.booleans(), st.integers(0, 3), st.sampled_from([None, 0.5, 1.0, 2.25]))
def test_epochs(
    lengths: np.ndarray, batch_size: int, max_tokens: int | None, bucket: bool, epoch: int, weight: float | None
) -> None:
    weights = None if weight is None else np.where(np.arange(len(lengths)) % 2, weight, 1.0)
    arguments: dict[str, Any] = {
        "seed": 5,
        "batch_size": batch_size,
        "max_tokens": max_tokens,
        "bucket": bucket,
        "weights": weights,
    }
    batches = epoch_batches(lengths, epoch=epoch, **arguments)
    check_bounds(batches, lengths, batch_size, max_tokens)
    again = epoch_batches(lengths.copy(), epoch=epoch, **arguments)
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in again]
    assert len(epoch_batches(lengths, epoch=epoch, **arguments)) == len(list(batches))
    counts = Counter(int(row) for batch in batches for row in batch)
    assert sum(counts.values()) == rows_per_epoch(len(lengths), weights)
    for row in range(len(lengths)):
        exact = 1.0 if weights is None else weights[row]
        assert int(exact) <= counts[row] <= -(-exact // 1)


@given(LENGTHS, st.integers(1, 9), MAX_TOKENS)
def test_evaluation(lengths: np.ndarray, batch_size: int, max_tokens: int | None) -> None:
    batches = eval_batches(lengths, batch_size=batch_size, max_tokens=max_tokens)
    check_bounds(batches, lengths, batch_size, max_tokens)
    order = [int(row) for batch in batches for row in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert lengths[order].tolist() == sorted(lengths.tolist(), reverse=True)


def flat(batches: list[np.ndarray]) -> list[int]:
    return np.concatenate(batches).tolist()


@pytest.mark.parametrize("bucket", [True, False])
def test_order_depends_on_seed_and_epoch(bucket: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    arguments: dict[str, Any] = {"batch_size": 8, "max_tokens": None, "bucket": bucket}
    orders = [flat(epoch_batches(lengths, seed=seed, epoch=epoch, **arguments)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_is_the_same_on_every_machine() -> None:
    assert flat(epoch_batches(np.arange(1, 9), seed=0, epoch=0, batch_size=2, max_tokens=None, bucket=False)) == PINNED


PINNED = [2, 4, 3, 6, 5, 0, 1, 7]


def test_buckets_save_padding_and_keep_batches_mixed() -> None:
    lengths = np.random.default_rng(0).integers(1, 512, 5000)
    arguments: dict[str, Any] = {"seed": 0, "epoch": 0, "batch_size": 16, "max_tokens": None}
    bucketed = epoch_batches(lengths, bucket=True, **arguments)
    plain = epoch_batches(lengths, bucket=False, **arguments)
    useful = int(lengths.sum())
    assert sum(cost(batch, lengths) for batch in bucketed) < 1.05 * useful
    assert sum(cost(batch, lengths) for batch in plain) > 1.5 * useful
    means = np.array([lengths[batch].mean() for batch in bucketed])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


def test_a_row_beyond_the_token_bound_is_alone() -> None:
    lengths = np.array([5, 50, 5, 5])
    batches = epoch_batches(lengths, seed=0, epoch=0, batch_size=4, max_tokens=15, bucket=True)
    assert sorted(sorted(batch.tolist()) for batch in batches) == [[0, 2, 3], [1]]


def test_fractional_weights_draw_a_fresh_share_each_epoch() -> None:
    lengths = np.ones(100, dtype=np.int32)
    weights = np.where(np.arange(100) < 40, 0.5, 2.0)
    arguments: dict[str, Any] = {"seed": 0, "batch_size": 7, "max_tokens": None, "bucket": False, "weights": weights}
    epochs = [Counter(flat(epoch_batches(lengths, epoch=epoch, **arguments))) for epoch in range(20)]
    assert {sum(counts.values()) for counts in epochs} == {20 + 120}
    assert all(counts[row] == 2 for counts in epochs for row in range(40, 100))
    halves = [frozenset(row for row in counts if row < 40) for counts in epochs]
    assert {len(half) for half in halves} == {20}
    assert len(set(halves)) > 10
    assert frozenset.union(*halves) == frozenset(range(40))


def test_forty_thousand_rows_are_batched_in_well_under_a_second() -> None:
    lengths = np.random.default_rng(0).integers(1, 512, 40_000)
    start = time.process_time()
    epoch_batches(lengths, seed=0, epoch=0, batch_size=32, max_tokens=4096, bucket=True)
    assert time.process_time() - start < 0.5
