from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from ftkit.metrics.base import MetricSpec
from ftkit.metrics.catalog import compute_metric
from ftkit.metrics.classification import METRICS, RESAMPLED, confusion_matrix, per_label


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    scores = generator.dirichlet(np.ones(4), 200)
    references = np.where(generator.random(200) < 0.5, scores.argmax(axis=1), generator.integers(0, 4, 200))
    return {"references": references, "predictions": scores.argmax(axis=1), "scores": scores}


def value(name: str, **arrays: np.ndarray) -> float | None:
    return compute_metric(METRICS[name], arrays)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_f1_is_that_of_scikit_learn(arrays: dict[str, np.ndarray], average: str) -> None:
    expected = sk.f1_score(arrays["references"], arrays["predictions"], average=average)
    assert value(f"f1_{average}", **arrays) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_precision_and_recall_are_those_of_scikit_learn(arrays: dict[str, np.ndarray], average: str) -> None:
    given = arrays["references"], arrays["predictions"]
    assert value(f"precision_{average}", **arrays) == pytest.approx(sk.precision_score(*given, average=average))
    assert value(f"recall_{average}", **arrays) == pytest.approx(sk.recall_score(*given, average=average))


def test_accuracy_correlation_and_auroc_are_those_of_scikit_learn(arrays: dict[str, np.ndarray]) -> None:
    references, predictions, scores = arrays["references"], arrays["predictions"], arrays["scores"]
    assert value("accuracy", **arrays) == pytest.approx((references == predictions).mean())
    assert value("matthews_correlation", **arrays) == pytest.approx(sk.matthews_corrcoef(references, predictions))
    assert value("auroc", **arrays) == pytest.approx(sk.roc_auc_score(references, scores, multi_class="ovr", average="macro"))


def test_golden_values_by_hand() -> None:
    arrays = {"references": np.array([0, 0, 1, 2]), "predictions": np.array([0, 1, 1, 1])}
    # label 0: P 1, R 1/2, F 2/3; label 1: P 1/3, R 1, F 1/2; label 2: 0
    assert value("accuracy", **arrays) == 0.5
    assert value("f1_macro", **arrays) == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert value("precision_macro", **arrays) == pytest.approx((1 + 1 / 3) / 3)
    assert value("recall_macro", **arrays) == pytest.approx(0.5)


def test_binary_auroc_takes_the_second_label() -> None:
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]])
    assert value("auroc", references=np.array([0, 0, 1, 1]), scores=scores) == 0.75


def test_auroc_leaves_out_labels_that_the_split_lacks() -> None:
    scores = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    assert value("auroc", references=np.array([0, 1, 0]), scores=scores) == 1.0
    assert value("auroc", references=np.array([0, 0, 0]), scores=scores) is None


def test_perfect_predictions_score_one_even_where_a_label_is_absent() -> None:
    labels = np.array([0, 2, 2, 5])
    scores = np.eye(7)[labels]
    for name in METRICS:
        assert value(name, references=labels, predictions=labels, scores=scores) == 1.0, name


@pytest.mark.parametrize("name", METRICS)
def test_nothing_is_defined_without_examples(name: str) -> None:
    none = np.zeros(0, np.int64)
    assert value(name, references=none, predictions=none, scores=np.zeros((0, 3))) is None


def test_undefined_values_are_none_and_useless_ones_are_zero() -> None:
    one_label = np.array([1, 1, 1])
    assert value("matthews_correlation", references=one_label, predictions=np.array([0, 1, 1])) is None
    assert value("matthews_correlation", references=np.array([0, 1, 1]), predictions=one_label) == 0.0


def test_per_label_lists_all_labels() -> None:
    table = per_label(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    assert table[0] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert table[1] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert table[2] == {"precision": None, "recall": None, "f1": None, "support": 0}


def test_confusion_matrix_has_all_labels_and_references_in_rows() -> None:
    assert confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 3) == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("name", RESAMPLED)
def test_the_fast_way_equals_scikit_learn(arrays: dict[str, np.ndarray], name: str) -> None:
    fast = RESAMPLED[name](arrays["references"], arrays["predictions"])
    generator = np.random.default_rng(0)
    for size in (200, 5, 1):
        indices = generator.integers(0, 200, size)
        chosen = {key: array[indices] for key, array in arrays.items()}
        assert fast(indices) == pytest.approx(value(name, **chosen), abs=1e-12)


def test_names_match_and_specs_are_complete() -> None:
    assert all(isinstance(spec, MetricSpec) and spec.name == name and spec.compute for name, spec in METRICS.items())
    assert [name for name, spec in METRICS.items() if spec.headline] == ["accuracy", "f1_macro"]
