"""Percentile bootstrap intervals over examples (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).

They say how far a metric would move with another draw of test examples; they do not cover the seeds of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ftkit.metrics.base import MetricSpec
from ftkit.metrics.catalog import compute_metric

if TYPE_CHECKING:
    from numpy import ndarray

Resampled = Callable[["ndarray"], "float | None"]
"""A metric as a function of example indices, int64 (n,)."""


def bootstrap_interval(
    compute: Resampled, n: int, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """The (low, high) quantiles of a metric over `resamples` draws of `n` example indices with replacement.

    Draws on which the metric is undefined are left out. None for fewer than two examples, or where most draws are undefined.
    The draws depend on `n`, `resamples` and `seed` alone, so that intervals of several metrics share them.
    """
    import numpy as np

    if n < 2:
        return None
    generator = np.random.default_rng(seed)
    values = [compute(generator.integers(0, n, n)) for _ in range(resamples)]
    defined = [value for value in values if value is not None]
    if len(defined) * 2 <= resamples:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def headline_intervals(
    specs: Sequence[MetricSpec], arrays: Mapping[str, ndarray], resampled: Mapping[str, Callable[..., Resampled]]
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the headline metrics, where defined.

    arrays: as the metrics take them, first axis: examples. resampled: the family's fast versions of `references` and `predictions`.
    """
    n = len(next(iter(arrays.values()))) if arrays else 0
    found = {}
    for spec in specs:
        if not spec.headline or n < 2:
            continue
        interval = bootstrap_interval(_by_indices(spec, arrays, resampled), n)
        if interval is not None:
            found[spec.name] = interval
    return found


def _by_indices(spec: MetricSpec, arrays: Mapping[str, ndarray], resampled: Mapping[str, Callable[..., Resampled]]) -> Resampled:
    if spec.name in resampled:
        return resampled[spec.name](arrays["references"], arrays["predictions"])
    return lambda indices: compute_metric(spec, {name: array[indices] for name, array in arrays.items()})
