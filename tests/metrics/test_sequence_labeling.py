from __future__ import annotations

import random
import time

import numpy as np
import pytest
from seqeval.metrics import accuracy_score, classification_report
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

from ftkit.metrics.base import LOSS
from ftkit.metrics.catalog import compute_metric
from ftkit.metrics.interchange import as_evaluate_metric
from ftkit.metrics.intervals import bootstrap_interval, headline_intervals
from ftkit.metrics.sequence_labeling import METRICS, RESAMPLED, as_array, per_type

TAGS = ["O", "O", "O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in ("PER", "LOC", "creative-work"))]


def random_sentences(seed: int, count: int = 60) -> tuple[list[list[str]], list[list[str]]]:
    """References, and predictions that are right now and then; both break the rules of IOB2."""
    generator = random.Random(seed)
    references = [generator.choices(TAGS, k=generator.randrange(1, 15)) for _ in range(count)]
    predictions = [[tag if generator.random() < 0.6 else generator.choice(TAGS) for tag in tags] for tags in references]
    return references, predictions


def arrays(references: list[list[str]], predictions: list[list[str]]) -> dict[str, np.ndarray]:
    return {"references": as_array(references), "predictions": as_array(predictions)}


@pytest.mark.parametrize("seed", range(5))
def test_the_numbers_are_seqevals(seed: int) -> None:
    given = random_sentences(seed)
    for average, suffix in (("micro", ""), ("macro", "_macro"), ("weighted", "_weighted")):
        expected = precision_recall_fscore_support(*given, average=average, zero_division=0)[:3]
        found = [compute_metric(METRICS[name + suffix], arrays(*given)) for name in ("precision", "recall", "f1")]
        assert found == pytest.approx(expected)
        assert 0 < min(expected) < 1
    assert compute_metric(METRICS["accuracy"], arrays(*given)) == pytest.approx(accuracy_score(*given))
    report = classification_report(*given, output_dict=True, zero_division=0)
    table = {entry["type"]: entry for entry in per_type(**arrays(*given))}
    assert list(table) == ["LOC", "PER", "creative-work"]
    for kind, entry in table.items():
        assert entry["precision"] == pytest.approx(report[kind]["precision"])
        assert entry["recall"] == pytest.approx(report[kind]["recall"])
        assert entry["f1"] == pytest.approx(report[kind]["f1-score"])
        assert entry["support"] == report[kind]["support"]


@pytest.mark.parametrize("seed", range(3))
def test_fast_versions_are_the_metrics(seed: int) -> None:
    given = arrays(*random_sentences(seed))
    generator = np.random.default_rng(seed)
    for name, resampled in RESAMPLED.items():
        compute = resampled(**given)
        for _ in range(20):
            indices = generator.integers(0, 60, 60)
            drawn = {key: array[indices] for key, array in given.items()}
            assert compute(indices) == pytest.approx(compute_metric(METRICS[name], drawn))


def test_intervals_of_many_sentences_are_fast() -> None:
    given = arrays(*random_sentences(0, count=3000))
    start = time.perf_counter()
    intervals = headline_intervals(list(METRICS.values()), given, RESAMPLED)
    assert time.perf_counter() - start < 5
    assert set(intervals) == {"f1", "accuracy"}
    for name, (low, high) in intervals.items():
        assert low < float(compute_metric(METRICS[name], given) or 0) < high


def test_perfect_and_hopeless_predictions() -> None:
    references = [["B-PER", "I-PER", "O"], ["O", "B-LOC", "O"]]
    perfect, hopeless = arrays(references, references), arrays(references, [["O"] * 3] * 2)
    assert {compute_metric(spec, perfect) for spec in METRICS.values()} == {1.0}
    assert {compute_metric(METRICS[name], hopeless) for name in METRICS if name != "accuracy"} == {0.0}
    assert per_type(**hopeless)[0] == {"type": "LOC", "precision": None, "recall": 0.0, "f1": 0.0, "support": 1}


def test_nothing_to_find_is_undefined() -> None:
    outside = arrays([["O", "O"], ["O", "O"]], [["O", "O"], ["O", "O"]])
    for name in METRICS:
        assert compute_metric(METRICS[name], outside) == (1.0 if name == "accuracy" else None)
        assert compute_metric(METRICS[name], arrays([], [])) is None
    assert per_type(**outside) == []
    assert bootstrap_interval(RESAMPLED["f1"](**outside), 2) is None


def test_false_alarms_alone_count_as_zero() -> None:
    given = arrays([["O", "O"]], [["B-PER", "O"]])
    assert {compute_metric(METRICS[name], given) for name in METRICS if name != "accuracy"} == {0.0}


def test_for_code_that_expects_evaluate() -> None:
    references, predictions = random_sentences(1)
    metric = as_evaluate_metric("f1", "sequence_labeling")
    found = metric.compute(references=references, predictions=predictions)
    assert found == {"f1": pytest.approx(compute_metric(METRICS["f1"], arrays(references, predictions)))}
    assert LOSS.name not in METRICS
