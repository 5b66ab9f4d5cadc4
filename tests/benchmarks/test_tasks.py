"""The benchmark of every task: its recipes are sound, it trains once, and its table says what results.json says."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ftkit.recipe.load import load_recipe
from ftkit.registry import TASKS

SCRIPTS = Path(__file__).parents[2] / "scripts" / "benchmarks"
RECIPES = sorted((SCRIPTS / "recipes").glob("*.yaml"))


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("tasks")


def test_every_recipe_is_used_and_every_entry_is_sound(tasks: ModuleType) -> None:
    assert {entry.recipe for entry in tasks.ENTRIES} == {path.stem for path in RECIPES}
    found = set()
    for entry in tasks.ENTRIES:
        recipe = load_recipe(SCRIPTS / "recipes" / f"{entry.recipe}.yaml", entry.overrides)
        known = {metric.name for metric in TASKS.get(recipe.task.name)(recipe.task.options).metrics()}
        assert set(entry.metrics) <= known | {"loss"}, entry.name
        assert entry.variant == recipe.method.name
        found.add(recipe.task.name)
    assert found == set(TASKS.names())


def test_a_run_is_trained_once_and_shown_as_it_was(
    tasks: ModuleType, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(tasks, "RECIPES", tmp_path)
    monkeypatch.setattr(tasks, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(
        tasks, "ENTRIES", (tasks.Entry("tiny", "lora", ("accuracy",), ("train.evaluate_first=true", "export=[merged]")),)
    )
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results:tasks -->\n<!-- end:tasks -->\nafter\n")
    monkeypatch.setattr("sys.argv", ["tasks.py", "--threads", "1", "--write", str(page)])
    tasks.main()
    results: dict[str, Any] = json.loads((tmp_path / "runs" / "tiny-lora" / "results.json").read_text())
    changed = (tmp_path / "runs" / "tiny-lora" / "results.json").stat().st_mtime_ns
    tasks.main()
    assert (tmp_path / "runs" / "tiny-lora" / "results.json").stat().st_mtime_ns == changed
    (row,) = [line for line in page.read_text().splitlines() if line.startswith("| tiny")]
    test = results["splits"]["test"]
    low, high = test["intervals"]["accuracy"]
    assert f"accuracy {test['metrics']['accuracy']:.4g} [{low:.4g}, {high:.4g}]" in row
    assert f"accuracy {test['before']['accuracy']:.4g} |" in row
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")


def test_unknown_names_and_missing_data_end_the_script(tasks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no such data set or run: wnut18"):
        tasks.chosen(["wnut18"])
    assert [entry.name for entry in tasks.chosen(["wnut17"])] == ["wnut17-full", "wnut17-lora"]
    monkeypatch.setattr(tasks, "RECIPES", tmp_path)
    with pytest.raises(SystemExit, match="give the folder of the data sets"):
        tasks.link_data(None)
