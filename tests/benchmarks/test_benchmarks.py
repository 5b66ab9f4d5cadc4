"""The benchmark scripts on a tiny model: the two sides of a comparison do the same work, and results survive a kill."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit

SCRIPTS = Path(__file__).parents[2] / "scripts" / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark script by name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def run(folder: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FTKIT_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPTS / name), *words, "--threads", "1", "--seeds", "1", "--output", str(folder / "out")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


def test_reference_compares_equal_work_and_resumes(recipe: Path, tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- results:reference-tiny -->\nold\n<!-- end:reference-tiny -->\nafter\n", encoding="utf-8")
    words = ["--recipe", str(recipe), "--override", "data.leaks=off", "--write", str(document)]
    done = run(tmp_path, "reference.py", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "tiny.json").read_text(encoding="utf-8"))

    start = found["start"]
    assert start["ftkit"]["loss"] == pytest.approx(start["trainer"]["loss"], abs=1e-5)
    assert start["ftkit"]["gradient_norm"] == pytest.approx(start["trainer"]["gradient_norm"], rel=1e-5)
    ours, theirs = found["seeds"][0]["ftkit"]["fp32"], found["seeds"][0]["trainer"]
    assert ours["steps"] == theirs["steps"] == 2 * 7, "two epochs of 52 rows in batches of 8, without early stopping"
    assert ours["trainable"] == theirs["trainable"] > 0
    for side in (ours, theirs):
        assert 0 < side["seconds"] < 60
        assert 0 <= side["metrics"]["accuracy"] <= 1
        assert 50 < side["peak_memory_mib"] < 4096
    assert found["summary"]["fp32"]["ratios"]["seconds"] == [theirs["seconds"] / ours["seconds"]]
    assert found["summary"]["fp32"]["metrics"]["accuracy"]["trainer_interval"] is None

    page = document.read_text(encoding="utf-8")
    assert page.startswith("before\n<!-- results:reference-tiny -->\n`python scripts/benchmarks/reference.py")
    assert page.endswith("<!-- end:reference-tiny -->\nafter\n")
    assert "old" not in page
    assert f"{ours['metrics']['accuracy']:.4f}" in page
    assert "52 training and 24 test rows, 14 steps" in page

    # A process that was killed while it wrote its last line: that measurement alone is made again.
    lines = (tmp_path / "out" / "tiny.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "out" / "tiny.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:40]]), encoding="utf-8")
    again = run(tmp_path, "reference.py", *words)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("measured before") == 2
    repeated = json.loads((tmp_path / "out" / "tiny.json").read_text(encoding="utf-8"))["seeds"][0]
    assert repeated["ftkit"]["fp32"] == ours, "taken from the file, times and all"
    assert repeated["trainer"]["metrics"] == theirs["metrics"], "trained again from the same seed"


def test_methods_makes_a_row_of_a_run(recipe: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "methods.py", str(recipe), "--override", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("| tiny |")).split("|")
    record = json.loads((tmp_path / "out" / "methods.jsonl").read_text(encoding="utf-8"))
    assert row[2].strip() == "lora"
    assert row[3].strip().startswith(f"{record['metrics']['accuracy']:.4f} [")
    assert row[5].strip() == f"{100 * record['trainable'] / record['total']:.2f} %"
    assert record["steps"] == 7
    assert record["adapter_bytes"] > 4 * record["trainable"], "float32 weights and a header"


def test_methods_trains_a_recipe_by_each_method_that_can(recipe: Path, tmp_path: Path) -> None:
    words = [
        "--override",
        "train.max_steps=2",
        "--override",
        "train.learning_rate=auto",
        "--methods",
        "full",
        "adapter-fusion",
        "bitfit",
    ]
    done = run(tmp_path, "methods.py", str(recipe), *words)
    assert done.returncode == 0, done.stderr
    assert "tiny, adapter-fusion: left out: " in done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| tiny |")]
    assert [row[2].strip() for row in rows] == ["full", "bitfit"]
    assert [row[-2].strip() == "-" for row in rows] == [True, False], "only bitfit has an adapter"
    records = [json.loads(line) for line in (tmp_path / "out" / "methods.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["overrides"][-2:] for record in records] == [["method=full", "export=[]"], ["method=bitfit", "export=[adapter]"]]
    assert "--methods full adapter-fusion bitfit" in done.stdout


@pytest.mark.parametrize("path", sorted((SCRIPTS / "recipes" / "methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_the_method_tables_leave_all_settings_to_the_methods(path: Path) -> None:
    body = ftkit.load_recipe(path, ["method=lora"])
    assert body.train.learning_rate == body.train.epochs == "auto"
    assert body.data.validation or body.data.split


def test_a_recipe_without_equal_is_refused_before_training(recipe: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "reference.py", "--recipe", str(recipe), "--override", "train.gradient_accumulation_steps=2")
    assert done.returncode == 1
    assert "train.gradient_accumulation_steps" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_document_without_place_is_refused_before_training(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- end:methods --><!-- results:methods -->", encoding="utf-8")
    done = run(tmp_path, "methods.py", str(recipe), "--write", str(tmp_path / "page.md"))
    assert done.returncode == 1
    assert "<!-- results:methods -->" in done.stderr
    assert not (tmp_path / "out").exists()


def test_interval_is_students(script: Any) -> None:
    low, high = script("reference").t_interval([0.90, 0.92, 0.94])
    reach = 4.302653 * statistics.stdev([0.90, 0.92, 0.94]) / 3**0.5
    assert (low, high) == pytest.approx((0.92 - reach, 0.92 + reach), abs=1e-6)


def side(seconds: float, **metrics: float) -> dict[str, Any]:
    return {"metrics": metrics, "seconds": seconds, "cpu_seconds": seconds, "peak_memory_mib": 100.0}


def test_mean_outside_the_interval_is_said(script: Any) -> None:
    values = [(0.80, 0.90), (0.82, 0.91), (0.905, 0.92)]
    seeds = [{"ftkit": {"fp32": side(2.0, accuracy=ours)}, "trainer": side(3.0, accuracy=theirs)} for ours, theirs in values]
    found = script("reference").summary(seeds, "fp32")
    assert found["metrics"]["accuracy"]["mean_within"] is False
    assert found["metrics"]["accuracy"]["seeds_within"] == [False, False, True]
    assert found["median_ratios"]["seconds"] == 1.5


def test_tables_have_the_metrics_of_the_task(script: Any) -> None:
    reference = script("reference")
    start = {"trainable": 10, "loss": 5.0, "gradient_norm": 2.0, "steps": 60}
    seeds = [{"seed": 0, "ftkit": {"fp32": side(2.0, exact_match=0.5, f1=0.625)}, "trainer": side(3.0, exact_match=0.25, f1=0.75)}]
    examples = {
        "train": {"rows": 1900, "ftkit": 2013, "trainer": 2014, "same": 2001},
        "test": {"rows": 400, "ftkit": 410, "trainer": 410},
    }
    found = {
        "start": {
            "ftkit": start,
            "trainer": start,
            "method": "lora",
            "metrics": {"exact_match": "Exact match", "f1": "F1"},
            "examples": examples,
        },
        "seeds": seeds,
        "machine": "A machine.",
        "summary": {"fp32": reference.summary(seeds, "fp32")},
    }
    text = reference.markdown(found, "python reference.py")
    assert "1,900 training and 400 test rows (2,013 and 2,014 training examples, ftkit and Trainer, 2,001 of them the same)" in text
    assert "60 steps" in text
    assert "| Exact match, ftkit fp32 | 0.5000 | 0.2500 |" in text
    assert "| Seed, side | Exact match | F1 | Training s |" in text
    assert "| 0, Trainer fp32 | 0.2500 | 0.7500 | 3.0 |" in text


@pytest.mark.parametrize("name", ["trainable", "loss", "gradient_norm", "steps"])
def test_sides_that_start_apart_are_refused(script: Any, name: str) -> None:
    same = {"trainable": 10, "loss": 1.0, "gradient_norm": 2.0, "steps": 7}
    check = script("reference").check_start
    check({"ftkit": same, "trainer": dict(same)})
    with pytest.raises(SystemExit, match="do not start with the same model"):
        check({"ftkit": {**same, name: same[name] * 1.01 + 1e-3}, "trainer": same})
