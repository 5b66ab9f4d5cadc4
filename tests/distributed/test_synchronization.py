"""How often gradients travel between processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.ranks import run

COUNTING = """
import sys
import numpy as np
import torch
from accelerate import Accelerator
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from ftkit.training.events import StepEvent
from tests.training.test_loop import PAIRS, Sequences, TokenModel, make_trainer

accumulation = int(sys.argv[1])
trainer = make_trainer(Sequences(PAIRS), TokenModel(), epochs=3.0, gradient_accumulation_steps=accumulation)
assert torch.distributed.get_world_size() == 2
calls = []


def counted(state, bucket):
    calls.append(bucket.is_last())
    return allreduce_hook(state, bucket)


trainer.model.register_comm_hook(None, counted)
steps = sum(isinstance(event, StepEvent) for event in trainer.events())
print("COUNT", sum(calls), steps, flush=True)
"""


@pytest.mark.parametrize("accumulation", [4])
def test_p5_gradients_are_synchronized_once_an_optimizer_step(accumulation: int, tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(COUNTING, encoding="utf-8")
    done = run(2, [str(tmp_path / "counting.py"), str(accumulation)], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("COUNT")]
    assert counts == [["3", "3"]] * 2
