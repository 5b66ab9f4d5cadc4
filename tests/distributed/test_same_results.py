"""What is trained does not depend on the number of processes, nor on whether they divide the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftkit.registry import METHODS
from tests.distributed.ranks import DIVIDED, metrics_of, results_of, train_all
from tests.matrix.cell import Cell, write_recipe
from tests.small_runs import KINDS, save_varied

TRAIN = {
    "epochs": 2, "batch_size": 5, "gradient_accumulation_steps": 2, "precision": "fp32",
    # Adam makes steps of full length out of gradients that are rounding alone, such as those of key biases.
    "optimizer": "sgd", "learning_rate": 0.05,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "compares": {"batch_size": 1},
    "continues": {"batch_size": 2, "gradient_accumulation_steps": 1},
    "finds": {"gradient_accumulation_steps": 1},
    "rewrites": {"gradient_checkpointing": True},
    "tags": {"gradient_accumulation_steps": 3},
}
"""Windows that come out even, uneven ones, and some that leave a process nothing to do."""
UNFROZEN = "unfrozen"
IN_THREE = ("finds", "tags")
EXPORTED = "compares"
PRIME_ROWS = {"train": 23, "validation": 9, "test": 1}
DRAWS = {"diff-pruning"}
"""Methods that draw in each step besides dropout."""


def job(folder: Path, kind: str, **train: Any) -> dict[str, Any]:
    folder.mkdir()
    family, auto_class, task, rows = KINDS[kind]
    save_varied(folder / "model", family, auto_class)
    for name, count in PRIME_ROWS.items():
        some = [{**rows[number % len(rows)], **({"id": f"r{number}"} if "id" in rows[0] else {})} for number in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    recipe = {
        "model": "model", "task": task, "method": "full", "train": json.dumps({**TRAIN, **train}),
        "data": "{train: train.jsonl, validation: validation.jsonl, test: test.jsonl, leaks: 'off'}",
        "export": "[merged]" if kind == EXPORTED else "[]",
    }  # fmt: skip
    (folder / "recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in recipe.items()), encoding="utf-8")
    return {"recipe": str(folder / "recipe.yaml"), "output": str(folder / "run")}


def numbers(value: Any) -> Any:
    """A nested value with its numbers rounded to what addition in another order leaves alone."""
    if isinstance(value, dict):
        return {key: numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [numbers(inner) for inner in value]
    return pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value


@dataclass(frozen=True)
class Runs:
    """Finished runs: `root/name/run` and an ending, which says how it was trained."""

    root: Path
    endings: dict[str, str]

    def folder(self, name: str, how: str) -> Path:
        return self.root / name / f"run{self.endings[how]}"


CASES = [
    *((name, "two") for name in (*KINDS, UNFROZEN)),
    *((name, "three") for name in IN_THREE),
    *((name, "divided") for name in KINDS),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every kind of task by full fine-tuning: in one process, in two, some in three, and divided over two."""
    root = tmp_path_factory.mktemp("several")
    jobs = {kind: job(root / kind, kind, **SETTINGS.get(kind, {})) for kind in KINDS}
    unfrozen = job(root / UNFROZEN, "tags", gradual_unfreezing={"every": {"steps": 1}})
    plain = [*jobs.values(), unfrozen]
    endings = {
        "one": train_all(plain, 1, root),
        "two": train_all(plain, 2, root),
        "three": train_all([jobs[kind] for kind in IN_THREE], 3, root),
        "divided": train_all(list(jobs.values()), 2, root, *DIVIDED),
    }
    return Runs(root, endings)


@pytest.mark.parametrize(("name", "how"), CASES)
def test_c14_c15_c16_steps_and_metrics_are_those_of_one_process(runs: Runs, name: str, how: str) -> None:
    one, several = runs.folder(name, "one"), runs.folder(name, how)
    assert results_of(several)["world_size"] == (3 if how == "three" else 2)
    assert results_of(one)["world_size"] == 1
    straight = metrics_of(one)
    assert sum(line["type"] == "step" for line in straight) >= 4
    assert metrics_of(several) == numbers(straight)
    for split in ("validation", "test"):
        found, expected = (results_of(folder)["splits"][split] for folder in (several, one))
        assert found["rows"] == PRIME_ROWS[split]
        assert found == numbers(expected)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "how"), CASES)
def test_weights_are_those_of_one_process(runs: Runs, name: str, how: str) -> None:
    expected, found = (
        load_file(folder / results_of(folder)["weights"] / "trainable.safetensors")
        for folder in (runs.folder(name, "one"), runs.folder(name, how))
    )
    assert_equal(found, expected)


@pytest.mark.parametrize("how", ["two", "divided"])
def test_the_export_is_that_of_one_process(runs: Runs, how: str) -> None:
    expected, found = (
        load_file(folder / "export" / "merged" / "model.safetensors")
        for folder in (runs.folder(EXPORTED, "one"), runs.folder(EXPORTED, how))
    )
    assert_equal(found, expected)
    assert results_of(runs.folder(EXPORTED, how))["exports"]["merged"]["max_abs_difference"] <= 1e-5


def test_r9_every_method_trains_in_two_processes(tmp_path: Path) -> None:
    """Whole in both, and on a divided base; the script compares the weights of the processes after each training."""
    methods = [name for name in METHODS.names() if METHODS.get(name).capabilities.trains]
    able = [name for name in methods if METHODS.get(name).capabilities.shardable]
    assert len(able) > 20
    jobs = {
        name: {
            "recipe": str(write_recipe(Cell(method=name, task="text-classification", architecture="bert"), tmp_path)),
            "output": str(tmp_path / name),
            "overrides": ["~export"],
        }
        for name in methods
    }
    one, two = (train_all(list(jobs.values()), processes, tmp_path) for processes in (1, 2))
    divided = train_all([jobs[name] for name in able], 2, tmp_path, *DIVIDED)
    for ending, names in ((two, methods), (divided, able)):
        for name in names:
            straight, shared = metrics_of(tmp_path / f"{name}{one}"), metrics_of(tmp_path / f"{name}{ending}")
            assert name in DRAWS or shared == numbers(straight), f"{name}{ending}"
            assert [line["type"] for line in shared] == [line["type"] for line in straight]
