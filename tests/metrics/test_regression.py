from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from ftkit.metrics.catalog import compute_metric
from ftkit.metrics.regression import METRICS

CONSTANT = np.full(6, 0.1)
RISING = np.arange(6, dtype=np.float64)


def value(name: str, references: np.ndarray, predictions: np.ndarray) -> float | None:
    return compute_metric(METRICS[name], {"references": references, "predictions": predictions})


def test_values_are_those_of_scipy_and_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    references = generator.normal(3, 2, 100).round(1)
    predictions = (references + generator.normal(0, 1, 100)).round(1)
    assert value("pearson", references, predictions) == pytest.approx(stats.pearsonr(references, predictions).statistic)
    assert value("spearman", references, predictions) == pytest.approx(stats.spearmanr(references, predictions).statistic)
    assert value("mse", references, predictions) == pytest.approx(sk.mean_squared_error(references, predictions))
    assert value("mae", references, predictions) == pytest.approx(np.abs(references - predictions).mean())
    assert value("r2", references, predictions) == pytest.approx(sk.r2_score(references, predictions))


def test_correlations_are_undefined_for_a_constant_side() -> None:
    for name in ("pearson", "spearman"):
        assert value(name, CONSTANT, RISING) is None
        assert value(name, RISING, CONSTANT) is None
    assert value("r2", CONSTANT, RISING) is None
    assert value("r2", RISING, CONSTANT) is not None
    assert value("mse", CONSTANT, RISING) is not None


@pytest.mark.parametrize("name", METRICS)
def test_few_examples(name: str) -> None:
    assert value(name, RISING[:0], RISING[:0]) is None
    one = value(name, RISING[:1], RISING[:1] + 2)
    assert one == {"mse": 4.0, "mae": 2.0}.get(name)


def test_perfect_predictions() -> None:
    expected = {"mse": 0.0, "mae": 0.0, "pearson": 1.0, "spearman": 1.0, "r2": 1.0}
    assert {name: value(name, RISING, RISING) for name in METRICS} == pytest.approx(expected)


def test_directions() -> None:
    assert {name for name, spec in METRICS.items() if spec.direction == "min"} == {"mse", "mae"}
