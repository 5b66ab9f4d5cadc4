"""The whole life of recipes on few rows, in real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import ftkit
from ftkit.errors import DivergedError, InterruptedRunError
from ftkit.registry import METHODS, PLUGIN_FILES, load_plugin
from ftkit.run import smoke as smoke_module
from ftkit.run import smoke_process
from ftkit.run.smoke_process import Ended, Request, run_process
from tests.small_runs import KINDS, save_varied

RecipeFile = Callable[..., Path]
ALL = ["read", "train", "kill", "resume", "export", "reload", "evaluate", "predict"]

FORGETFUL = """
import sys
import torch
from ftkit.methods.lora import LoRA

class Forgetful(LoRA):
    name = "forgetful"

    def apply(self, model, layout):
        changed = super().apply(model, layout)
        draw = torch.Generator().manual_seed(int("pytest" in sys.modules))
        with torch.no_grad():
            for name, weight in changed.named_parameters():
                if "query" in name:
                    weight.add_(3 * torch.randn(weight.shape, generator=draw))
        return changed
"""
"""A method that changes frozen weights otherwise where the run is loaded than where it is trained."""

UNSAVED = """
import torch
from ftkit.methods.lora import LoRA

class Unsaved(LoRA):
    name = "unsaved"

    def after_step(self, model, step):
        if step == 1:
            with torch.no_grad():
                dict(model.named_parameters())["base_model.model.bert.embeddings.word_embeddings.weight"].mul_(3)
"""
"""A method that changes frozen weights while it trains, and saves nothing of it."""

BROKEN = """
from ftkit.methods.lora import LoRA

class Broken(LoRA):
    name = "broken"

    def after_step(self, model, step):
        if step == 2:
            raise LookupError("no such thing")
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process puts temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Ended]:
    """How the processes of a smoke test ended."""
    found: list[Ended] = []

    def run(request: Request, folder: Path) -> Ended:
        found.append(run_process(request, folder))
        return found[-1]

    monkeypatch.setattr(smoke_module, "run_process", run)
    return found


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Loads a plug-in."""
    known = dict(METHODS._plugins)

    def load(text: str) -> None:
        (tmp_path / "plugin.py").write_text(text, encoding="utf-8")
        load_plugin(tmp_path / "plugin.py")

    yield load
    METHODS._plugins = known
    PLUGIN_FILES.clear()


def of_kind(folder: Path, kind: str, **keys: Any) -> Path:
    family, auto_class, task, rows = KINDS[kind]
    save_varied(folder / "model", family, auto_class)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {"model": "model", "task": task, "data": "{train: rows.jsonl}", "output": "out", **keys}
    (folder / "recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in recipe.items()), encoding="utf-8")
    return folder / "recipe.yaml"


def by_name(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in report["stages"]}


def test_two_phases_of_a_tagger_live_their_whole_life(tmp_path: Path, temporary: Path, ended: list[Ended]) -> None:
    phases = "[{method: linear-probe, learning_rate: 1e-3}, {method: lora}]"
    path = of_kind(tmp_path, "tags", phases=phases, export="[adapter, merged]", data="{train: rows.jsonl, split: {test: 0.3}}")
    report = ftkit.smoke(ftkit.load_recipe(path))
    stages = by_name(report)
    assert list(stages) == ALL
    assert (stages["train"]["phases"], stages["kill"]["in_step"], stages["predict"]["rows"]) == (2, 3, 4)
    assert stages["resume"]["exact"]
    assert set(stages["export"]["exports"]) == {"adapter", "merged"}
    assert [process.code for process in ended] == [-signal.SIGKILL, 0]
    first, second = ended
    assert [(event["phase"], event["step"]) for event in first.of("step")] == [
        *((1, step) for step in (1, 2, 3, 4)),
        (2, 1),
        (2, 2),
        (2, 3),
    ]
    assert [event["first_step"] for event in second.of("training")] == [2]
    assert [event["step"] for event in second.of("step")] == [3, 4]
    assert not list(temporary.glob("ftkit-*"))
    assert not (tmp_path / "out").exists()
    assert all(stage["seconds"] >= 0 for stage in report["stages"])


def test_a_tuned_translator_without_evaluation_rows(tmp_path: Path, temporary: Path, ended: list[Ended]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    report = ftkit.smoke(ftkit.load_recipe(of_kind(tmp_path, "rewrites", method="full", export="[merged]")))
    assert list(by_name(report)) == [stage for stage in ALL if stage != "evaluate"]
    assert by_name(report)["read"]["rows"] == {"train": {"used": 16, "of": 16}}
    assert report["changes"]["train.max_steps"] == {"recipe": None, "smoke": 4}
    assert len(ended) == 2
    assert not list(temporary.glob("ftkit-*"))
    assert [(entry.name, entry.read_text()) for entry in out.iterdir()] == [("mine.txt", "keep me")]


def test_what_does_not_survive_loading_is_seen(recipe_file: RecipeFile, plugin: Callable[[str], None], temporary: Path) -> None:
    plugin(FORGETFUL)
    with pytest.raises(ftkit.FtkitError, match=r"does not compute what the run did: .*stage: evaluate\)") as caught:
        ftkit.smoke(ftkit.load_recipe(recipe_file(method="forgetful")))
    assert caught.value.exit_code == 1
    assert not list(temporary.glob("ftkit-*"))


def test_a_method_that_does_not_save_all_is_seen(recipe_file: RecipeFile, plugin: Callable[[str], None], temporary: Path) -> None:
    plugin(UNSAVED)
    with pytest.raises(
        ftkit.FtkitError, match=r"step 3 has the loss .* before: a checkpoint lacks something \(stage: resume\)"
    ) as caught:
        ftkit.smoke(ftkit.load_recipe(recipe_file(method="unsaved")))
    assert caught.value.exit_code == 1
    assert not list(temporary.glob("ftkit-*"))


def test_an_error_is_that_of_the_run_with_the_stage(recipe_file: RecipeFile, temporary: Path) -> None:
    train = "{epochs: 2.0, batch_size: 4, learning_rate: 1e30, warmup_ratio: 0.0, max_grad_norm: null}"
    with pytest.raises(DivergedError, match=r"training diverged .*\(stage: train\)") as caught:
        ftkit.smoke(ftkit.load_recipe(recipe_file(method="full", train=train)))
    assert caught.value.exit_code == 3
    assert "learning_rate" in caught.value.problems[0].hint
    assert not list(temporary.glob("ftkit-*"))


def test_an_internal_error_keeps_its_name_and_traceback(
    recipe_file: RecipeFile, plugin: Callable[[str], None], temporary: Path
) -> None:
    plugin(BROKEN)
    with pytest.raises(RuntimeError, match=r"no such thing \(stage: train\)") as caught:
        ftkit.smoke(ftkit.load_recipe(recipe_file(method="broken")))
    assert type(caught.value).__name__ == "LookupError"
    assert "in after_step" in str(caught.value.__cause__)
    assert not list(temporary.glob("ftkit-*"))


def test_a_signal_leaves_nothing(recipe_file: RecipeFile, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def sleep(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(["sleep", "600"], **options))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        return started[0]

    monkeypatch.setattr(smoke_process.subprocess, "Popen", sleep)
    before = signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(InterruptedRunError, match=r"nothing is left of it \(stage: train\)") as caught:
            ftkit.smoke(ftkit.load_recipe(recipe_file()))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert caught.value.exit_code == 130
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert not list(temporary.glob("ftkit-*"))
