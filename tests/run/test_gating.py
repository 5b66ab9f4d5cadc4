from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftkit.recipe.expectations import RESOURCES
from ftkit.run.baseline import Baseline, read_baseline
from ftkit.run.gating import difference_interval, gates, missed
from ftkit.run.measurements import resources_of

RESULTS: dict[str, Any] = {
    "splits": {
        "test": {"metrics": {"accuracy": 0.90, "loss": 0.4, "auc": None}, "intervals": {"accuracy": (0.85, 0.94)}},
        "validation": {"metrics": {"accuracy": 0.1}, "intervals": {}},
    },
    "peak_memory_mib": 900.0,
    "seconds": {"training": 12.0, "evaluation": 2.0},
    "tokens_per_second": 50.0,
    "examples_per_second": None,
    "parameters": {"trainable": 77},
    "exports": {"adapter": {"bytes": 1234}},
}

BASELINE: dict[str, Any] = {
    "kind": "ftkit baseline",
    "schema_version": 1,
    "task": "text-classification",
    "split": "test",
    "metrics": {"accuracy": 0.92},
    "intervals": {"accuracy": [0.88, 0.95]},
    "resources": {"peak_memory_mib": 800.0},
    "data": {"test": {"rows": 3, "sha256": "aa"}},
    "model_files": {},
    "machine": {},
}


def judged(expect: dict[str, Any], baseline: Baseline | None = None) -> dict[str, Any]:
    [found] = gates(expect, RESULTS, baseline)
    return found


@pytest.fixture
def baseline(tmp_path: Path) -> Baseline:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(BASELINE), encoding="utf-8")
    return read_baseline(path)


def test_a_metric_is_read_off_the_test_split() -> None:
    found = judged({"accuracy": ">= 0.95"})
    assert (found["split"], found["value"], found["passed"]) == ("test", 0.90, False)
    assert found["missed_by"] == pytest.approx(0.05)
    assert missed([found]) == [found]
    assert judged({"accuracy": ">= 0.9"})["missed_by"] is None


def test_an_undefined_metric_meets_no_gate() -> None:
    found = judged({"auc": "<= 1"})
    assert (found["value"], found["passed"], found["missed_by"]) == (None, False, None)


def test_validation_counts_where_there_is_no_test() -> None:
    only = {**RESULTS, "splits": {"validation": RESULTS["splits"]["validation"]}}
    [found] = gates({"accuracy": "< 0.2"}, only)
    assert (found["split"], found["passed"]) == ("validation", True)


def test_every_resource_is_known() -> None:
    found = resources_of(RESULTS)
    assert list(found) == list(RESOURCES)
    assert found["adapter_bytes"] == 1234
    assert found["merged_bytes"] is None
    assert judged({"peak_memory_mib": "< 1000"}) | {"split": None, "value": 900.0, "passed": True} == judged(
        {"peak_memory_mib": "< 1000"}
    )
    assert judged({"training_seconds": "< 10"})["missed_by"] == 2.0


def test_a_confident_gate_looks_at_the_unfavorable_end() -> None:
    for bound, end, passed in ((">= 0.85", 0.85, True), (">= 0.86", 0.85, False), ("< 0.94", 0.94, False), ("<= 0.94", 0.94, True)):
        found = judged({"accuracy": {"bound": bound, "confident": True}})
        assert (found["compared"], found["passed"]) == (end, passed)
    without = judged({"loss": {"bound": "< 1", "confident": True}})
    assert (without["compared"], without["passed"]) == (None, False), "no interval, no confidence"


def test_the_difference_to_a_baseline_is_compared(baseline: Baseline) -> None:
    found = judged({"vs": {"file": baseline.path, "accuracy": ">= -0.005"}}, baseline)
    assert (found["gate"], found["metric"], found["baseline"]) == (
        "vs.accuracy",
        "accuracy",
        {"file": baseline.path, "value": 0.92},
    )
    assert found["compared"] == pytest.approx(-0.02)
    assert found["missed_by"] == pytest.approx(0.015)
    assert judged({"vs": {"file": baseline.path, "accuracy": ">= -0.03"}}, baseline)["passed"]
    assert judged({"vs": {"file": baseline.path, "peak_memory_mib": "<= 50"}}, baseline)["missed_by"] == 50.0


def test_a_confident_difference_adds_both_uncertainties(baseline: Baseline) -> None:
    found = judged({"vs": {"file": baseline.path, "accuracy": {"bound": ">= -0.05", "confident": True}}}, baseline)
    assert found["compared"] == pytest.approx(-0.02 - (0.05**2 + 0.03**2) ** 0.5)
    assert not found["passed"]


def test_the_interval_of_a_difference() -> None:
    found = difference_interval((0.7, (0.6, 0.75)), (0.5, (0.4, 0.53)))
    assert found == pytest.approx((0.2 - (0.1**2 + 0.03**2) ** 0.5, 0.2 + (0.05**2 + 0.1**2) ** 0.5))
    assert difference_interval((0.7, (0.7, 0.7)), (0.5, (0.5, 0.5))) == pytest.approx((0.2, 0.2))
    assert difference_interval((0.7, None), (0.5, (0.5, 0.5))) is None
    assert difference_interval((None, (0.1, 0.2)), (0.5, (0.5, 0.5))) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "no baseline"),
        ({"schema_version": 2}, "schema_version is 2"),
        ({"metrics": {"accuracy": "0.9"}}, "metrics.accuracy is no number"),
        ({"metrics": {"accuracy": True}}, "metrics.accuracy is no number"),
        ({"metrics": []}, "'metrics' is missing or malformed"),
        ({"intervals": {"accuracy": [1]}}, "intervals.accuracy is no pair"),
        ({"data": {"test": {}}}, "data.test has no sha256"),
        ({"task": None}, "'task' is missing"),
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({**BASELINE, **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_baseline(path)
