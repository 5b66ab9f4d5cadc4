"""What is trained does not depend on the number of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftkit.registry import METHODS
from tests.distributed.ranks import metrics_of, results_of, train_all
from tests.matrix.cell import Cell, write_recipe
from tests.small_runs import KINDS, save_varied

TRAIN = {
    "epochs": 2, "batch_size": 5, "gradient_accumulation_steps": 2, "precision": "fp32",
    # Adam makes steps of full length out of gradients that are rounding alone, such as those of key biases.
    "optimizer": "sgd", "learning_rate": 0.05,
}  # fmt: skip
IN_THREE = ("finds", "tags")
PRIME_ROWS = {"train": 23, "validation": 9, "test": 1}


def job(folder: Path, kind: str, **train: Any) -> dict[str, Any]:
    family, auto_class, task, rows = KINDS[kind]
    save_varied(folder / "model", family, auto_class)
    for name, count in PRIME_ROWS.items():
        some = [{**rows[number % len(rows)], **({"id": f"r{number}"} if "id" in rows[0] else {})} for number in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    recipe = {
        "model": "model", "task": task, "method": "full", "train": json.dumps({**TRAIN, **train}),
        "data": "{train: train.jsonl, validation: validation.jsonl, test: test.jsonl, leaks: 'off'}",
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, Path]]:
    """Every kind of task, trained in one and two processes, some in three: windows that come out even, uneven ones, and some that leave
    a process nothing to do."""
    root = tmp_path_factory.mktemp("several")
    uneven: dict[str, dict[str, Any]] = {
        "compares": {"batch_size": 1},
        "continues": {"batch_size": 2, "gradient_accumulation_steps": 1},
        "finds": {"gradient_accumulation_steps": 1},
        "tags": {"gradient_accumulation_steps": 3},
        "rewrites": {"gradual_unfreezing": {"every": {"steps": 1}}, "gradient_checkpointing": True},
    }
    jobs = []
    for kind in KINDS:
        (root / kind).mkdir()
        jobs.append(job(root / kind, kind, **uneven.get(kind, {})))
    few = [entry for kind, entry in zip(KINDS, jobs, strict=True) if kind in IN_THREE]
    endings = {1: train_all(jobs, 1, root), 2: train_all(jobs, 2, root), 3: train_all(few, 3, root)}
    return {kind: {processes: root / kind / f"run{ending}" for processes, ending in endings.items()} for kind in KINDS}


@pytest.mark.parametrize(("kind", "processes"), [*((kind, 2) for kind in KINDS), *((kind, 3) for kind in IN_THREE)])
def test_c14_c15_c16_steps_and_metrics_are_those_of_one_process(
    runs: dict[str, dict[int, Path]], kind: str, processes: int
) -> None:
    one, several = runs[kind][1], runs[kind][processes]
    assert results_of(several)["world_size"] == processes
    assert results_of(one)["world_size"] == 1
    straight = metrics_of(one)
    assert sum(line["type"] == "step" for line in straight) >= 4
    assert metrics_of(several) == numbers(straight)
    for split in ("validation", "test"):
        found, expected = (results_of(folder)["splits"][split] for folder in (several, one))
        assert found["rows"] == PRIME_ROWS[split]
        assert found == numbers(expected)


@pytest.mark.parametrize(("kind", "processes"), [*((kind, 2) for kind in KINDS), *((kind, 3) for kind in IN_THREE)])
def test_weights_are_those_of_one_process(runs: dict[str, dict[int, Path]], kind: str, processes: int) -> None:
    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return load_file(folder / results_of(folder)["weights"] / "trainable.safetensors")

    expected, found = weights(runs[kind][1]), weights(runs[kind][processes])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


DRAWS = {"diff-pruning"}
"""Methods that draw in each step besides dropout."""


def test_r9_every_method_trains_in_two_processes(tmp_path: Path) -> None:
    """The script compares the weights of the processes after each training."""
    methods = [name for name in METHODS.names() if METHODS.get(name).capabilities.trains]
    cells = [Cell(method=name, task="text-classification", architecture="bert") for name in methods]
    jobs = [
        {"recipe": str(write_recipe(cell, tmp_path)), "output": str(tmp_path / cell.method), "overrides": ["~export"]}
        for cell in cells
    ]
    one, two = (train_all(jobs, processes, tmp_path) for processes in (1, 2))
    for cell in cells:
        straight, shared = (metrics_of(tmp_path / f"{cell.method}{ending}") for ending in (one, two))
        assert cell.method in DRAWS or shared == numbers(straight), cell.method
        assert [line["type"] for line in shared] == [line["type"] for line in straight]
