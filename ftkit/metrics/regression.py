"""A number per example. references, predictions: float (n,). Every metric is None for no examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ftkit.metrics.base import MetricSpec

if TYPE_CHECKING:
    from numpy import ndarray

ARGUMENTS = {"references": "float", "predictions": "float"}


def mse(references: ndarray, predictions: ndarray) -> float | None:
    """Mean squared error."""
    from sklearn.metrics import mean_squared_error

    return float(mean_squared_error(references, predictions)) if len(references) else None


def mae(references: ndarray, predictions: ndarray) -> float | None:
    """Mean absolute error."""
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(references, predictions)) if len(references) else None


def r2(references: ndarray, predictions: ndarray) -> float | None:
    """Share of the variance explained; None where the references are constant or fewer than two."""
    from sklearn.metrics import r2_score

    return float(r2_score(references, predictions)) if len(references) > 1 and not _constant(references) else None


def pearson(references: ndarray, predictions: ndarray) -> float | None:
    """Linear correlation; None where either side is constant or there are fewer than two examples."""
    import numpy as np

    if len(references) < 2 or _constant(references) or _constant(predictions):
        return None
    left, right = (np.asarray(side, np.float64) - np.mean(side, dtype=np.float64) for side in (references, predictions))
    return float(np.clip(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)), -1.0, 1.0))


def spearman(references: ndarray, predictions: ndarray) -> float | None:
    """Rank correlation (ties share their mean rank); None where either side is constant or there are fewer than two examples."""
    from scipy.stats import rankdata

    return pearson(rankdata(references), rankdata(predictions))


def _constant(values: ndarray) -> bool:
    """Whether the spread of `values` is no more than rounding; the bound is scipy's for a nearly constant input."""
    import numpy as np

    values = np.asarray(values, np.float64)
    mean = values.mean()
    return bool(np.linalg.norm(values - mean) <= 1e-13 * abs(mean))


_SPECS = [
    MetricSpec(name="mse", summary="Mean squared error.", direction="min", headline=True, compute=mse),
    MetricSpec(name="pearson", summary="Linear correlation.", direction="max", headline=True, compute=pearson),
    MetricSpec(name="spearman", summary="Rank correlation.", direction="max", headline=True, compute=spearman),
    MetricSpec(name="mae", summary="Mean absolute error.", direction="min", compute=mae),
    MetricSpec(name="r2", summary="Share of the variance explained.", direction="max", compute=r2),
]
METRICS = {spec.name: spec for spec in _SPECS}

RESAMPLED: dict[str, Callable] = {}
"""None is slow enough on resampled examples to need another way."""
