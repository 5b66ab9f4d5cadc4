"""The estimate of activation memory against what a training step really keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ftkit

RecipeFile = Callable[..., Path]


def activations(recipe: Path, *overrides: str) -> float:
    found: dict[str, Any] = ftkit.plan(ftkit.load_recipe(recipe, list(overrides)))
    return float(found["memory"]["activations_estimate"])


def test_activations_grow_with_the_batch_and_shrink_with_what_need_not_be_kept(recipe_file: RecipeFile) -> None:
    path = recipe_file(method="full", export="[merged]")
    eight, sixteen = activations(path, "train.batch_size=8"), activations(path, "train.batch_size=16")
    assert sixteen == pytest.approx(2 * eight, rel=1e-6)
    assert activations(path, "train.batch_size=16", "method=linear-probe") < 0.3 * sixteen
    assert activations(path, "train.batch_size=16", "train.gradient_checkpointing=true") < 0.8 * sixteen


def test_the_estimate_is_what_autograd_keeps(recipe_file: RecipeFile) -> None:
    """A linear layer after ReLU keeps its input; BERT keeps a known multiple of rows x tokens x width, so an order of size holds."""
    path = recipe_file(method="full", export="[merged]")
    rows, tokens, width, blocks = 8, 12, 16, 2
    one_tensor = rows * tokens * width * 4 / 2**20
    assert 5 * blocks * one_tensor < activations(path, "train.batch_size=8") < 60 * blocks * one_tensor
