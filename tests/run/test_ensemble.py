from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ftkit
from ftkit.errors import RecipeError
from ftkit.models.ensemble import Ensemble, voted
from ftkit.models.trainable import trainable_state
from ftkit.run.ensemble import load_ensemble

RecipeFile = Callable[..., Path]
TEXTS = ["w1 w2 w30", "w11 w31", "w21 w22 w35 w1", "w33", "w12 w2 w22", "w40 w23"]


def trained(recipe: Path, folder: Path, *overrides: str) -> Path:
    ftkit.train(ftkit.load_recipe(recipe, ["train.epochs=1.0", *overrides]), output=folder)
    return folder


@pytest.fixture
def runs(recipe_file: RecipeFile, tmp_path: Path) -> list[Path]:
    recipe = recipe_file(method="{name: prompt-tuning, length: 4}")
    return [trained(recipe, tmp_path / f"run{seed}", f"seed={seed}") for seed in range(3)]


def test_members_vote(runs: list[Path]) -> None:
    alone = [list(ftkit.load(run).predict(TEXTS)) for run in runs]
    together = list(load_ensemble(runs).predict(TEXTS))
    assert len({str([answer["label"] for answer in answers]) for answers in alone}) > 1
    for number, answer in enumerate(together):
        votes = [answers[number]["label"] for answers in alone]
        mean = {label: sum(answers[number]["probabilities"][label] for answers in alone) for label in ("angry", "calm", "glad")}
        expected = max(mean, key=lambda label: (votes.count(label), mean[label]))
        assert answer["label"] == expected
        assert answer["probabilities"][expected] == pytest.approx(votes.count(expected) / 3, abs=2e-3)


def test_an_ensemble_is_evaluated_like_a_run(runs: list[Path]) -> None:
    single = load_ensemble(runs[:1]).evaluate("test")["metrics"]
    assert single["accuracy"] == pytest.approx(ftkit.load(runs[0]).evaluate("test")["metrics"]["accuracy"])
    assert load_ensemble(runs).evaluate("test")["rows"] == 13


def test_other_logits_are_averaged() -> None:
    class Outputs(dict):
        pass

    layer = torch.nn.Linear(2, 3)
    states = []
    for seed in range(3):
        torch.manual_seed(seed)
        layer.reset_parameters()
        states.append({name: value.clone() for name, value in trainable_state(layer).items()})
    inputs = torch.randn(4, 2)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.config = layer, "of the model"

        def forward(self, x: torch.Tensor) -> Any:
            return Outputs(start_logits=self.layer(x), other=1)

    named = [{f"layer.{name}": value for name, value in state.items()} for state in states]
    ensemble = Ensemble(Model(), named, votes=False)
    expected = torch.stack([inputs @ state["weight"].T + state["bias"] for state in states]).mean(0)
    torch.testing.assert_close(ensemble(inputs)["start_logits"], expected)
    assert ensemble.config == "of the model"


def test_ties_go_to_the_likelier_class() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert voted(logits).argmax() == 0
    assert voted(logits).exp().sum() == pytest.approx(1.0)
    majority = torch.tensor([[0.1, 0.0], [0.1, 0.0], [0.0, 99.0]])
    assert voted(majority).argmax() == 0


def test_runs_that_do_not_go_together_are_refused(runs: list[Path], recipe_file: RecipeFile, tmp_path: Path) -> None:
    other = trained(recipe_file(method="{name: prompt-tuning, length: 5}"), tmp_path / "other")
    with pytest.raises(RecipeError, match=r"differs from run0 in .*method"):
        load_ensemble([runs[0], other])
    relabeled = trained(recipe_file(task="{name: text-classification, labels: [glad, calm, angry]}"), tmp_path / "relabeled")
    with pytest.raises(RecipeError, match="differs from run0 in task, method, labels"):
        load_ensemble([runs[0], relabeled])


def test_methods_with_a_state_of_their_own_are_refused(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from ftkit.training.checkpoint import Checkpoint

    monkeypatch.setattr(Checkpoint, "tensors", lambda self, name: {"mask": torch.ones(1)})
    monkeypatch.setattr("ftkit.run.ensemble.load_predictor", lambda *_, **__: ftkit_predictor)
    ftkit_predictor = type("P", (), {"task": type("T", (), {"head": lambda self: type("H", (), {"pretrained": False})()})()})()
    with pytest.raises(RecipeError, match="keeps more than trained parameters"):
        load_ensemble(runs)
