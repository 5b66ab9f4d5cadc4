"""Weights divided over two processes: torch's `fully_shard` on the CPU, as on graphics cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ftkit
from ftkit.errors import RecipeError
from ftkit.registry import METHODS
from tests.distributed.ranks import metrics_of, results_of, run, train_all
from tests.distributed.test_same_results import DRAWS, job, numbers
from tests.distributed.test_together import RecipeFile, script, train
from tests.matrix.cell import Cell, write_recipe
from tests.small_runs import KINDS

DIVIDED = ["train.sharding=fsdp2"]
EXPORTED = "compares"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Every kind of task by full fine-tuning: in one process, and divided over two."""
    root, jobs = tmp_path_factory.mktemp("divided"), []
    for kind in KINDS:
        (root / kind).mkdir()
        overrides = ["export=[merged]"] if kind == EXPORTED else []
        jobs.append({**job(root / kind, kind), "overrides": overrides})
    one = train_all(jobs, 1, root)
    two = train_all([{**entry, "overrides": [*entry["overrides"], *DIVIDED]} for entry in jobs], 2, root)
    return {kind: (root / kind / f"run{one}", root / kind / f"run{two}") for kind in KINDS}


def saved(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "checkpoints").glob("step-*")) / f"{name}.safetensors")


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_one_process(runs: dict[str, tuple[Path, Path]], kind: str) -> None:
    one, divided = runs[kind]
    assert results_of(divided)["world_size"] == 2
    assert metrics_of(divided) == numbers(metrics_of(one))
    assert results_of(divided)["splits"] == numbers(results_of(one)["splits"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_whole_weights(runs: dict[str, tuple[Path, Path]], kind: str) -> None:
    one, divided = runs[kind]
    assert_equal(saved(divided, "trainable"), saved(one, "trainable"))


def test_the_export_is_that_of_one_process(runs: dict[str, tuple[Path, Path]]) -> None:
    expected, found = (load_file(folder / "export" / "merged" / "model.safetensors") for folder in runs[EXPORTED])
    assert_equal(found, expected)
    assert results_of(runs[EXPORTED][1])["exports"]["merged"]["max_abs_difference"] <= 1e-5


def test_r9_every_method_trains_on_a_divided_base(tmp_path: Path) -> None:
    methods = [name for name in METHODS.names() if METHODS.get(name).capabilities.trains]
    able = [name for name in methods if METHODS.get(name).capabilities.shardable]
    assert len(able) > 20
    cells = [Cell(method=name, task="text-classification", architecture="bert") for name in able]
    jobs: list[dict[str, Any]] = [
        {"recipe": str(write_recipe(cell, tmp_path)), "output": str(tmp_path / cell.method), "overrides": ["~export"]}
        for cell in cells
    ]
    one = train_all(jobs, 1, tmp_path)
    two = train_all([{**entry, "overrides": ["~export", *DIVIDED]} for entry in jobs], 2, tmp_path)
    for cell in cells:
        straight, divided = (metrics_of(tmp_path / f"{cell.method}{ending}") for ending in (one, two))
        assert cell.method in DRAWS or divided == numbers(straight), cell.method


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "fish-mask"}, "fish-mask needs the whole model in each process"),
        ({"train": "{sharding: fsdp2, compile: true}"}, "compiled models cannot be divided"),
        ({"train": "{sharding: fsdp2, optimizer: adafactor}"}, "adafactor keeps a state that cannot be divided"),
        ({"train": "{sharding: fsdp2, gradual_unfreezing: {}}"}, "what is frozen for a time cannot be divided"),
        ({"train": "{sharding: fsdp2}"}, "one process has nobody to divide the model with"),
    ],
)
def test_what_cannot_be_divided_is_refused(recipe_file: RecipeFile, tmp_path: Path, changes: dict[str, str], told: str) -> None:
    recipe = ftkit.load_recipe(recipe_file(**{"train": "{sharding: fsdp2}", **changes}))
    with pytest.raises(RecipeError, match=told):
        ftkit.train(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_divided_run_is_resumed_by_one_process(recipe_file: RecipeFile, tmp_path: Path) -> None:
    """And the other way round: checkpoints hold whole tensors, so any number of processes continues them."""
    recipe = recipe_file(method="full", train="{epochs: 2.0, batch_size: 8, optimizer: adamw, checkpoint_every: {steps: 3}}")
    stop = script(tmp_path, "os.kill(os.getpid(), signal.SIGTERM)", rank=0, step=4)
    divided = run(2, [stop, *train(recipe, tmp_path / "run"), *DIVIDED], tmp_path)
    assert "SIGTERM received: stopped after step 5" in divided.stderr, divided.stderr[-2000:]
    half = saved(tmp_path / "run", "optimizer")
    assert all(
        value.shape == half[name.replace("exp_avg|", "exp_avg_sq|")].shape for name, value in half.items() if "exp_avg|" in name
    )
    stop = script(tmp_path, "os.kill(os.getpid(), signal.SIGTERM)", rank=0, step=8)
    alone = run(1, [stop, *train(recipe, tmp_path / "run", "--resume")], tmp_path)
    assert alone.returncode == 143, alone.stderr[-2000:]
    again = run(2, ["-m", "ftkit", *train(recipe, tmp_path / "run", "--resume"), *DIVIDED], tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    assert [line["step"] for line in metrics_of(tmp_path / "run") if line["type"] == "step"] == list(range(1, 13))
    straight = run(1, ["-m", "ftkit", *train(recipe, tmp_path / "straight")], tmp_path)
    assert straight.returncode == 0, straight.stderr[-2000:]
    losses = [[line["loss"] for line in metrics_of(tmp_path / name) if line["type"] == "step"] for name in ("run", "straight")]
    # Each process draws its own dropout, which the tiny model hardly uses.
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
