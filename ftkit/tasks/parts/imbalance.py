"""Labels that are not equally frequent: weights, focal loss, decision thresholds.

Weights and focal loss are for training; evaluation always reports the plain loss.
    single label   L = w_y (1 - p_y)^g (-log p_y)                                                with label smoothing inside the logarithm
    several        L = mean over labels of  w_c^[y_c = 1] (1 - p_t)^g (-log p_t),  p_t = p_c where y_c = 1, else 1 - p_c
Source of the focal loss: Lin et al. 2017, https://arxiv.org/abs/1708.02002
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

POSITIVES_FOR_OWN_THRESHOLD = 10
"""A label with fewer positive validation rows shares the others' threshold: its own would follow single rows."""

SMALLEST_MODULATION = 1e-6
"""Lower bound of 1 - p_t: the derivative of its power has no limit at 0 for g < 1."""


def label_weights(
    choice: Literal["balanced"] | Mapping[str, float], names: Sequence[str], counts: Mapping[str, int], rows: int, *, several: bool
) -> list[float]:
    """The weight of each label.

    balanced: rows / (labels * count) (King & Zeng 2001; scikit-learn's formula), with `several` labels a row (rows - count) / count, so
    that positives and negatives of a label weigh the same. A mapping: as given, 1 for labels not named. Weights of single labels are
    scaled so that the mean over the training rows is 1, which keeps the meaning of the learning rate. A label that no training row
    has weighs 1.
    """
    if choice != "balanced":
        raw = [float(choice.get(name, 1.0)) for name in names]
    elif several:
        return [(rows - counts[name]) / counts[name] if 0 < counts.get(name, 0) < rows else 1.0 for name in names]
    else:
        raw = [rows / (len(names) * counts[name]) if counts.get(name) else 1.0 for name in names]
    if several:
        return raw
    mean = sum(weight * counts.get(name, 0) for weight, name in zip(raw, names, strict=True)) / max(1, rows)
    return [weight / mean for weight in raw] if mean else raw


def log_odds(counts: Mapping[str, int], names: Sequence[str], rows: int, weights: Sequence[float] | None) -> list[float]:
    """How likely each of several labels is before anything is read of a row: log(w (count + 1/2) / (rows - count + 1/2)), at its weight w.

    As the bias that an output begins with (Lin et al. 2017, "Focal Loss for Dense Object Detection", section 4.1,
    https://arxiv.org/abs/1708.02002): where most labels are rare, the first steps would else only push all outputs down, and push the
    representation of all rows together with them.
    """
    return [
        math.log(weight * (counts.get(name, 0) + 0.5) / (rows - counts.get(name, 0) + 0.5))
        for name, weight in zip(names, weights or [1.0] * len(names), strict=True)
    ]


def single_label_loss(logits: Tensor, labels: Tensor, weights: Tensor | None, gamma: float, label_smoothing: float) -> Tensor:
    """Summed loss. logits: float32 (B, labels); labels: int64 (B,); weights: float32 (labels,)."""
    from torch.nn import functional

    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    if gamma:
        right = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
        losses = losses * (1 - right).clamp_min(SMALLEST_MODULATION) ** gamma
    return (losses if weights is None else losses * weights[labels]).sum()


def several_labels_loss(logits: Tensor, labels: Tensor, weights: Tensor | None, gamma: float) -> Tensor:
    """Summed over rows, averaged over labels. logits, labels: float32 (B, labels); weights: float32 (labels,), of positives."""
    from torch.nn import functional

    losses = functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none")
    if gamma:
        probabilities = logits.sigmoid()
        right = probabilities * labels + (1 - probabilities) * (1 - labels)
        losses = losses * (1 - right).clamp_min(SMALLEST_MODULATION) ** gamma
    return losses.sum() / logits.shape[1]


def tuned_thresholds(scores: ndarray, references: ndarray) -> list[float]:
    """The decision threshold of each label that gives the best F1 on these rows.

    scores: float (n, labels), probabilities; references: int (n, labels). A label with fewer than 10 positive rows gets the threshold
    that is best for the micro F1 of all labels. Of equally good thresholds the one in the widest gap between scores is taken.
    """
    shared = _best_threshold(scores.ravel(), references.ravel())
    found = []
    for label in range(scores.shape[1]):
        own = int(references[:, label].sum()) >= POSITIVES_FOR_OWN_THRESHOLD
        found.append(_best_threshold(scores[:, label], references[:, label]) if own else shared)
    return found


def _best_threshold(scores: ndarray, references: ndarray) -> float:
    """0.5 where there is nothing to find."""
    import numpy as np

    if not references.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(references[order])
    taken = np.arange(1, len(ranked) + 1)
    f1 = 2 * hits / (taken + int(references.sum()))
    # A threshold lies between two different scores.
    following = np.append(ranked[1:], 0.0)
    f1[ranked == following] = -1.0
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    widest = best[np.argmax(ranked[best] - following[best])]
    return float((ranked[widest] + following[widest]) / 2)
