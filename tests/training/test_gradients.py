from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ftkit.training.events import StepEvent
from ftkit.training.gradients import cut, share_of
from ftkit.training.loop import Trainer
from tests.training.test_loop import PAIRS, Sequences, TokenModel, make_trainer


class SmallMemory(TokenModel):
    """Runs out of memory on more than `room` sequences at a time, as a graphics card would."""

    def __init__(self, room: int, from_call: int = 0) -> None:
        super().__init__()
        self.room, self.from_call, self.seen = room, from_call, []

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(ids))
        if len(ids) > self.room and len(self.seen) > self.from_call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return super().forward(ids)


WHOLE = [[0, 1, 2, 3], [4, 5, 6, 7]]


def steps(trainer: Trainer) -> list[StepEvent]:
    return [event for event in trainer.events() if isinstance(event, StepEvent)]


@pytest.mark.parametrize(("room", "parts"), [(2, 2), (1, 4)])
def test_batches_that_do_not_fit_are_halved_and_learn_the_same(room: int, parts: int) -> None:
    expected = make_trainer(Sequences(WHOLE), TokenModel(), epochs=3.0)
    trainer = make_trainer(Sequences(WHOLE), SmallMemory(room), epochs=3.0)
    for found, straight in zip(steps(trainer), steps(expected), strict=True):
        assert found.loss == pytest.approx(straight.loss, rel=1e-6)
        assert found.grad_norm == pytest.approx(straight.grad_norm, rel=1e-9)
        assert (found.examples, found.tokens) == (straight.examples, straight.tokens)
    assert trainer.position.parts == parts
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=1e-10, atol=1e-12)


def test_memory_that_runs_out_later_cuts_from_there_on() -> None:
    model = SmallMemory(2, from_call=2)
    trainer = make_trainer(Sequences(WHOLE), model, epochs=2.0)
    assert len(steps(trainer)) == 4
    assert model.seen == [4, 4, 4, 2, 2, 2, 2]


def test_one_example_that_does_not_fit_ends_the_run() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        steps(make_trainer(Sequences(WHOLE), SmallMemory(0), epochs=1.0))


def test_a_recipe_may_refuse_smaller_batches() -> None:
    model = SmallMemory(2)
    with pytest.raises(torch.OutOfMemoryError):
        steps(make_trainer(Sequences(WHOLE), model, epochs=1.0, out_of_memory="stop"))
    assert model.seen == [4]


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    class Broken(TokenModel):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        steps(make_trainer(Sequences(WHOLE), Broken(), epochs=1.0))


def test_a_rehearsal_finds_the_parts_and_leaves_no_trace() -> None:
    model = SmallMemory(1)
    trainer = make_trainer(Sequences(WHOLE), model, epochs=1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.gradients.rehearse(np.array([0, 1, 2, 3]))
    assert trainer.gradients.parts == 4
    assert model.seen == [4, 2, 1, 1, 1, 1]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert trainer.position.step == 0


def test_a_continued_run_keeps_its_parts() -> None:
    model = SmallMemory(4)
    trainer = make_trainer(Sequences(WHOLE), model, epochs=1.0)
    trainer.position.parts = 2
    steps(trainer)
    assert model.seen == [2, 2, 2, 2]


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_cutting_keeps_every_example_once(parts: int) -> None:
    share: list[Any] = [(np.arange(5), True), (np.arange(5, 6), True), (np.arange(1), False)]
    pieces = cut(share, parts)
    assert [index for piece, real in pieces if real for index in piece.tolist()] == list(range(6))
    assert all(len(piece) for piece, _ in pieces)
    assert max(len(piece) for piece, _ in pieces) == -(-5 // parts)


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("sizes", [[4], [4, 4], [5, 4, 1], [1], [7, 7, 7, 7], [2, 9, 3, 1, 1]])
def test_c16_processes_share_a_window_without_changing_it(sizes: list[int], processes: int) -> None:
    numbers = iter(range(100))
    window = [np.array([next(numbers) for _ in range(size)]) for size in sizes]
    shares = [share_of(window, process, processes) for process in range(processes)]
    counted = [index for share in shares for indices, real in share if real for index in indices.tolist()]
    assert sorted(counted) == list(range(sum(sizes)))
    assert len({len(share) for share in shares}) == 1
    assert all(len(indices) for share in shares for indices, _ in share)
    assert max(len(indices) for share in shares for indices, _ in share) <= max(sizes)


def test_c16_whole_batches_are_shared_where_they_come_out_even() -> None:
    window = [np.arange(start, start + 3) for start in (0, 3, 6, 9)]
    assert [[indices.tolist() for indices, _ in share_of(window, rank, 2)] for rank in (0, 1)] == [
        [[0, 1, 2], [6, 7, 8]],
        [[3, 4, 5], [9, 10, 11]],
    ]
    assert [[indices.tolist() for indices, _ in share_of(window[:1], rank, 2)] for rank in (0, 1)] == [[[0, 2]], [[1]]]


def test_the_loop_gives_its_events_over_uneven_pairs() -> None:
    assert len(steps(make_trainer(Sequences(PAIRS), TokenModel(), epochs=1.0))) == len(PAIRS)
