"""Tags of words that form entities. Computed by seqeval.

references, predictions: (n,) sentences, each a list of IOB2 tags, of the same length in both.
An entity counts as right if its type, first and last word are. Entities are read as seqeval does by default, which is what conlleval
does: I- after O or after another type begins an entity. Averages run over the types that occur in references or predictions; a ratio
without a denominator counts as 0 there, and is None where neither has an entity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ftkit.metrics.base import MetricSpec

if TYPE_CHECKING:
    from numpy import ndarray

ARGUMENTS = {"references": "[str]", "predictions": "[str]"}


def as_array(sentences: Sequence[Sequence[str]]) -> ndarray:
    """Sentences as an array (n,) of lists, as the metrics take them."""
    import numpy as np

    array = np.empty(len(sentences), dtype=object)
    for index, sentence in enumerate(sentences):
        array[index] = list(sentence)
    return array


def accuracy(references: ndarray, predictions: ndarray) -> float | None:
    """Share of the words whose tag is right."""
    from seqeval.metrics import accuracy_score

    return float(accuracy_score(_lists(references), _lists(predictions))) if any(map(len, references)) else None


def per_type(references: ndarray, predictions: ndarray) -> list[dict[str, Any]]:
    """Precision, recall, F1 (None where undefined) and support of each type that occurs, sorted."""
    right, found, true = (Counter[str](), Counter[str](), Counter[str]())
    for reference, prediction in _entity_sets(references, predictions):
        for counts, entities in ((right, reference & prediction), (found, prediction), (true, reference)):
            counts.update(entity[0] for entity in entities)
    return [
        {
            "type": kind,
            "precision": right[kind] / found[kind] if found[kind] else None,
            "recall": right[kind] / true[kind] if true[kind] else None,
            "f1": 2 * right[kind] / (found[kind] + true[kind]),
            "support": true[kind],
        }
        for kind in sorted({*found, *true})
    ]


def _lists(sentences: ndarray) -> list[list[str]]:
    return [[str(tag) for tag in sentence] for sentence in sentences]


def _entity_sets(references: ndarray, predictions: ndarray) -> list[tuple[set[Any], set[Any]]]:
    """(type, first word, last word) of the entities of each sentence."""
    from seqeval.metrics.sequence_labeling import get_entities

    pairs = zip(_lists(references), _lists(predictions), strict=True)
    return [(set(get_entities(reference)), set(get_entities(prediction))) for reference, prediction in pairs]


def _averaged(index: int, average: str) -> Callable[[ndarray, ndarray], float | None]:
    def compute(references: ndarray, predictions: ndarray) -> float | None:
        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

        given = _lists(references), _lists(predictions)
        if not any(tag != "O" for sentences in given for sentence in sentences for tag in sentence):
            return None
        return float(precision_recall_fscore_support(*given, average=average, zero_division=0)[index])

    return compute


def _resampled_f1(references: ndarray, predictions: ndarray) -> Callable[[ndarray], float | None]:
    import numpy as np

    sets = _entity_sets(references, predictions)
    right = np.array([len(reference & prediction) for reference, prediction in sets])
    occurrences = np.array([len(reference) + len(prediction) for reference, prediction in sets])

    def compute(indices: ndarray) -> float | None:
        total = occurrences[indices].sum()
        return float(2 * right[indices].sum() / total) if total else None

    return compute


def _resampled_accuracy(references: ndarray, predictions: ndarray) -> Callable[[ndarray], float | None]:
    import numpy as np

    pairs = zip(_lists(references), _lists(predictions), strict=True)
    hits = np.array([sum(map(str.__eq__, reference, prediction)) for reference, prediction in pairs])
    lengths = np.array([len(sentence) for sentence in references])

    def compute(indices: ndarray) -> float | None:
        total = lengths[indices].sum()
        return float(hits[indices].sum() / total) if total else None

    return compute


RESAMPLED = {"f1": _resampled_f1, "accuracy": _resampled_accuracy}
"""For a metric, a function of its arrays that counts once and returns a fast function of sentence indices."""

_SPECS = [
    MetricSpec(name="f1", summary="F1 over all entities.", direction="max", headline=True, compute=_averaged(2, "micro")),
    MetricSpec(name="precision", summary="Right ones among predicted entities.", direction="max", compute=_averaged(0, "micro")),
    MetricSpec(name="recall", summary="Found ones among true entities.", direction="max", compute=_averaged(1, "micro")),
    MetricSpec(name="f1_macro", summary="Mean of the types' F1.", direction="max", compute=_averaged(2, "macro")),
    MetricSpec(name="precision_macro", summary="Mean of the types' precision.", direction="max", compute=_averaged(0, "macro")),
    MetricSpec(name="recall_macro", summary="Mean of the types' recall.", direction="max", compute=_averaged(1, "macro")),
    MetricSpec(name="f1_weighted", summary="Mean of the types' F1, by support.", direction="max", compute=_averaged(2, "weighted")),
    MetricSpec(
        name="precision_weighted",
        summary="Mean of the types' precision, by support.",
        direction="max",
        compute=_averaged(0, "weighted"),
    ),
    MetricSpec(
        name="recall_weighted", summary="Mean of the types' recall, by support.", direction="max", compute=_averaged(1, "weighted")
    ),
    MetricSpec(name="accuracy", summary="Share of words with the right tag.", direction="max", headline=True, compute=accuracy),
]
METRICS = {spec.name: spec for spec in _SPECS}
