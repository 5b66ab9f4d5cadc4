from __future__ import annotations

import time

import numpy as np
import pytest

from ftkit.metrics import classification, regression
from ftkit.metrics.intervals import bootstrap_interval, headline_intervals


def test_the_interval_of_a_mean_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        hits = generator.random(80) < 0.7
        low, high = bootstrap_interval(lambda indices, hits=hits: float(hits[indices].mean()), 80, resamples=200) or (2.0, 2.0)
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_its_width_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(0, 1, 400)
    low, high = bootstrap_interval(lambda indices: float(values[indices].mean()), 400, resamples=4000) or (0.0, 0.0)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    narrow = bootstrap_interval(lambda indices: float(values[indices].mean()), 400, resamples=4000, confidence=0.5)
    assert narrow is not None
    assert low < narrow[0] < narrow[1] < high


def test_the_seed_decides_the_draws() -> None:
    values = np.random.default_rng(1).normal(0, 1, 50)

    def mean(indices: np.ndarray) -> float:
        return float(values[indices].mean())

    assert bootstrap_interval(mean, 50) == bootstrap_interval(mean, 50)
    assert bootstrap_interval(mean, 50) != bootstrap_interval(mean, 50, seed=1)


def test_undefined_draws_are_left_out_unless_most_are() -> None:
    assert bootstrap_interval(lambda indices: 1.0 if indices[0] > 2 else None, 10) == (1.0, 1.0)
    assert bootstrap_interval(lambda indices: 1.0 if indices[0] > 7 else None, 10) is None
    assert bootstrap_interval(lambda indices: 1.0, 1) is None


def test_headline_metrics_only_and_those_without_a_fast_way() -> None:
    references = np.linspace(0, 1, 40)
    arrays = {"references": references, "predictions": references + np.sin(np.arange(40)) / 5}
    found = headline_intervals(list(regression.METRICS.values()), arrays, regression.RESAMPLED)
    assert set(found) == {"mse", "pearson", "spearman"}
    low, high = found["pearson"]
    assert low < regression.pearson(**arrays) < high


def test_3000_examples_of_77_labels_take_less_than_three_seconds() -> None:
    generator = np.random.default_rng(0)
    references = generator.integers(0, 77, 3000)
    predictions = np.where(generator.random(3000) < 0.8, references, generator.integers(0, 77, 3000))
    specs = [classification.METRICS[name] for name in ("accuracy", "f1_macro")]
    start = time.process_time()
    found = headline_intervals(specs, {"references": references, "predictions": predictions}, classification.RESAMPLED)
    assert time.process_time() - start < 3
    assert found["accuracy"][0] < (references == predictions).mean() < found["accuracy"][1]
