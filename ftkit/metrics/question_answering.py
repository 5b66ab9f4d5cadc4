"""Answers to questions, compared as the official scripts of SQuAD 1.1 and 2.0 do (Rajpurkar et al. 2016, 2018), on a scale of 0 to 1.

references: (n,), for each question a list of acceptable answers, empty where it has none. predictions: str (n,), '' for no answer.
Lower case; punctuation, English articles and surplus spaces do not count. The best of several acceptable answers counts. A question
without an answer scores 1 if none is predicted, else 0. Every metric is None where it has no question to count.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ftkit.metrics.base import MetricSpec

if TYPE_CHECKING:
    from numpy import ndarray

ARGUMENTS = {"references": "[str]", "predictions": "str"}

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

Compare = Callable[[Sequence[str], str], float]


def as_array(answers: Sequence[Sequence[str]]) -> ndarray:
    """Lists of acceptable answers as an array (n,) of lists, as the metrics take them."""
    import numpy as np

    array = np.empty(len(answers), dtype=object)
    for index, texts in enumerate(answers):
        array[index] = list(texts)
    return array


def normalized(text: str) -> str:
    """The answer without what does not count."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact(references: Sequence[str], prediction: str) -> float:
    """1 if the prediction is one of the acceptable answers of a question, else 0."""
    return float(normalized(prediction) in _golds(references))


def overlap_f1(references: Sequence[str], prediction: str) -> float:
    """F1 of the words of the prediction and of the acceptable answer that is most like it, counting repetitions."""
    words = normalized(prediction).split()
    return max(_word_f1(gold.split(), words) for gold in _golds(references))


def _golds(references: Sequence[str]) -> list[str]:
    """What is left of acceptable answers; the empty answer where nothing is."""
    return [gold for gold in (normalized(str(text)) for text in references) if gold] or [""]


def _word_f1(gold: list[str], words: list[str]) -> float:
    if not gold or not words:
        return float(gold == words)
    common = sum((Counter(gold) & Counter(words)).values())
    return 2 * common / (len(gold) + len(words))


def scores(compare: Compare, references: ndarray, predictions: ndarray) -> ndarray:
    """`exact` or `overlap_f1` of each question: float64 (n,)."""
    import numpy as np

    return np.array([compare(golds, str(text)) for golds, text in zip(references, predictions, strict=True)], np.float64)


def has_answer(references: ndarray) -> ndarray:
    """Whether each question has an acceptable answer: bool (n,)."""
    import numpy as np

    return np.array([len(golds) > 0 for golds in references], bool)


def _mean(compare: Compare, answered: bool | None) -> Callable[[ndarray, ndarray], float | None]:
    """Mean over all questions (None), or over those with (True) or without (False) an answer."""

    def compute(references: ndarray, predictions: ndarray) -> float | None:
        values = scores(compare, references, predictions)
        if answered is not None:
            values = values[has_answer(references) == answered]
        return float(values.mean()) if len(values) else None

    return compute


def by_kind(references: ndarray, predictions: ndarray) -> list[dict[str, Any]]:
    """Questions with and without an answer: how many (`support`), both metrics, and for how many no answer was predicted."""
    found = []
    kinds = has_answer(references)
    values = [scores(compare, references, predictions) for compare in (exact, overlap_f1)]
    for name, kind in (("with an answer", True), ("without an answer", False)):
        chosen = kinds == kind
        means = [float(value[chosen].mean()) if chosen.any() else None for value in values]
        unanswered = sum(not str(text) for text in predictions[chosen])
        entry = {"questions": name, "support": int(chosen.sum()), "exact_match": means[0], "f1": means[1]}
        found.append({**entry, "predicted_no_answer": unanswered})
    return found


def best_threshold(margins: ndarray, with_answer: ndarray, without_answer: ndarray) -> float:
    """The margin above which a question is best left without an answer.

    margins: float (n,), score of no answer minus that of the best answer. with_answer, without_answer: float (n,), what a question
    scores (F1, say) with its best answer and with none; n >= 1.
    Like find_best_thresh of the official script it finds the highest mean score; it puts the threshold in the middle between two
    margins, beyond all of them by 1, and of equally good ones takes the one nearest to 0.
    """
    import numpy as np

    order = np.argsort(margins, kind="stable")
    ordered, gains = margins[order], (with_answer - without_answer)[order]
    ends = np.flatnonzero(np.append(ordered[1:] > ordered[:-1], True))
    totals = np.concatenate([[0.0], np.cumsum(gains)[ends]])
    edges = np.concatenate([[ordered[0] - 2], ordered[ends], [ordered[-1] + 2]])
    candidates = (edges[:-1] + edges[1:]) / 2
    best = candidates[totals >= totals.max() - 1e-9]
    return float(best[np.abs(best).argmin()])


def _resampled(compare: Compare) -> Callable[[ndarray, ndarray], Callable[[ndarray], float | None]]:
    def prepare(references: ndarray, predictions: ndarray) -> Callable[[ndarray], float | None]:
        values = scores(compare, references, predictions)
        return lambda indices: float(values[indices].mean())

    return prepare


RESAMPLED = {"f1": _resampled(overlap_f1), "exact_match": _resampled(exact)}
"""For a metric, a function of its arrays that compares once and returns a fast function of question indices."""

_SPECS = [
    MetricSpec(
        name="f1", summary="Mean F1 of the words of answers.", direction="max", headline=True, compute=_mean(overlap_f1, None)
    ),
    MetricSpec(
        name="exact_match", summary="Share of exactly right answers.", direction="max", headline=True, compute=_mean(exact, None)
    ),
    MetricSpec(
        name="has_answer_f1", summary="f1 of the questions that have an answer.", direction="max", compute=_mean(overlap_f1, True)
    ),
    MetricSpec(
        name="has_answer_exact_match",
        summary="exact_match of the questions that have an answer.",
        direction="max",
        compute=_mean(exact, True),
    ),
    MetricSpec(
        name="no_answer_accuracy",
        summary="Share of the questions without an answer that got none.",
        direction="max",
        compute=_mean(exact, False),
    ),
]
METRICS = {spec.name: spec for spec in _SPECS}
