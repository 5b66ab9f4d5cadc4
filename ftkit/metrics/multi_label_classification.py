"""Any number of labels per example. Computed by scikit-learn.

references, predictions: 0/1 (n, labels). scores: float (n, labels), a probability or logit for each label by itself.
Averages run over the labels that occur in references or predictions (as for one label per example; scikit-learn by default counts the
others as 0 here); None where none occurs. Every metric is None for no examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ftkit.metrics.base import MetricSpec
from ftkit.metrics.classification import accuracy, as_indicators, mean_auroc

if TYPE_CHECKING:
    from numpy import ndarray

ARGUMENTS = {"references": "[int]", "predictions": "[int]", "scores": "[float]"}


def auroc_macro(references: ndarray, scores: ndarray) -> float | None:
    """Mean area under the ROC curve over the labels with both positive and negative examples; None where there is none."""
    return mean_auroc((references[:, label] == 1, scores[:, label]) for label in range(scores.shape[1]))


def label_ranking_average_precision(references: ndarray, scores: ndarray) -> float | None:
    """Mean share of true labels among those ranked as high or higher (Schapire & Singer 2000); rows with no or all labels count 1."""
    from sklearn.metrics import label_ranking_average_precision_score

    return float(label_ranking_average_precision_score(references, scores)) if len(references) else None


def _averaged(index: int, average: str) -> Callable[[ndarray, ndarray], float | None]:
    def compute(references: ndarray, predictions: ndarray) -> float | None:
        import numpy as np
        from sklearn.metrics import precision_recall_fscore_support

        if not len(references):
            return None
        occurring = np.flatnonzero(references.any(axis=0) | predictions.any(axis=0)).tolist()
        if not occurring:
            return None
        given = as_indicators(references), as_indicators(predictions)
        results = precision_recall_fscore_support(*given, labels=occurring, average=average, zero_division=0)
        return float(results[index])

    return compute


def _resampled_f1_micro(references: ndarray, predictions: ndarray) -> Callable[[ndarray], float | None]:
    hits = (references & predictions).sum(axis=1)
    occurrences = references.sum(axis=1) + predictions.sum(axis=1)

    def compute(indices: ndarray) -> float | None:
        total = occurrences[indices].sum()
        return float(2 * hits[indices].sum() / total) if total else None

    return compute


def _resampled_f1_macro(references: ndarray, predictions: ndarray) -> Callable[[ndarray], float | None]:
    import numpy as np

    count = len(references)
    # float32 keeps whole numbers exact up to 2**24, more examples than a split evaluated this way has.
    hits = (references & predictions).astype(np.float32)
    occurrences = (references + predictions).astype(np.float32)

    def compute(indices: ndarray) -> float | None:
        weights = np.bincount(indices, minlength=count).astype(np.float32)
        totals = weights @ occurrences
        occurring = totals > 0
        return float((2 * (weights @ hits)[occurring] / totals[occurring]).mean(dtype=np.float64)) if occurring.any() else None

    return compute


RESAMPLED = {"f1_micro": _resampled_f1_micro, "f1_macro": _resampled_f1_macro}
"""For a metric, a function of its arrays that returns a fast function of example indices."""

_SPECS = [
    MetricSpec(name="f1_micro", summary="F1 over all decisions.", direction="max", headline=True, compute=_averaged(2, "micro")),
    MetricSpec(name="f1_macro", summary="Mean of the labels' F1.", direction="max", headline=True, compute=_averaged(2, "macro")),
    MetricSpec(
        name="f1_weighted", summary="Mean of the labels' F1, by support.", direction="max", compute=_averaged(2, "weighted")
    ),
    MetricSpec(
        name="precision_micro", summary="Right ones among predicted labels.", direction="max", compute=_averaged(0, "micro")
    ),
    MetricSpec(name="precision_macro", summary="Mean of the labels' precision.", direction="max", compute=_averaged(0, "macro")),
    MetricSpec(name="recall_micro", summary="Found ones among true labels.", direction="max", compute=_averaged(1, "micro")),
    MetricSpec(name="recall_macro", summary="Mean of the labels' recall.", direction="max", compute=_averaged(1, "macro")),
    MetricSpec(name="accuracy", summary="Share of examples with exactly the right labels.", direction="max", compute=accuracy),
    MetricSpec(name="auroc_macro", summary="Mean area under the labels' ROC curves.", direction="max", compute=auroc_macro),
    MetricSpec(
        name="label_ranking_average_precision",
        summary="How high the true labels rank.",
        direction="max",
        compute=label_ranking_average_precision,
    ),
]
METRICS = {spec.name: spec for spec in _SPECS}
