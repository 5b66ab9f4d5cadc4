from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import evaluate
import numpy as np
import pytest
from pydantic import ValidationError

from ftkit.errors import RecipeError
from ftkit.metrics.interchange import ExternalMetric, as_evaluate_metric, load_external
from ftkit.tasks.text_classification import Options, TextClassification

SCRIPT = """
import datasets
import evaluate


class Hits(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="Counts.", citation="", inputs_description="",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references, factor=1):
        hits = sum(int(p == r) for p, r in zip(predictions, references))
        return {"hits": factor * hits, "name": "hits", "nothing": float("nan")}
"""


@pytest.fixture(autouse=True)
def _offline_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No network, and a folder of its own for the copies that `evaluate` makes of scripts and imports as `evaluate_modules`."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", list(sys.path))
    _forget_modules()
    yield
    _forget_modules()


def _forget_modules() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "evaluate_modules"]:
        del sys.modules[name]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    folder = tmp_path / "hits"
    folder.mkdir()
    (folder / "hits.py").write_text(SCRIPT, encoding="utf-8")
    return folder


def test_a_metric_works_as_one_of_evaluate() -> None:
    metric = as_evaluate_metric("accuracy")
    assert isinstance(metric, evaluate.Metric)
    assert metric.name == "accuracy"
    assert metric.compute(references=[0, 1, 1, 2], predictions=[0, 1, 2, 2]) == {"accuracy": 0.75}


def test_it_works_in_batches_and_combined() -> None:
    both = evaluate.combine([as_evaluate_metric("accuracy"), as_evaluate_metric("f1_macro")])
    both.add_batch(references=[0, 1], predictions=[0, 1])
    both.add_batch(references=[1, 0], predictions=[0, 0])
    assert both.compute() == {"accuracy": 0.75, "f1_macro": pytest.approx((0.8 + 2 / 3) / 2)}


def test_scores_several_labels_and_numbers() -> None:
    scores = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]
    assert as_evaluate_metric("auroc").compute(references=[0, 0, 1], scores=scores) == {"auroc": 1.0}
    several = as_evaluate_metric("accuracy", "multi_label_classification")
    assert several.compute(references=[[1, 0], [1, 1]], predictions=[[1, 0], [0, 1]]) == {"accuracy": 0.5}
    assert as_evaluate_metric("mse").compute(references=[1.0, 2.0], predictions=[1.0, 4.0]) == {"mse": 2.0}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(KeyError):
        as_evaluate_metric("acuracy")
    with pytest.raises(KeyError):
        as_evaluate_metric("accuracy", "regression")


def test_a_local_script_is_loaded_when_code_is_allowed(script: Path) -> None:
    metric = ExternalMetric(name=f"evaluate:{script}", result="hits", direction="max", arguments={"factor": 10})
    loaded = load_external(metric, allow_code=True)
    assert (loaded.name, loaded.direction) == ("evaluate:hits", "max")
    assert loaded.compute is not None
    assert loaded.compute(np.array([0, 1, 1]), np.array([0, 1, 0])) == 20.0


def test_code_does_not_run_unasked(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()", encoding="utf-8")
    metric = ExternalMetric(name=f"evaluate:{tmp_path / 'evil.py'}", result="x", direction="max")
    with pytest.raises(RecipeError, match=r"task\.metrics: .*evil\.py' is Python code.*--trust-remote-code"):
        load_external(metric, allow_code=False)
    assert not marker.exists()


def test_a_hub_id_needs_a_revision() -> None:
    metric = ExternalMetric(name="evaluate:someone/some_metric", result="x", direction="min")
    with pytest.raises(RecipeError, match=r"neither a file here nor a hub id with a `revision`"):
        load_external(metric, allow_code=True)


def test_a_broken_script_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise OSError('quite broken')", encoding="utf-8")
    metric = ExternalMetric(name=f"evaluate:{tmp_path / 'broken.py'}", result="x", direction="max")
    with pytest.raises(RecipeError, match=r"broken\.py' cannot be loaded: OSError: quite broken"):
        load_external(metric, allow_code=True)


def test_results_must_be_numbers(script: Path) -> None:
    def compute(result: str) -> float | None:
        loaded = load_external(ExternalMetric(name=f"evaluate:{script}", result=result, direction="max"), allow_code=True)
        assert loaded.compute is not None
        return loaded.compute(np.array([0, 1]), np.array([0, 1]))

    with pytest.raises(RecipeError, match=r"returns no 'f1'\. It returns hits, name, nothing"):
        compute("f1")
    with pytest.raises(RecipeError, match="returns 'name' as str, not as a number"):
        compute("name")
    assert compute("nothing") is None


def test_other_loaders_and_missing_directions_are_refused() -> None:
    with pytest.raises(ValidationError):
        ExternalMetric(name="sklearn:f1", result="f1", direction="max")
    with pytest.raises(ValidationError):
        ExternalMetric(name="evaluate:f1", result="f1")  # type: ignore[call-arg]


ROWS = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]


def test_a_task_reports_it(script: Path) -> None:
    metric = ExternalMetric(name=f"evaluate:{script}", result="hits", direction="max")
    task = TextClassification(Options(metrics=["accuracy", metric]))
    assert task.check_options() == ""
    assert [spec.name for spec in task.metrics()] == ["accuracy", "evaluate:hits", "loss"]
    task.allow_code = True
    task.learn(ROWS)
    predictions = [{"example": number, "probabilities": np.array([0.9, 0.1], np.float32)} for number in range(2)]
    assert task.score(predictions, ROWS) == {"accuracy": 0.5, "evaluate:hits": 1.0}
    assert task.score(predictions, ROWS, ["evaluate:hits"]) == {"evaluate:hits": 1.0}


def test_a_task_refuses_it_before_training_where_code_is_not_allowed(script: Path) -> None:
    metric = ExternalMetric(name=f"evaluate:{script}", result="hits", direction="max")
    with pytest.raises(RecipeError, match="--trust-remote-code"):
        TextClassification(Options(metrics=[metric])).learn(ROWS)
