"""What would end a run later ends it before its first step."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

import ftkit
from ftkit.errors import MemoryExhaustedError, RunFolderError
from ftkit.tasks.text_classification import TextClassification
from ftkit.training.gradients import Gradients
from tests.run.test_train import RecipeFile

Usage = namedtuple("Usage", "total used free")


def forwards(monkeypatch: pytest.MonkeyPatch, room: int, *, training_only: bool = False) -> list[tuple[int, int]]:
    """(rows, tokens) of each forward pass; more rows than `room` at a time run out of memory."""
    seen, forward = [], TextClassification.forward

    def limited(self: Any, model: Any, batch: Any) -> Any:
        rows, tokens = batch["input_ids"].shape
        seen.append((rows, tokens))
        if rows > room and (torch.is_grad_enabled() or not training_only):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return forward(self, model, batch)

    monkeypatch.setattr(TextClassification, "forward", limited)
    return seen


def test_p1_the_longest_batch_is_tried_first(recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = forwards(monkeypatch, room=100)
    ftkit.train(ftkit.load_recipe(recipe_file()), output=tmp_path / "run")
    assert seen[0] == (8, max(tokens for _, tokens in seen))
    assert seen[1][0] == 15


def test_p1_memory_that_is_too_small_halves_the_batch_before_the_first_step(
    recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ftkit.load_recipe(recipe_file(method="full"))
    straight = ftkit.train(recipe, output=tmp_path / "straight").results
    forwards(monkeypatch, room=2, training_only=True)
    halved = ftkit.train(recipe, output=tmp_path / "halved").results
    assert any("batches go through the model in 4 parts" in note for note in halved["notes"])
    assert not any("parts" in note for note in straight["notes"])
    assert halved["steps"] == straight["steps"]


def test_p1_an_evaluation_that_does_not_fit_ends_the_run_before_the_first_step(
    recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards(monkeypatch, room=8)
    told = r"train\.eval_batch_size: out of memory on the longest batch: 15 rows of up to \d+ tokens"
    with pytest.raises(MemoryExhaustedError, match=told):
        ftkit.train(ftkit.load_recipe(recipe_file()), output=tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert ftkit.train(ftkit.load_recipe(recipe_file(), ["train.eval_batch_size=4"]), output=tmp_path / "again").exit_code == 0


def test_a_batch_of_one_that_does_not_fit_names_its_length(
    recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards(monkeypatch, room=0)
    with pytest.raises(MemoryExhaustedError, match=r"train\.batch_size: out of memory on the longest batch: 8 rows") as caught:
        ftkit.train(ftkit.load_recipe(recipe_file()), output=tmp_path / "run")
    assert caught.value.exit_code == 5


def test_p4_a_disk_that_is_too_small_is_refused_before_training(
    recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 1000))
    monkeypatch.setattr(Gradients, "accumulate", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(RunFolderError, match=r"the run needs \d+ MiB \(checkpoints \d+, exports \d+\), and 0 MiB are free"):
        ftkit.train(ftkit.load_recipe(recipe_file(method="full")), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_rehearsal_changes_nothing(recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ftkit.load_recipe(recipe_file(method="full"))
    ftkit.train(recipe, output=tmp_path / "with")
    monkeypatch.setattr("ftkit.run.train.rehearse", lambda _: None)
    ftkit.train(recipe, output=tmp_path / "without")
    assert (tmp_path / "with" / "metrics.jsonl").read_bytes() == (tmp_path / "without" / "metrics.jsonl").read_bytes()
