"""The hooks of a method that reach into training: a start found in the data, state in checkpoints, learning rates of its own."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ftkit
from ftkit.errors import InterruptedRunError
from ftkit.methods.full import Full
from ftkit.models.layout import ModelLayout
from ftkit.registry import METHODS
from tests.run.test_train import RecipeFile, StopAt

SEEN: list[list[float]] = []


class Counting(Full):
    """Full tuning that remembers its steps and scales down what a mask, found in the first gradients, leaves out."""

    name = "counting"

    def learning_rate_factor(self, name: str, layout: ModelLayout) -> float:
        return 0.0 if "embeddings" in name else 1.0

    def batches_before_training(self) -> int:
        return 2

    def prepare(self, model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> None:
        SEEN.append([float(loss().detach()) for loss in losses])
        for loss in losses:
            loss().backward()
        self.steps = torch.zeros(2)

    def after_step(self, model: nn.Module, step: int) -> None:
        self.steps = self.steps + torch.tensor([1.0, step])

    def state(self, model: nn.Module) -> Mapping[str, Tensor]:
        return {"steps": self.steps}

    def restore(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        self.steps = state["steps"]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    monkeypatch.setitem(METHODS._plugins, "counting", Counting)


def method_state(folder: Path) -> list[float]:
    results = json.loads((folder / "results.json").read_text())
    found: list[float] = load_file(folder / results["weights"] / "method.safetensors")["steps"].tolist()
    return found


@pytest.mark.usefixtures("counting")
def test_method_state_survives_a_resume(recipe_file: RecipeFile, tmp_path: Path) -> None:
    train = "{epochs: 2.0, batch_size: 8, learning_rate: 1e-2, evaluate_every: {steps: 6}, checkpoint_every: {steps: 2}}"
    recipe = ftkit.load_recipe(recipe_file(method="counting", train=train))
    whole = ftkit.train(recipe, output=tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        ftkit.train(recipe, output=tmp_path / "cut", observer=StopAt(5, lambda: signal.raise_signal(signal.SIGTERM)))
    resumed = ftkit.train(recipe, output=tmp_path / "cut", resume=True)
    best = whole.results["best"]["step"]
    assert method_state(tmp_path / "whole") == [best, sum(range(1, best + 1))]
    assert method_state(tmp_path / "cut") == method_state(tmp_path / "whole")
    assert resumed.results["splits"] == whole.results["splits"]
    assert len(SEEN) == 2, "prepared once for each fresh run, not for the resumed one"
    assert SEEN[0] == SEEN[1]
    assert SEEN[0][0] == pytest.approx(1.1, abs=0.3)


@pytest.mark.usefixtures("counting")
def test_a_factor_of_zero_leaves_a_parameter_alone_and_preparing_leaves_no_gradient(
    recipe_file: RecipeFile, tmp_path: Path, tiny_folder: Path
) -> None:
    train = "{epochs: 1.0, batch_size: 8, learning_rate: 1e-2}"
    results: dict[str, Any] = ftkit.train(
        ftkit.load_recipe(recipe_file(method="counting", train=train)), output=tmp_path / "run"
    ).results
    before = load_file(tiny_folder / "model.safetensors")
    after = load_file(tmp_path / "run" / results["weights"] / "trainable.safetensors")
    same = {name for name, tensor in before.items() if name in after and torch.equal(after[name], tensor)}
    assert {name for name in after if "embeddings" in name} <= same
    assert any("attention" in name for name in after.keys() - same)
