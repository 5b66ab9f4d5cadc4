"""Recipes in phases: the later one starts from what the earlier one made, resumes, and is refused whole."""

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
from ftkit.errors import InterruptedRunError, RecipeError, RunFolderError
from ftkit.recipe.phase_plans import whole_sources, whole_values, whole_yaml
from ftkit.recipe.plan import recipe_values
from ftkit.run.planning import make_plan_here
from tests.run.test_train import StopAt
from tests.tiny import save_tiny

RecipeFile = Callable[..., Path]
PHASES = "[{method: linear-probe, epochs: 2.0, learning_rate: 1e-2}, {method: {name: lora, rank: 4}, epochs: 1.0}]"


@pytest.fixture
def phases_file(recipe_file: RecipeFile) -> Callable[..., Path]:
    """A recipe in phases; keyword arguments as in `recipe_file`."""

    def make(phases: str = PHASES, **keys: str) -> Path:
        path = recipe_file(**{"train": "{batch_size: 8, learning_rate: 3e-3}", "export": "[adapter, merged]", **keys})
        text = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("method:"))
        path.write_text(f"{text}phases: {phases}\n")
        return path

    return make


def test_the_last_phase_starts_from_what_the_first_made(phases_file: RecipeFile, tmp_path: Path) -> None:
    result = ftkit.train(ftkit.load_recipe(phases_file()), output=tmp_path / "run")
    first = json.loads((tmp_path / "run.phase-1" / "results.json").read_text())
    assert (first["method"], first["steps"], result.results["method"], result.results["steps"]) == ("linear-probe", 12, "lora", 6)
    (told,) = result.results["phases"]
    assert (told["method"], told["folder"], told["steps"]) == ("linear-probe", "run.phase-1", 12)
    assert told["splits"]["test"] == first["splits"]["test"]["metrics"]
    before = load_file(tmp_path / "run.phase-1" / "export" / "merged" / "model.safetensors")
    after = load_file(tmp_path / "run" / "export" / "merged" / "model.safetensors")
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert all("classifier" in name or "query" in name or "value" in name or "pooler" in name for name in changed)
    assert any("query" in name for name in changed)
    for form in ("adapter", "merged"):
        assert result.results["exports"][form]["max_abs_difference"] <= 1e-5
    assert ftkit.load(tmp_path / "run").predict([{"text": "w1 w2"}])
    card, base = (tmp_path / "run" / "README.md").read_text(), told["model"]
    assert Path(base).is_dir()
    assert f"`{Path(base).name}` adapted to text-classification with linear-probe, then **lora**" in card
    assert f"1. linear-probe on `{Path(base).name}`, 12 steps: the run `run.phase-1`, beside this one\n" in card
    assert "2. lora on `run.phase-1/export/merged`: this run" in card
    assert "The base is the folder `run.phase-1/export/merged` (sha256" in card


def test_phases_equal_two_runs_one_after_the_other(phases_file: RecipeFile, recipe_file: RecipeFile, tmp_path: Path) -> None:
    ftkit.train(ftkit.load_recipe(phases_file()), output=tmp_path / "run")
    probe = "{batch_size: 8, epochs: 2.0, learning_rate: 1e-2}"
    ftkit.train(ftkit.load_recipe(recipe_file(method="linear-probe", train=probe, export="[merged]")), output=tmp_path / "one")
    train = "{batch_size: 8, epochs: 1.0, learning_rate: 3e-3}"
    second = recipe_file(model=str(tmp_path / "one" / "export" / "merged"), train=train)
    ftkit.train(ftkit.load_recipe(second), output=tmp_path / "two")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "two" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("stop", [3, 15])
def test_an_interrupted_phase_is_resumed_where_it_was(phases_file: RecipeFile, tmp_path: Path, stop: int) -> None:
    """6 steps in an epoch: step 3 of the first phase, then step 3 of the second."""
    path = phases_file()
    whole = ftkit.train(ftkit.load_recipe(path), output=tmp_path / "whole")
    seen: list[int] = []

    class Counting(StopAt):
        def step(self, event: Any, **facts: Any) -> None:
            seen.append(event.step)
            if len(seen) == stop:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        ftkit.train(ftkit.load_recipe(path), output=tmp_path / "cut", observer=Counting(0, lambda: None))
    resumed = ftkit.train(ftkit.load_recipe(path), output=tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert resumed.results["splits"] == whole.results["splits"]


def test_nothing_is_trained_where_a_later_folder_is_in_use(phases_file: RecipeFile, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="already holds files"):
        ftkit.train(ftkit.load_recipe(phases_file()), output=tmp_path / "run")
    assert not (tmp_path / "run.phase-1").exists()


@pytest.mark.parametrize(
    ("phases", "message", "line"),
    [
        ("lora", "no list of at least two", "phases"),
        ("[{method: lora}]", "no list of at least two", "phases"),
        ("[{epochs: 1.0}, {method: lora}]", "has no `method`", "phases"),
        ("[linear-probe, {method: lora}]", "is no phase", "phases"),
        ("[{metod: linear-probe}, {method: lora}]", "unknown key 'metod'", "phases"),
        ("[{method: linear-probe, epoks: 1.0}, {method: lora}]", "epoks", "phases"),
        ("[{method: linear-probe, epochs: two}, {method: {name: lora, rang: 4}}]", "rang", "phases"),
        ("[{method: linear-prob}, {method: lora}]", "linear-prob", "phases"),
    ],
)
def test_wrong_phases_are_refused_with_their_place(phases_file: RecipeFile, phases: str, message: str, line: str) -> None:
    path = phases_file(phases)
    number = next(index for index, text in enumerate(path.read_text().splitlines(), 1) if text.startswith(line))
    with pytest.raises(RecipeError, match=message) as caught:
        ftkit.load_recipe(path)
    assert all(f":{number}:" in problem.place for problem in caught.value.problems)


def test_all_problems_of_all_phases_come_at_once(phases_file: RecipeFile) -> None:
    with pytest.raises(RecipeError) as caught:
        ftkit.load_recipe(phases_file("[{method: linear-probe, epochs: two}, {method: {name: lora, rang: 4}}]"))
    assert len(caught.value.problems) == 2


def test_a_method_beside_phases_is_refused(phases_file: RecipeFile) -> None:
    path = phases_file()
    path.write_text(path.read_text() + "method: full\n")
    with pytest.raises(RecipeError, match="stands beside `phases`"):
        ftkit.load_recipe(path)


def test_random_weights_may_be_trained_by_full_first_and_by_lora_then(
    phases_file: RecipeFile, tmp_path: Path, tiny_folder: Path
) -> None:
    path = phases_file(
        "[{method: full, max_steps: 2}, {method: lora, max_steps: 2}]", model=f"{{name: {tiny_folder}, weights: random}}"
    )
    assert ftkit.train(ftkit.load_recipe(path), output=tmp_path / "run").exit_code == 0
    turned = phases_file(
        "[{method: lora, max_steps: 2}, {method: full, max_steps: 2}]",
        model=f"{{name: {tiny_folder}, weights: random}}",
        export="[merged]",
    )
    with pytest.raises(RecipeError, match="random weights"):
        ftkit.train(ftkit.load_recipe(turned), output=tmp_path / "other")


def test_the_printed_recipe_is_complete_and_trains_the_same(phases_file: RecipeFile, tmp_path: Path) -> None:
    given = ftkit.load_recipe(phases_file(expect='{accuracy: ">= 0"}', seed="3", export="[adapter]"))
    report = ftkit.plan(given)
    printed = tmp_path / "recipe.yaml"
    printed.write_text(report["yaml"])
    again = ftkit.load_recipe(printed)
    assert [phase.method.name for phase in (*again.earlier, again)] == ["linear-probe", "lora"]
    assert ftkit.plan(again)["recipe"] == report["recipe"]
    first, second = make_plan_here(given), make_plan_here(again)
    assert [recipe_values(plan.recipe) for plan in (*first.earlier, first)] == [
        recipe_values(plan.recipe) for plan in (*second.earlier, second)
    ]
    assert "learning_rate: 0.01\n" in report["yaml"]
    assert "# " in next(line for line in report["yaml"].splitlines() if "targets:" in line)


def test_what_phases_decide_differently_stays_open(phases_file: RecipeFile, tmp_path: Path) -> None:
    """p-tuning takes positions of the model, and with them of the texts."""
    recipe = ftkit.load_recipe(
        phases_file("[{method: linear-probe}, {method: {name: prompt-tuning, length: 20}}]", export="[adapter]")
    )
    plan = make_plan_here(recipe)
    lengths = [part.recipe.task.options.max_length for part in (*plan.earlier, plan)]
    assert lengths == [64, 44]
    assert whole_values(plan)["task"]["max_length"] == "auto"
    assert "task.max_length" not in whole_sources(plan)
    (tmp_path / "again.yaml").write_text(whole_yaml(plan))
    again = make_plan_here(ftkit.load_recipe(tmp_path / "again.yaml"))
    assert [part.recipe.task.options.max_length for part in (*again.earlier, again)] == lengths


def test_a_plan_shows_what_each_phase_needs(phases_file: RecipeFile) -> None:
    report = ftkit.plan(ftkit.load_recipe(phases_file()))
    first, second = report["phases"]
    assert (first["method"], first["steps"]["total"], second["method"], second["steps"]["total"]) == ("linear-probe", 12, "lora", 6)
    assert first["parameters"]["trainable"] < second["parameters"]["trainable"]
    assert report["steps"] == {"total": 18}
    assert report["disk"]["total"] == pytest.approx(first["disk"]["total"] + second["disk"]["total"])
    assert first["disk"]["exports"] > 0
    assert report["memory"]["total_estimate"] == max(size["memory"]["total_estimate"] for size in (first, second))
    assert report["sources"]["phases[1].method.targets"]


def test_the_plan_of_random_weights_in_phases(phases_file: RecipeFile, tiny_folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_folder, bare)
    (bare / "model.safetensors").unlink()
    path = phases_file("[{method: full, max_steps: 2}, {method: lora, max_steps: 2}]", model=f"{{name: {bare}, weights: random}}")
    report = ftkit.plan(ftkit.load_recipe(path))
    assert report["recipe"]["model"]["weights"] == "random"
    assert [phase["steps"]["total"] for phase in report["phases"]] == [2, 2]


@pytest.mark.parametrize("check", [ftkit.validate, ftkit.plan, ftkit.doctor, ftkit.inspect])
def test_every_verb_refuses_what_an_earlier_phase_cannot_do(
    check: Callable[..., Any], phases_file: RecipeFile, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "masked", "bert", "AutoModelForMaskedLM")
    path = phases_file("[{method: none}, {method: lora}]", model=str(tmp_path / "masked"))
    with pytest.raises(RecipeError, match=r"phase 1 \(none\): ") as caught:
        check(ftkit.load_recipe(path))
    (problem,) = caught.value.problems
    number = next(index for index, text in enumerate(path.read_text().splitlines(), 1) if text.startswith("phases"))
    assert problem.place.endswith(f"recipe.yaml:{number}:10")


def test_what_is_wrong_with_all_phases_is_said_once(phases_file: RecipeFile) -> None:
    with pytest.raises(RecipeError) as caught:
        ftkit.validate(ftkit.load_recipe(phases_file(train="{batch_size: 8, precision: fp16}")))
    assert len(caught.value.problems) == 1
    assert "phase" not in caught.value.problems[0].message


def test_an_earlier_phase_must_end_in_a_merged_model(phases_file: RecipeFile) -> None:
    path = phases_file("[{method: linear-probe}, {method: {name: prompt-tuning}}, {method: lora}]", export="[adapter]")
    with pytest.raises(RecipeError) as caught:
        ftkit.load_recipe(path)
    (problem,) = caught.value.problems
    assert problem.message.startswith("phase 2 must end in a merged model, which phase 3 starts from; what prompt-tuning trains")
    assert problem.key == "phases.1.method"
    number = next(index for index, text in enumerate(path.read_text().splitlines(), 1) if text.startswith("phases"))
    assert f"recipe.yaml:{number}:" in problem.place
    assert "last phase" in problem.hint


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_root_is_no_run_folder(phases_file: RecipeFile, recipe_file: RecipeFile, *, overwrite: bool) -> None:
    for path in (phases_file(), recipe_file()):
        with pytest.raises(RunFolderError, match="is the root of the file system"):
            ftkit.train(ftkit.load_recipe(path), output="/", overwrite=overwrite)
