"""Weights divided over two processes: what is refused, and that any number of processes continues a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ftkit
from ftkit.errors import RecipeError
from tests.distributed.ranks import DIVIDED, metrics_of, run
from tests.distributed.test_together import RecipeFile, script, train


def saved(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "checkpoints").glob("step-*")) / f"{name}.safetensors")


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
