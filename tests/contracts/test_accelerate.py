"""What ftkit relies on in Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state()
    yield Accelerator(mixed_precision="no", log_with=None, project_dir=None)
    AcceleratorState._reset_state()


def test_one_process_trains_as_torch_does(accelerator: Accelerator) -> None:
    assert (accelerator.num_processes, accelerator.process_index, accelerator.is_main_process) == (1, 0, True)
    assert isinstance(accelerator.device, torch.device)
    assert accelerator.scaler is None
    plain = torch.nn.Linear(2, 1).to(accelerator.device)
    model, optimizer = accelerator.prepare(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    assert accelerator.unwrap_model(model) is plain
    loss = model(torch.ones(3, 2, device=accelerator.device)).sum()
    accelerator.backward(loss)
    assert torch.equal(plain.weight.grad.cpu(), torch.full((1, 2), 3.0))  # type: ignore[union-attr]
    norm = accelerator.clip_grad_norm_(plain.parameters(), 1.0)
    assert norm.shape == ()  # type: ignore[union-attr]
    assert float(norm) == pytest.approx(27**0.5)  # type: ignore[arg-type]
    before = plain.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, plain.weight)
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.1


def test_windows_collect_without_waiting_for_others(accelerator: Accelerator) -> None:
    model = accelerator.prepare(torch.nn.Linear(2, 1))
    with accelerator.no_sync(model):
        accelerator.backward(model(torch.ones(1, 2, device=accelerator.device)).sum())
    assert float(accelerator.reduce(torch.ones(()), "sum")) == 1.0
    assert gather_object([1, 2]) == [1, 2]


def test_models_for_evaluation_stay_themselves(accelerator: Accelerator) -> None:
    model = torch.nn.Linear(2, 1)
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    assert accelerator.unwrap_model(prepared) is model


def test_the_first_precision_of_a_process_can_be_undone(accelerator: Accelerator) -> None:
    assert AcceleratorState._shared_state
    assert AcceleratorState().mixed_precision == "no"
    AcceleratorState._reset_state()
    assert Accelerator(mixed_precision="bf16").mixed_precision == "bf16"
    assert Accelerator(mixed_precision="bf16").autocast() is not None


def test_trackers_are_started_by_project_and_config(tmp_path: Path) -> None:
    AcceleratorState._reset_state()
    accelerator = Accelerator(log_with=["tensorboard"], project_dir=str(tmp_path))
    accelerator.init_trackers("project", config={"recipe": "r"})
    accelerator.log({"loss": 1.0}, step=1)
    accelerator.end_training()
    assert list((tmp_path / "project").rglob("*tfevents*"))
    AcceleratorState._reset_state()
