"""`ftkit doctor resume`: a stretch of a run is trained again and compared, and the run itself stays as it is."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ftkit
from ftkit.errors import InterruptedRunError, RunFolderError
from ftkit.files import sha256_of
from ftkit.run import training
from tests.run.test_train import StopAt

RecipeFile = Callable[..., Path]
TRAIN = "{max_steps: 7, batch_size: 8, learning_rate: 1e-2, evaluate_every: {steps: 3}, keep_checkpoints: %d}"
"""Checkpoints of steps 3, 6 and 7."""


@pytest.fixture
def run(recipe_file: RecipeFile, tmp_path: Path) -> Path:
    """A finished run that keeps two checkpoints."""
    return ftkit.train(ftkit.load_recipe(recipe_file(train=TRAIN % 2)), output=tmp_path / "run").folder


def everything(folder: Path) -> dict[str, tuple[str, int]]:
    return {str(path): (sha256_of(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def edit(checkpoint: Path, name: str, change: Callable[[Path], None]) -> None:
    """Changes a file of a checkpoint so that its manifest fits."""
    change(checkpoint / name)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": (checkpoint / name).stat().st_size, "sha256": sha256_of(checkpoint / name)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def test_the_stretch_between_two_checkpoints_is_exact_and_the_run_untouched(run: Path) -> None:
    before = everything(run)
    found = ftkit.doctor_resume(run)
    assert everything(run) == before
    assert (found["exact"], found["exit_code"], found["notes"]) == (True, 0, [])
    assert (found["from_step"], found["to_step"], found["resumed_after"]) == (6, 7, 6)
    tensors = load_file(checkpoint(run, 7) / "optimizer.safetensors")
    assert found["compared"]["metrics_lines"] == 2
    assert found["compared"]["tensors"]["optimizer"] == len(tensors) > 0
    assert found["differences"] == {"loss": None, "metrics": [], "tensors": [], "state": []}
    assert (found["versions"], found["environment"]) == ([], [])


def test_the_best_weights_of_that_time_may_be_gone(run: Path) -> None:
    state = json.loads((checkpoint(run, 6) / "state.json").read_text())
    shutil.rmtree(run / "checkpoints" / f"best-{state['stopping']['best_step']:08d}", ignore_errors=True)
    assert ftkit.doctor_resume(run)["exact"]


def test_a_tampered_log_and_optimizer_are_named(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (at,) = [number for number, line in enumerate(lines) if line["type"] == "step" and line["step"] == 7]
    loss, digits = lines[at]["loss"], len(json.dumps(lines[at]["loss"]))
    other = json.loads(f"{loss:.20f}"[: digits - 1] + ("1" if f"{loss:.20f}"[digits - 1] != "1" else "2"))
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace(json.dumps(loss), json.dumps(other)))
    tensors = load_file(checkpoint(run, 7) / "optimizer.safetensors")
    name = next(name for name in tensors if name.startswith("exp_avg|"))

    def shift(path: Path) -> None:
        save_file({**tensors, name: tensors[name] + 0.5}, path)

    edit(checkpoint(run, 7), "optimizer.safetensors", shift)
    found = ftkit.doctor_resume(run)
    assert (found["exact"], found["exit_code"]) == (False, 4)
    assert found["differences"]["loss"] == {"step": 7, "run": other, "replay": loss}
    assert [(line["line"], line["key"]) for line in found["differences"]["metrics"]] == [(1, "loss")]
    ((entry),) = found["differences"]["tensors"]
    assert (entry["file"], entry["tensor"]) == ("optimizer", name)
    assert entry["max_abs_difference"] == pytest.approx(0.5, abs=1e-3)


def test_numbers_with_other_digits_are_told(run: Path) -> None:
    """As another number of threads gives them: the log of the repetition is longer or shorter than the run's."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if (entry := json.loads(line))["type"] == "step" and entry["step"] == 7)
    before, loss = len("".join(lines)), json.loads(lines[at])["loss"]
    lines[at] = lines[at].replace(json.dumps(loss), "0.5")
    (run / "metrics.jsonl").write_text("".join(lines))

    def shorten(path: Path) -> None:
        state = json.loads(path.read_text())
        path.write_text(json.dumps({**state, "metrics_bytes": state["metrics_bytes"] + len("".join(lines)) - before}))

    edit(checkpoint(run, 7), "state.json", shorten)
    found = ftkit.doctor_resume(run)
    assert (found["exact"], found["differences"]["loss"]) == (False, {"step": 7, "run": 0.5, "replay": loss})
    assert found["differences"]["state"] == []


@pytest.mark.parametrize(
    "entry", [{"type": "step", "step": 7}, {"step": 7, "loss": 1.0}, {"type": "step", "step": [7], "loss": 1.0}]
)
def test_lines_that_ftkit_does_not_write_are_refused(run: Path, entry: dict[str, object]) -> None:
    *lines, last = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*lines, json.dumps(entry).ljust(len(last) - 1) + "\n"]))
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl: cannot be read \(not what ftkit wrote"):
        ftkit.doctor_resume(run)


def test_with_one_checkpoint_training_is_repeated_in_two_parts(recipe_file: RecipeFile, tmp_path: Path) -> None:
    def stop() -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        ftkit.train(ftkit.load_recipe(recipe_file(train=TRAIN % 1)), output=tmp_path / "run", observer=StopAt(5, stop))
    before = everything(tmp_path / "run")
    found = ftkit.doctor_resume(tmp_path / "run")
    assert everything(tmp_path / "run") == before
    assert found["exact"]
    assert (found["from_step"], found["to_step"], found["resumed_after"]) == (0, 5, 2)
    assert "train.keep_checkpoints=2" in found["notes"][0]


@pytest.mark.parametrize(("kept", "steps"), [(2, 6), (1, 0)])
def test_resuming_that_forgets_the_optimizer_is_seen(
    recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int, steps: int
) -> None:
    run = ftkit.train(ftkit.load_recipe(recipe_file(train=TRAIN % kept)), output=tmp_path / "run").folder
    monkeypatch.setattr(training, "load_optimizer_state", lambda *arguments: None)
    found = ftkit.doctor_resume(run)
    assert (found["exit_code"], found["from_step"]) == (4, steps)
    assert {entry["file"] for entry in found["differences"]["tensors"]} == {"trainable", "optimizer"}


def test_what_cannot_be_compared_is_refused(run: Path, tmp_path: Path) -> None:
    with (run / ".lock").open("rb") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        with pytest.raises(RunFolderError, match="another process is working on this run"):
            ftkit.doctor_resume(run)
    lock = json.loads((run / "lock.json").read_text())
    lock["training"]["world_size"] = 2
    lock["machine"]["threads"] = 99
    (run / "lock.json").write_text(json.dumps(lock))
    assert ftkit.doctor_resume(run)["environment"] == [
        {"name": "machine.threads", "a": 99, "b": torch.get_num_threads()},
        {"name": "world_size", "a": 2, "b": 1},
    ]
    rows = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(rows.replace("w1 ", "w2 "))
    with pytest.raises(RunFolderError, match=r"cannot be run again: .*the train rows") as caught:
        ftkit.doctor_resume(run)
    assert caught.value.exit_code == 2
    (tmp_path / "train.jsonl").write_text(rows)
    text = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(text[:-10])
    with pytest.raises(RunFolderError, match="shorter"):
        ftkit.doctor_resume(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunFolderError, match=r"no complete checkpoint .*train\.keep_checkpoints=2"):
        ftkit.doctor_resume(run)


def test_an_interrupted_comparison_leaves_the_run_as_it_was(run: Path) -> None:
    before = everything(run)

    def stop() -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedRunError, match="the run is as it was") as caught:
        ftkit.doctor_resume(run, observer=StopAt(7, stop))
    assert caught.value.exit_code == 130
    assert everything(run) == before
