"""A run that ends well and learned nothing is called that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import ftkit
from ftkit.run.learning import lost_ground, rising_loss

FALLING = [0.7 - 0.02 * step for step in range(30)]


@pytest.mark.parametrize(
    "losses",
    [
        FALLING,
        [0.7],
        [0.7, 5.0, 5.0],
        # Noise around what the first step had.
        [0.69, 0.9, 0.5, 0.8, 0.66, 0.9, 0.7, 0.75, 0.9, 0.6],
        # A first batch that happened to be easy, as single examples are.
        [0.05, 0.9, 0.5, 0.4, 0.3, 0.2, 0.04, 0.3, 0.02, 0.3],
        # Nothing is left to learn.
        [1e-6, 1e-5, 1e-4, 1e-4, 1e-5, 1e-3, 1e-4, 1e-4],
    ],
)
def test_sound_runs_are_left_alone(losses: list[float]) -> None:
    assert rising_loss(losses) == ""


@pytest.mark.parametrize(
    "losses",
    [
        [0.7, *(1.0 + 0.1 * step for step in range(20))],
        # A model that gives one answer to everything is right where a batch has nothing else.
        [0.7, 3e4, 0.0, 2e5, 1e5, 0.0, 4e5, 9e4, 0.0, 1e5, 2e5, 0.0],
        [3.1, 4.0, 9.8, 10.4],
    ],
)
def test_losses_that_rose_are_told(losses: list[float]) -> None:
    assert rising_loss(losses).startswith(f"the training loss rose from {losses[0]:.4g} in step 1 to ")


def test_the_deciding_metric_is_compared_in_its_direction() -> None:
    splits = {"train": {}, "validation": {"metrics": {"f1": 0.4, "loss": 0.4}, "before": {"f1": 0.5, "loss": 0.5}}}
    assert lost_ground(splits, "f1", "max") == "f1 on validation is 0.4, and was 0.5 before training"
    assert lost_ground(splits, "loss", "min") == ""
    assert lost_ground(splits, "f1", "min") == ""
    assert lost_ground({"validation": {"metrics": {"f1": None}, "before": {"f1": 0.5}}}, "f1", "max") == ""
    assert lost_ground({"validation": {"metrics": {"f1": 0.5}}}, "f1", "max") == ""


def test_an_absurd_learning_rate_ends_with_a_warning(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    ruined = ftkit.train(ftkit.load_recipe(recipe_file(), ["train.learning_rate=1e6"]), output=tmp_path / "ruined")
    assert ruined.exit_code == 0
    warning = ruined.results["warning"]
    assert "the training loss rose from 1." in warning
    assert "Lower train.learning_rate (it was 1e+06)" in warning
    saved = json.loads((tmp_path / "ruined" / "results.json").read_text(encoding="utf-8"))
    assert saved["warning"] == warning
    assert warning in saved["notes"]
    assert warning in (tmp_path / "ruined" / "README.md").read_text(encoding="utf-8")
    sound = ftkit.train(ftkit.load_recipe(recipe_file(), ["train.evaluate_first=true"]), output=tmp_path / "sound")
    assert sound.results["warning"] is None
