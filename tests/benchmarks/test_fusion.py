"""The comparison of AdapterFusion with single adapters: its recipes are sound, and its table holds the scores of its runs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

import ftkit
from tests.benchmarks.test_benchmarks import SCRIPTS


@pytest.fixture
def fusion(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("fusion")


def test_recipes_train_adapters_that_can_be_fused(fusion: ModuleType) -> None:
    assert {task.recipe for task in fusion.TASKS} == set((SCRIPTS / "recipes" / "fusion").glob("*.yaml"))
    for task in fusion.TASKS:
        recipe = ftkit.load_recipe(task.recipe, [task.rows()])
        assert recipe.method.name == "adapter"
        assert not recipe.method.options.norms
        assert recipe.export == ["adapter"]


def _in_this_process(words: Sequence[str], threads: int) -> None:
    *overrides, _, output, _ = words[4:]
    ftkit.train(ftkit.load_recipe(Path(words[3]), overrides), output=Path(output))


def test_scores_are_those_of_own_adapter_other_adapters_and_fusion(
    fusion: ModuleType, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fusion").mkdir()
    for name in ("one", "two", "three"):
        (tmp_path / "data" / name).mkdir(parents=True)
        rows = (tmp_path / "train.jsonl").read_text(encoding="utf-8")
        (tmp_path / "data" / name / "train.jsonl").write_text(rows, encoding="utf-8")
        text = recipe.read_text(encoding="utf-8").replace("{name: lora, rank: 4}", "{name: adapter, norms: false}")
        text = text.replace("train: train.jsonl", f"train: ../data/{name}/train.jsonl").replace(": validation", ": ../validation")
        (tmp_path / "fusion" / f"{name}.yaml").write_text(text.replace(": test.", ": ../test."), encoding="utf-8")
    monkeypatch.setattr(fusion, "RECIPES", tmp_path)
    monkeypatch.setattr(fusion, "TASKS", tuple(fusion.Task(name, 20) for name in ("one", "two", "three")))
    monkeypatch.setattr(fusion, "link_data", lambda folder: None)
    monkeypatch.setattr(fusion, "run_child", _in_this_process)
    page = tmp_path / "page.md"
    page.write_text("<!-- results:fusion -->\n<!-- end:fusion -->\n", encoding="utf-8")
    fusion.main(["one", "--seeds", "1", "--threads", "1", "--write", str(page)])

    runs = tmp_path / "runs" / "benchmarks" / "fusion"
    results = {path.name: json.loads((path / "results.json").read_text(encoding="utf-8")) for path in runs.iterdir()}
    assert {name: found["method"] for name, found in results.items()} == {
        **dict.fromkeys(["two-source", "three-source", "one-own-0"], "adapter"),
        **dict.fromkeys(["one-by-two-0", "one-by-three-0", "one-fusion-0"], "adapter-fusion"),
    }
    assert results["one-own-0"]["splits"]["train"]["rows"] == results["one-fusion-0"]["splits"]["train"]["rows"] == 20
    assert results["two-source"]["splits"]["train"]["rows"] == 52
    members = (runs / "one-fusion-0" / "plan.yaml").read_text(encoding="utf-8")
    assert all(name in members for name in ("one-own-0", "two-source", "three-source"))
    (row,) = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| one ")]
    shown = [f"{results[name]['splits']['test']['metrics']['accuracy']:.4f}" for name in ("one-by-two-0", "one-by-three-0")]
    own, fused = (f"{results[name]['splits']['test']['metrics']['accuracy']:.4f}" for name in ("one-own-0", "one-fusion-0"))
    assert row == f"| one | 20 | {own} | - | {shown[0]} | {shown[1]} | {fused} |"


def test_an_unknown_target_ends_the_script(fusion: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no such target: tides"):
        fusion.main(["tides"])
