"""Whole runs on a tiny model."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ftkit
from ftkit.errors import DataError, DivergedError, FtkitError, InterruptedRunError, RecipeError, RunFolderError
from ftkit.files import sha256_of
from ftkit.models.trainable import trainable_state
from ftkit.run import training as training_module
from ftkit.run.observer import Observer
from ftkit.training.events import StepEvent

RecipeFile = Callable[..., Path]


def strict_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [strict_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    results = strict_json((folder / "results.json").read_text())
    return load_file(folder / results["weights"] / "trainable.safetensors")


class StopAt(Observer):
    """Raises something after a step."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.at, self.action = step, action

    def step(self, event: StepEvent, *, tokens_per_second: float, seconds_left: float) -> None:
        if event.step == self.at:
            self.action()


@pytest.mark.parametrize("method", ["full", "{name: partial, top_blocks: 1}", "linear-probe", "bitfit", "{name: lora, rank: 4}"])
def test_every_method_runs_from_recipe_to_verified_exports(recipe_file: RecipeFile, tmp_path: Path, method: str) -> None:
    adapter = "lora" in method or "bitfit" in method
    path = recipe_file(method=method, export="[adapter, merged]" if adapter else "[merged]")
    result = ftkit.train(ftkit.load_recipe(path), output=tmp_path / "run")
    assert result.exit_code == 0
    results = strict_json((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "completed"
    for form, facts in results["exports"].items():
        assert facts["max_abs_difference"] <= 1e-5, form
    assert set(results["splits"]) == {"train", "validation", "test"}
    assert results["splits"]["test"]["rows"] == 13
    low, high = results["splits"]["test"]["intervals"]["accuracy"]
    assert low <= results["splits"]["test"]["metrics"]["accuracy"] <= high
    for artifact in results["artifacts"]:
        assert sha256_of(tmp_path / "run" / artifact["path"]) == artifact["sha256"]
    assert not list((tmp_path / "run").rglob(".tmp-*"))
    assert {path.suffix for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_training_learns(recipe_file: RecipeFile, tmp_path: Path) -> None:
    train = "{epochs: 30.0, batch_size: 8, learning_rate: 3e-3, evaluate_every: {epochs: 5.0}}"
    result = ftkit.train(ftkit.load_recipe(recipe_file(method="full", train=train)), output=tmp_path / "run")
    assert result.results["splits"]["test"]["metrics"]["accuracy"] > 0.8


def test_c24_two_runs_are_bit_equal(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe = ftkit.load_recipe(recipe_file())
    for name in ("a", "b"):
        ftkit.train(recipe, output=tmp_path / name)
    first, second = final_weights(tmp_path / "a"), final_weights(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


def test_c23_evaluations_do_not_change_training(recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file(train="{epochs: 1.0, batch_size: 8, learning_rate: 1e-2}")
    for name, every in (("often", "{steps: 1}"), ("once", "{steps: 100}")):
        ftkit.train(ftkit.load_recipe(path, [f"train.evaluate_every={every}"]), output=tmp_path / name)
    losses = [[line["loss"] for line in lines(tmp_path / name) if line["type"] == "step"] for name in ("often", "once")]
    assert losses[0] == losses[1]


def test_metrics_before_training_are_those_of_the_untrained_model(recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file(method="full", train="{epochs: 5.0, batch_size: 8, learning_rate: 3e-3, evaluate_every: {epochs: 5.0}}")
    ftkit.train(ftkit.load_recipe(path), output=tmp_path / "plain")
    both = ftkit.load_recipe(path, ["train.evaluate_first=true"])
    results = ftkit.train(both, output=tmp_path / "both").results
    still = ftkit.load_recipe(path, ["train.learning_rate=1e-12", "train.weight_decay=0"])
    untrained = ftkit.train(still, output=tmp_path / "still").results
    for name in ("validation", "test"):
        assert results["splits"][name]["before"]["loss"] == pytest.approx(untrained["splits"][name]["metrics"]["loss"], abs=1e-6)
        assert results["splits"][name]["before"]["loss"] != pytest.approx(results["splits"][name]["metrics"]["loss"], abs=1e-4)
    assert (tmp_path / "both" / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()
    assert lines(tmp_path / "both") == lines(tmp_path / "plain")


def test_c23_dropout_is_on_in_training_and_off_in_evaluation(recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file(method="full", train="{max_steps: 4, batch_size: 4, learning_rate: 1e-20, evaluate_every: {steps: 1}}")
    (tmp_path / "train.jsonl").write_text('{"text": "w1 w2", "label": "calm"}\n{"text": "w1 w2", "label": "glad"}\n' * 2)
    (tmp_path / "same.jsonl").write_text('{"text": "w3", "label": "calm"}\n' * 3)
    recipe = ftkit.load_recipe(path, ["data.validation=same.jsonl", "data.test=same.jsonl"])
    ftkit.train(recipe, output=tmp_path / "run")
    found = lines(tmp_path / "run")
    assert len({line["loss"] for line in found if line["type"] == "step"}) == 4
    assert len({line["metrics"]["loss"] for line in found if line["type"] == "evaluation"}) == 1


class Killed(BaseException):
    """Stands for a process that is gone: nothing in ftkit handles it."""


def kill() -> None:
    raise Killed


TRAIN_FOR_RESUME = (
    "{epochs: 2.0, batch_size: 4, gradient_accumulation_steps: 2, learning_rate: 1e-2, "
    "evaluate_every: {steps: 5}, checkpoint_every: {steps: 2}, early_stopping: {patience: 50}}"
)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor", "adamw_8bit"])
@pytest.mark.parametrize("step", [1, 7])
def test_r2_resume_after_a_kill_is_bit_exact(recipe_file: RecipeFile, tmp_path: Path, step: int, optimizer: str) -> None:
    recipe = ftkit.load_recipe(recipe_file(train=TRAIN_FOR_RESUME), [f"train.optimizer={optimizer}"])
    ftkit.train(recipe, output=tmp_path / "straight")
    with pytest.raises(Killed):
        ftkit.train(recipe, output=tmp_path / "killed", observer=StopAt(step, kill))
    resumed = ftkit.train(recipe, output=tmp_path / "killed", resume=True)
    assert resumed.results["steps"] == 12
    expected, found = final_weights(tmp_path / "straight"), final_weights(tmp_path / "killed")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (tmp_path / "straight" / "metrics.jsonl").read_bytes() == (tmp_path / "killed" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_in_a_checkpoint_and_resume_is_exact(recipe_file: RecipeFile, tmp_path: Path, number: int, code: int) -> None:
    recipe = ftkit.load_recipe(recipe_file(train=TRAIN_FOR_RESUME))
    ftkit.train(recipe, output=tmp_path / "straight")
    with pytest.raises(InterruptedRunError, match="--resume") as caught:
        ftkit.train(recipe, output=tmp_path / "stopped", observer=StopAt(5, lambda: signal.raise_signal(number)))
    assert caught.value.exit_code == code
    results = strict_json((tmp_path / "stopped" / "results.json").read_text())
    assert (results["status"], results["exit_code"]) == ("interrupted", code)
    assert (tmp_path / "stopped" / "checkpoints" / "step-00000005").is_dir()
    ftkit.train(recipe, output=tmp_path / "stopped", resume=True)
    assert (tmp_path / "straight" / "metrics.jsonl").read_bytes() == (tmp_path / "stopped" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("last", ["recipe.yaml", "plan.yaml"])
def test_a_run_that_was_killed_in_its_first_writes_begins_anew(
    recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, resume: bool
) -> None:
    def killed(path: Path, text: str) -> None:
        path.with_name(f".tmp-{path.name}").write_text(text[:10])
        if path.name == last:
            raise KeyboardInterrupt
        path.write_text(text)

    recipe = ftkit.load_recipe(recipe_file())
    with monkeypatch.context() as patch:
        patch.setattr("ftkit.run.train.write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            ftkit.train(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run" / "plan.yaml").exists()
    assert ftkit.train(recipe, output=tmp_path / "run", resume=resume).results["status"] == "completed"


def test_a_recipe_of_somebody_else_is_no_beginning(recipe_file: RecipeFile, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("mine")
    with pytest.raises(RunFolderError, match="already holds files"):
        ftkit.train(ftkit.load_recipe(recipe_file()), output=tmp_path / "mine")
    assert (tmp_path / "mine" / "recipe.yaml").read_text() == "mine"


def test_r3_a_damaged_newest_checkpoint_is_passed_over(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe = ftkit.load_recipe(recipe_file(train=TRAIN_FOR_RESUME), ["train.keep_checkpoints=3"])
    ftkit.train(recipe, output=tmp_path / "straight")
    with pytest.raises(Killed):
        ftkit.train(recipe, output=tmp_path / "killed", observer=StopAt(7, kill))
    newest = sorted((tmp_path / "killed" / "checkpoints").glob("step-*"))[-1]
    (newest / "optimizer.safetensors").write_bytes(b"torn")
    resumed = ftkit.train(recipe, output=tmp_path / "killed", resume=True)
    assert any("is damaged" in note for note in resumed.results["notes"])
    assert (tmp_path / "straight" / "metrics.jsonl").read_bytes() == (tmp_path / "killed" / "metrics.jsonl").read_bytes()


def test_r5_a_run_that_stopped_early_stops_at_the_same_evaluation_when_resumed(recipe_file: RecipeFile, tmp_path: Path) -> None:
    train = "{epochs: 6.0, batch_size: 8, learning_rate: 1e-9, evaluate_every: {steps: 2}, early_stopping: {patience: 3}}"
    recipe = ftkit.load_recipe(recipe_file(train=train))
    straight = ftkit.train(recipe, output=tmp_path / "straight").results
    assert straight["stopped_early"]
    assert straight["steps"] < straight["total_steps"]
    with pytest.raises(Killed):
        ftkit.train(recipe, output=tmp_path / "killed", observer=StopAt(5, kill))
    resumed = ftkit.train(recipe, output=tmp_path / "killed", resume=True).results
    assert (resumed["steps"], resumed["stopped_early"]) == (straight["steps"], True)


def test_r5_resuming_a_finished_run_does_nothing_and_says_so(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe = ftkit.load_recipe(recipe_file())
    ftkit.train(recipe, output=tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    notes: list[str] = []
    observer = Observer()
    observer.note = notes.append  # type: ignore[method-assign]
    result = ftkit.train(recipe, output=tmp_path / "run", resume=True, observer=observer)
    assert result.exit_code == 0
    assert any("already finished" in note for note in notes)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}


def test_r6_the_exported_weights_are_those_of_the_best_evaluation(
    recipe_file: RecipeFile, tmp_path: Path, monkeypatch: Any
) -> None:
    real, values, saved = training_module.TrainingSession._evaluate, iter([0.1, 0.9, 0.5, 0.4]), {}

    def scripted(self: Any) -> dict[str, Any]:
        saved[self.trainer.position.step] = {k: v.clone() for k, v in trainable_state(self._bare).items()}
        return {**real(self), "accuracy": next(values)}

    monkeypatch.setattr(training_module.TrainingSession, "_evaluate", scripted)
    monkeypatch.setattr("ftkit.run.train._Run._compare_with_training", lambda *_: None)
    result = ftkit.train(ftkit.load_recipe(recipe_file()), output=tmp_path / "run")
    assert result.results["best"] == {"step": 6, "value": 0.9}
    found = final_weights(tmp_path / "run")
    assert all(torch.equal(found[name], saved[6][name]) for name in found)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"best-00000006", "step-00000012"}


def test_r10_a_used_folder_is_refused_and_overwrite_moves_it_aside(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe = ftkit.load_recipe(recipe_file())
    ftkit.train(recipe, output=tmp_path / "out" / "run")
    digests = {path: sha256_of(path) for path in (tmp_path / "out" / "run").rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match=r"already holds files.*--resume.*--overwrite"):
        ftkit.train(recipe, output=tmp_path / "out" / "run")
    assert digests == {path: sha256_of(path) for path in (tmp_path / "out" / "run").rglob("*") if path.is_file()}
    ftkit.train(recipe, output=tmp_path / "out" / "run", overwrite=True)
    aside = [path for path in (tmp_path / "out").iterdir() if path.name.startswith("run.old-")]
    assert len(aside) == 1
    assert (aside[0] / "results.json").is_file()


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("train.learning_rate=2e-2", "train.learning_rate: was 0.01, is 0.02"),
        ("seed=5", "seed: was 0, is 5"),
        ("data.train=other.jsonl", "the train rows"),
        ("method.rank=2", "method.rank: was 4, is 2"),
    ],
)
def test_r2_resume_of_something_else_is_refused(recipe_file: RecipeFile, tmp_path: Path, override: str, what: str) -> None:
    path = recipe_file(train=TRAIN_FOR_RESUME)
    other = (tmp_path / "train.jsonl").read_text().splitlines()[:-1]
    (tmp_path / "other.jsonl").write_text("\n".join(other))
    with pytest.raises(Killed):
        ftkit.train(ftkit.load_recipe(path), output=tmp_path / "run", observer=StopAt(3, kill))
    with pytest.raises(RunFolderError, match=f"cannot be continued.*{what}"):
        ftkit.train(ftkit.load_recipe(path, [override]), output=tmp_path / "run", resume=True)


def test_r3_a_checkpoint_whose_state_was_changed_is_refused(recipe_file: RecipeFile, tmp_path: Path) -> None:
    """Its manifest fits, as that of a checkpoint that somebody else made may."""
    recipe, folder = ftkit.load_recipe(recipe_file(export="[]")), tmp_path / "run"
    ftkit.train(recipe, output=folder)
    checkpoint = sorted(folder.glob("checkpoints/step-*"))[-1]
    manifest, state = (json.loads((checkpoint / name).read_text()) for name in ("manifest.json", "state.json"))
    results = json.loads((folder / "results.json").read_text())
    for changed in (
        {"position": {**state["position"], "step": "3"}},
        {"position": {"steps": 3}},
        {"stopping": {**state["stopping"], "best_score": "high"}},
        {"totals": 7},
        {"metrics_bytes": "many"},
        {"optimizer": 3},
    ):
        (folder / "results.json").write_text(json.dumps({**results, "status": "interrupted"}))
        (checkpoint / "state.json").write_text(json.dumps({**state, **changed}))
        facts = {"bytes": (checkpoint / "state.json").stat().st_size, "sha256": sha256_of(checkpoint / "state.json")}
        files = {**manifest["files"], "state.json": facts}
        (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
        with pytest.raises(RunFolderError, match=r"state\.json: cannot be read \(not what ftkit wrote"):
            ftkit.train(recipe, output=folder, resume=True)


def test_resume_in_a_project_that_was_moved(recipe_file: RecipeFile, tmp_path: Path, tiny_folder: Path) -> None:
    project, other = tmp_path / "project", tmp_path / "elsewhere"
    path = recipe_file(train=TRAIN_FOR_RESUME, model="model")
    project.mkdir()
    shutil.copytree(tiny_folder, project / "model")
    for file in (path, *tmp_path.glob("*.jsonl")):
        file.rename(project / file.name)
    whole = ftkit.train(ftkit.load_recipe(project / path.name), output=tmp_path / "whole")
    with pytest.raises(Killed):
        ftkit.train(ftkit.load_recipe(project / path.name), output=project / "run", observer=StopAt(3, kill))
    project.rename(other)
    (other / "renamed.jsonl").write_bytes((other / "test.jsonl").read_bytes())
    with pytest.raises(
        RunFolderError, match=r'data\.test\[0\]\.path: was ".*project/test\.jsonl", is ".*elsewhere/renamed\.jsonl"'
    ):
        ftkit.train(ftkit.load_recipe(other / path.name, ["data.test=renamed.jsonl"]), output=other / "run", resume=True)
    result = ftkit.train(ftkit.load_recipe(other / path.name), output=other / "run", resume=True)
    assert (other / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert result.results["splits"] == whole.results["splits"]


def test_resume_may_change_what_does_not_concern_training(recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file(train=TRAIN_FOR_RESUME)
    with pytest.raises(Killed):
        ftkit.train(ftkit.load_recipe(path), output=tmp_path / "run", observer=StopAt(3, kill))
    changed = ftkit.load_recipe(path, ["export=[adapter]", "train.keep_checkpoints=2", 'expect={accuracy: ">= 0"}'])
    assert "adapter" in ftkit.train(changed, output=tmp_path / "run", resume=True).results["exports"]


def test_r1_divergence_exports_nothing(recipe_file: RecipeFile, tmp_path: Path) -> None:
    train = "{epochs: 2.0, batch_size: 8, learning_rate: 1e38, optimizer: sgd, max_grad_norm: null, warmup_steps: 0}"
    with pytest.raises(DivergedError, match=r"step \d+ of 12"):
        ftkit.train(ftkit.load_recipe(recipe_file(method="full", train=train, export="[merged]")), output=tmp_path / "run")
    results = strict_json((tmp_path / "run" / "results.json").read_text())
    assert (results["status"], results["exit_code"]) == ("diverged", 3)
    assert not (tmp_path / "run" / "export").exists()


def test_gates_set_the_exit_code_and_are_recorded(recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file(expect='{accuracy: ">= 0.0", f1_macro: "> 1"}')
    result = ftkit.train(ftkit.load_recipe(path), output=tmp_path / "run")
    assert result.exit_code == 4
    assert [gate["passed"] for gate in result.results["gates"]] == [True, False]
    assert result.results["status"] == "gate_not_met"


def test_data_errors_come_before_the_run_folder(recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file()
    with (tmp_path / "train.jsonl").open("a") as stream:
        stream.write('{"text": 7, "label": "calm"}\n')
    with pytest.raises(DataError, match=r"train.jsonl, line 49"):
        ftkit.train(ftkit.load_recipe(path), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_c19_nothing_frozen_changes(recipe_file: RecipeFile, tmp_path: Path, tiny_folder: Path) -> None:
    path = recipe_file(method="{name: partial, top_blocks: 1}", export="[merged]")
    ftkit.train(ftkit.load_recipe(path), output=tmp_path / "run")
    base, merged = (
        load_file(tiny_folder / "model.safetensors"),
        load_file(tmp_path / "run" / "export" / "merged" / "model.safetensors"),
    )
    trained = {name for name in final_weights(tmp_path / "run")}
    changed = {name for name in base if name in merged and not torch.equal(base[name], merged[name])}
    assert changed <= trained
    assert any("layer.1" in name for name in changed)
    assert not any("layer.0" in name or "embeddings" in name for name in changed)


def test_plan_is_runnable_and_gives_the_same_run(recipe_file: RecipeFile, tmp_path: Path, monkeypatch: Any) -> None:
    ftkit.train(ftkit.load_recipe(recipe_file()), output=tmp_path / "a")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    ftkit.train(ftkit.load_recipe(tmp_path / "a" / "plan.yaml"), output=tmp_path / "b")
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


def test_c22_trained_weights_are_float32_over_a_half_precision_base(recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file(export="[adapter, merged]")
    result = ftkit.train(ftkit.load_recipe(path, ["model.dtype=bfloat16"]), output=tmp_path / "run")
    assert {value.dtype for value in final_weights(tmp_path / "run").values()} == {torch.float32}
    assert result.exit_code == 0


@pytest.mark.parametrize("method", ["full", "lora"])
def test_exports_of_mixed_precision_runs_equal_the_model_without_autocast(
    recipe_file: RecipeFile, tmp_path: Path, method: str
) -> None:
    train = "{epochs: 5.0, batch_size: 8, precision: bf16, learning_rate: 3e-3}"
    path = recipe_file(method=method, train=train, export="[merged]")
    facts = ftkit.train(ftkit.load_recipe(path), output=tmp_path / "run").results["exports"]["merged"]
    assert facts["max_abs_difference"] <= 1e-5
    again = ftkit.export(tmp_path / "run", "merged", to=tmp_path / "again")
    assert again["max_abs_difference"] <= 1e-5


@pytest.mark.parametrize(
    "train",
    [
        "{epochs: 2.0, batch_size: 8, layer_decay: 0.5}",
        "{epochs: 4.0, batch_size: 8, gradual_unfreezing: {every: {epochs: 1.0}}}",
        "{epochs: 1.0, batch_size: 8, gradient_checkpointing: true}",
        "{epochs: 1.0, batch_size: 8, max_tokens: 40}",
        "{epochs: 1.0, batch_size: 8, label_smoothing: 0.1, bucket_by_length: false}",
        "{epochs: 1.0, batch_size: 8, precision: bf16}",
        "{max_steps: 3, batch_size: 8, schedule: inverse_sqrt, warmup_steps: 2, max_grad_norm: null}",
    ],
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_options_run(recipe_file: RecipeFile, tmp_path: Path, train: str, method: str) -> None:
    result = ftkit.train(ftkit.load_recipe(recipe_file(method=method, train=train)), output=tmp_path / "run")
    assert result.results["status"] == "completed"


@pytest.mark.parametrize(("epochs", "told"), [("3.0", True), ("4.0", False)])
def test_gradual_unfreezing_that_ends_too_early_is_noted(recipe_file: RecipeFile, tmp_path: Path, epochs: str, told: bool) -> None:
    """The small model has two blocks and embeddings; the third distance begins with the fourth epoch."""
    train = f"{{epochs: {epochs}, batch_size: 8, gradual_unfreezing: {{every: {{epochs: 1.0}}}}}}"
    result = ftkit.train(ftkit.load_recipe(recipe_file(method="full", train=train)), output=tmp_path / "run")
    notes = [note for note in result.results["notes"] if "gradual unfreezing ends before the embeddings" in note]
    assert len(notes) == told


def test_gradient_checkpointing_changes_no_gradient(recipe_file: RecipeFile, tmp_path: Path) -> None:
    losses = []
    for name, value in (("plain", "false"), ("recomputed", "true")):
        recipe = ftkit.load_recipe(recipe_file(method="full"), [f"train.gradient_checkpointing={value}"])
        ftkit.train(recipe, output=tmp_path / name)
        losses.append([line["loss"] for line in lines(tmp_path / name) if line["type"] == "step"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_trackers_write_only_when_named(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe = recipe_file()
    ftkit.train(ftkit.load_recipe(recipe, ["trackers=[tensorboard]"]), output=tmp_path / "tracked")
    ftkit.train(ftkit.load_recipe(recipe), output=tmp_path / "plain")
    assert list((tmp_path / "tracked").rglob("events.out.tfevents*"))
    assert not list((tmp_path / "plain").rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("keys", "kind", "message"),
    [
        ({"model": "no/such/folder/here"}, FtkitError, "no/such"),
        ({"method": "{name: partial, top_blocks: 9}"}, RecipeError, "9"),
        ({"train": "{precision: fp16}"}, RecipeError, "fp16 needs a GPU.*precision: auto"),
        ({"train": "{best_metric: acuracy}"}, RecipeError, "unknown metric 'acuracy'.*accuracy"),
        ({"method": "full", "export": "[adapter]"}, RecipeError, "no separate adapter.*merged"),
    ],
)
def test_impossible_recipes_are_refused_without_a_run_folder(
    recipe_file: RecipeFile, tmp_path: Path, keys: dict[str, str], kind: type[FtkitError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        ftkit.train(ftkit.load_recipe(recipe_file(**keys)), output=tmp_path / "run")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()
