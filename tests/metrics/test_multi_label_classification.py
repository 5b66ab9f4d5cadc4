from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from ftkit.metrics.catalog import compute_metric
from ftkit.metrics.classification import per_label
from ftkit.metrics.multi_label_classification import METRICS, RESAMPLED


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    scores = generator.random((150, 5))
    references = (scores + generator.normal(0, 0.3, scores.shape) > 0.6).astype(np.int64)
    return {"references": references, "predictions": (scores >= 0.5).astype(np.int64), "scores": scores}


def value(name: str, **arrays: np.ndarray) -> float | None:
    return compute_metric(METRICS[name], arrays)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_averages_are_those_of_scikit_learn(arrays: dict[str, np.ndarray], average: str) -> None:
    given = arrays["references"], arrays["predictions"]
    assert value(f"f1_{average}", **arrays) == pytest.approx(sk.f1_score(*given, average=average))
    assert value(f"precision_{average}", **arrays) == pytest.approx(sk.precision_score(*given, average=average))
    assert value(f"recall_{average}", **arrays) == pytest.approx(sk.recall_score(*given, average=average))


def test_the_rest_is_that_of_scikit_learn(arrays: dict[str, np.ndarray]) -> None:
    references, predictions, scores = arrays["references"], arrays["predictions"], arrays["scores"]
    assert value("f1_weighted", **arrays) == pytest.approx(sk.f1_score(references, predictions, average="weighted"))
    assert value("accuracy", **arrays) == pytest.approx((references == predictions).all(axis=1).mean())
    assert value("auroc_macro", **arrays) == pytest.approx(sk.roc_auc_score(references, scores, average="macro"))
    ranking = sk.label_ranking_average_precision_score(references, scores)
    assert value("label_ranking_average_precision", **arrays) == pytest.approx(ranking)


def test_perfect_predictions_score_one_even_where_a_label_is_absent() -> None:
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    for name in METRICS:
        assert value(name, references=labels, predictions=labels, scores=labels * 0.9) == 1.0, name


@pytest.mark.parametrize("name", METRICS)
def test_nothing_is_defined_without_examples(name: str) -> None:
    none = np.zeros((0, 3), np.int64)
    assert value(name, references=none, predictions=none, scores=np.zeros((0, 3))) is None


def test_f1_is_undefined_where_no_label_occurs() -> None:
    nothing = np.zeros((4, 3), np.int64)
    assert value("f1_macro", references=nothing, predictions=nothing) is None
    assert value("f1_micro", references=nothing, predictions=nothing) is None
    assert value("auroc_macro", references=nothing, scores=np.full((4, 3), 0.1)) is None
    assert value("accuracy", references=nothing, predictions=nothing) == 1.0


def test_predicting_nothing_scores_zero_without_a_warning() -> None:
    references = np.array([[1, 0], [0, 1]])
    for name in ("f1_micro", "f1_macro", "precision_micro", "recall_macro"):
        assert value(name, references=references, predictions=np.zeros_like(references)) == 0.0


@pytest.mark.parametrize("name", RESAMPLED)
def test_the_fast_way_equals_scikit_learn(arrays: dict[str, np.ndarray], name: str) -> None:
    fast = RESAMPLED[name](arrays["references"], arrays["predictions"])
    for seed in range(5):
        indices = np.random.default_rng(seed).integers(0, 150, 150)
        chosen = {key: array[indices] for key, array in arrays.items()}
        assert fast(indices) == pytest.approx(value(name, **chosen), abs=1e-6)


@pytest.mark.parametrize("name", RESAMPLED)
def test_the_fast_way_is_undefined_where_no_label_occurs(name: str) -> None:
    nothing = np.zeros((4, 3), np.int64)
    assert RESAMPLED[name](nothing, nothing)(np.arange(4)) is None


def test_per_label_takes_several_labels() -> None:
    table = per_label(np.array([[1, 0], [1, 1]]), np.array([[1, 0], [0, 1]]), 2)
    assert table[0] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert table[1] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1}


def test_one_label_is_a_label_and_not_two_classes() -> None:
    references, predictions = np.array([[1], [1], [0], [0]]), np.array([[1], [0], [0], [0]])
    arrays = {"references": references, "predictions": predictions, "scores": np.array([[0.9], [0.4], [0.3], [0.2]])}
    values = {name: value(name, **arrays) for name in METRICS}
    assert values["precision_macro"] == values["precision_micro"] == 1.0
    assert values["recall_macro"] == values["recall_micro"] == 0.5
    assert values["f1_macro"] == values["f1_micro"] == values["f1_weighted"] == pytest.approx(2 / 3)
    assert (values["accuracy"], values["auroc_macro"]) == (0.75, 1.0)
    assert per_label(references, predictions, 1) == [{"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}]
