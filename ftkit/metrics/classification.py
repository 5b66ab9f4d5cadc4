"""One label per example. Computed by scikit-learn.

references, predictions: int (n,), label ids. scores: float (n, labels), probabilities or logits.
Macro and weighted averages run over the labels that occur in references or predictions (scikit-learn's default): a label that is
absent from a split does not pull its average down, and perfect predictions score 1. A ratio without a denominator counts as 0 there.
Every metric is None for no examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ftkit.metrics.base import MetricSpec

if TYPE_CHECKING:
    from numpy import ndarray

ARGUMENTS = {"references": "int", "predictions": "int", "scores": "[float]"}


def accuracy(references: ndarray, predictions: ndarray) -> float | None:
    """Share of the examples whose label is right."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references, predictions)) if len(references) else None


def matthews_correlation(references: ndarray, predictions: ndarray) -> float | None:
    """Matthews correlation (Gorodkin 2004 for several labels), -1 to 1; None where all references are the same label."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions)) if len(set(references.tolist())) > 1 else None


def auroc(references: ndarray, scores: ndarray) -> float | None:
    """Area under the ROC curve: of the second label where there are two, else the mean over labels, one against the rest.

    The mean runs over the labels with both positive and negative examples; None where there is none.
    """
    labels = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    return mean_auroc((references == label, scores[:, label]) for label in labels)


def mean_auroc(pairs: Iterable[tuple[ndarray, ndarray]]) -> float | None:
    """Mean area under the ROC curve over (is positive, score) pairs of arrays (n,) that hold both kinds; None where no pair does."""
    from sklearn.metrics import roc_auc_score

    areas = [float(roc_auc_score(positive, score)) for positive, score in pairs if 0 < positive.sum() < len(positive)]
    return sum(areas) / len(areas) if areas else None


def _averaged(index: int, average: str) -> Callable[[ndarray, ndarray], float | None]:
    def compute(references: ndarray, predictions: ndarray) -> float | None:
        from sklearn.metrics import precision_recall_fscore_support

        if not len(references):
            return None
        return float(precision_recall_fscore_support(references, predictions, average=average, zero_division=0)[index])

    return compute


def as_indicators(labels: ndarray) -> ndarray:
    """0/1 (n, labels) with at least two columns: scikit-learn takes one column for the classes 0 and 1. (n,) stays as it is."""
    import numpy as np

    return np.pad(labels, ((0, 0), (0, 1))) if labels.ndim == 2 and labels.shape[1] == 1 else labels


def per_label(references: ndarray, predictions: ndarray, label_count: int) -> list[dict[str, Any]]:
    """Precision, recall, F1 (None where undefined) and support of each of all labels, for at least one example.

    Also takes 0/1 arrays (n, labels).
    """
    import numpy as np
    from sklearn.metrics import precision_recall_fscore_support

    labels = list(range(label_count))
    given = as_indicators(references), as_indicators(predictions)
    columns = precision_recall_fscore_support(*given, labels=labels, average=None, zero_division=np.nan)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {
            "precision": None if np.isnan(precision) else precision,
            "recall": None if np.isnan(recall) else recall,
            "f1": None if np.isnan(f1) else f1,
            "support": int(support),
        }
        for precision, recall, f1, support in rows
    ]


def confusion_matrix(references: ndarray, predictions: ndarray, label_count: int) -> list[list[int]]:
    """Counts over all labels: row = reference, column = prediction."""
    from sklearn.metrics import confusion_matrix as matrix

    return matrix(references, predictions, labels=list(range(label_count))).tolist()


def _resampled_accuracy(references: ndarray, predictions: ndarray) -> Callable[[ndarray], float | None]:
    hits = references == predictions
    return lambda indices: float(hits[indices].mean())


def _resampled_f1_macro(references: ndarray, predictions: ndarray) -> Callable[[ndarray], float | None]:
    import numpy as np

    width = int(max(references.max(), predictions.max())) + 1
    cells = references * width + predictions

    def compute(indices: ndarray) -> float | None:
        matrix = np.bincount(cells[indices], minlength=width * width).reshape(width, width)
        occurrences = matrix.sum(axis=0) + matrix.sum(axis=1)
        occurring = occurrences > 0
        return float((2 * matrix.diagonal()[occurring] / occurrences[occurring]).mean())

    return compute


RESAMPLED = {"accuracy": _resampled_accuracy, "f1_macro": _resampled_f1_macro}
"""For a metric, a function of its arrays that returns a fast function of example indices; scikit-learn takes milliseconds a call."""

_SPECS = [
    MetricSpec(name="accuracy", summary="Share of right labels.", direction="max", headline=True, compute=accuracy),
    MetricSpec(name="f1_macro", summary="Mean of the labels' F1.", direction="max", headline=True, compute=_averaged(2, "macro")),
    MetricSpec(name="f1_micro", summary="F1 over all decisions; equals accuracy.", direction="max", compute=_averaged(2, "micro")),
    MetricSpec(
        name="f1_weighted", summary="Mean of the labels' F1, by support.", direction="max", compute=_averaged(2, "weighted")
    ),
    MetricSpec(name="precision_macro", summary="Mean of the labels' precision.", direction="max", compute=_averaged(0, "macro")),
    MetricSpec(name="precision_weighted", summary="The same, by support.", direction="max", compute=_averaged(0, "weighted")),
    MetricSpec(name="recall_macro", summary="Mean of the labels' recall.", direction="max", compute=_averaged(1, "macro")),
    MetricSpec(name="recall_weighted", summary="The same, by support.", direction="max", compute=_averaged(1, "weighted")),
    MetricSpec(name="matthews_correlation", summary="Correlation, -1 to 1.", direction="max", compute=matthews_correlation),
    MetricSpec(name="auroc", summary="Area under the ROC curve, one label against the rest.", direction="max", compute=auroc),
]
METRICS = {spec.name: spec for spec in _SPECS}
