"""The loop on tiny models: exact gradients, exact order, exact events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ftkit.errors import DivergedError
from ftkit.methods.base import Capabilities, Default, Method
from ftkit.recipe.schema import Every, TrainSpec
from ftkit.training.events import BoundaryEvent, EvaluationEvent, StepEvent
from ftkit.training.loop import Position, Trainer
from ftkit.training.stopping import StoppingRule

TRAIN = {
    "epochs": 1.0,
    "learning_rate": 0.1,
    "weight_decay": 0.0,
    "warmup_ratio": 0.0,
    "max_grad_norm": None,
    "schedule": "constant",
}


class TokenModel(nn.Module):
    """Predicts a class for each token of an uneven sequence; float64, so that 1e-10 means exact."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 6, dtype=torch.float64)
        self.head = nn.Linear(6, 3, dtype=torch.float64)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(torch.tanh(self.embedding(ids))))


class TokenTask:
    """What the loop needs of a task, over sequences whose labels are -100 where nothing is supervised."""

    model_inputs = ("ids",)

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return model(batch["ids"])

    def target_count(self, batch: dict[str, Any]) -> int:
        return int((batch["labels"] != -100).sum())

    def loss(self, outputs: torch.Tensor, batch: dict[str, Any], *, label_smoothing: float = 0.0) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100, reduction="sum")


class Everything(Method):
    name, summary, update_rule = "everything", "", ""
    capabilities = Capabilities(adapter=False, merge=True)

    def defaults(self, facts: Any) -> dict[str, Default]:
        return {}

    def apply(self, model: nn.Module, layout: Any) -> nn.Module:
        return model

    def declares(self, name: str, layout: Any) -> bool:
        return True


LENGTHS = [1, 7, 3, 9, 2, 8, 5, 4]


class Sequences:
    """Eight sequences of uneven length in a given batching."""

    def __init__(self, batches: Sequence[Sequence[int]], epochs_differ: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        self.ids = [torch.randint(0, 11, (length,), generator=generator) for length in LENGTHS]
        self.labels = [torch.randint(0, 3, (length,), generator=generator) for length in LENGTHS]
        self.batches = [np.array(batch) for batch in batches]
        self.epochs_differ = epochs_differ
        self.seen: list[list[int]] = []

    def epoch(self, epoch: int) -> list[np.ndarray]:
        return self.batches[epoch % 2 :] + self.batches[: epoch % 2] if self.epochs_differ else self.batches

    def load(self, indices: np.ndarray) -> dict[str, Any]:
        self.seen.append(indices.tolist())
        longest = max(LENGTHS[index] for index in indices)
        ids, labels = torch.zeros(len(indices), longest, dtype=torch.long), torch.full((len(indices), longest), -100)
        for row, index in enumerate(indices):
            ids[row, : LENGTHS[index]], labels[row, : LENGTHS[index]] = self.ids[index], self.labels[index]
        return {"ids": ids, "labels": labels}

    def tokens(self, indices: np.ndarray) -> int:
        return sum(LENGTHS[index] for index in indices)


def make_trainer(
    batches: Any, model: nn.Module | None = None, *, evaluate: Any = None, patience: int | None = None, **train: Any
) -> Trainer:
    accelerator = Accelerator(cpu=True)
    spec = TrainSpec.model_validate({**TRAIN, "best_metric": "accuracy", **train})
    model = model or TokenModel()
    named = list(model.named_parameters())
    group = {"params": [p for _, p in named], "names": [n for n, _ in named], "scale": 1.0, "weight_decay": 0.0, "lr": 0.1}
    model, optimizer = accelerator.prepare(model, torch.optim.SGD([group]))
    return Trainer(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        task=TokenTask(),  # type: ignore[arg-type]
        method=Everything(None),  # type: ignore[arg-type]
        batches=batches,
        train=spec,
        seed=3,
        stopping=StoppingRule(mode="max", patience=patience),
        evaluate=evaluate,
    )


def weights_after(batches: Sequence[Sequence[int]], accumulation: int) -> dict[str, torch.Tensor]:
    trainer = make_trainer(Sequences(batches), gradient_accumulation_steps=accumulation)
    list(trainer.events())
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


WHOLE = [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(
    "batches",
    [
        [[0, 1], [2, 3], [4, 5], [6, 7]],
        [[0], [1], [2], [3], [4], [5], [6], [7]],
        [[0, 1, 2, 3, 4, 5, 6], [7]],
    ],
)
def test_c1_accumulation_gives_the_gradient_of_the_whole_window(batches: list[list[int]]) -> None:
    reference, found = weights_after(WHOLE, 1), weights_after(batches, len(batches))
    for name in reference:
        assert torch.allclose(reference[name], found[name], atol=1e-12, rtol=0), name


def test_c1_a_short_last_window_is_divided_by_what_it_holds() -> None:
    reference = weights_after([[0, 1, 2, 3, 4, 5], [6, 7]], 1)
    found = weights_after([[0, 1, 2], [3, 4, 5], [6, 7]], 2)
    for name in reference:
        assert torch.allclose(reference[name], found[name], atol=1e-12, rtol=0), name


def test_a_mean_of_means_would_fail_the_accumulation_test() -> None:
    """The sequences are uneven enough for the usual mistake to show."""
    sequences, model = Sequences(WHOLE), TokenModel()
    task = TokenTask()
    whole = sequences.load(np.arange(8))
    exact = float(task.loss(model(whole["ids"]), whole).detach()) / task.target_count(whole)
    parts = [sequences.load(np.array([index])) for index in range(8)]
    naive = sum(float(task.loss(model(part["ids"]), part).detach()) / task.target_count(part) for part in parts) / 8
    assert abs(exact - naive) > 1e-3


def test_reported_loss_is_the_mean_over_all_targets() -> None:
    sequences, model = Sequences(WHOLE), TokenModel()
    whole = sequences.load(np.arange(8))
    expected = float(TokenTask().loss(model(whole["ids"]), whole).detach()) / sum(LENGTHS)
    event = next(make_trainer(Sequences([[0, 1, 2], [3, 4, 5, 6, 7]]), gradient_accumulation_steps=2).events())
    assert isinstance(event, StepEvent)
    assert event.loss == pytest.approx(expected, abs=1e-12)
    assert (event.tokens, event.examples, event.step, event.epoch) == (sum(LENGTHS), 8, 1, 1.0)


PAIRS = [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("interrupted_after", [1, 3, 4, 5, 9])
def test_r2_a_run_continued_anywhere_equals_the_straight_one(interrupted_after: int) -> None:
    straight = make_trainer(Sequences(PAIRS, epochs_differ=True), TokenModel(0.5), epochs=2.5)
    expected = [event for event in straight.events() if isinstance(event, StepEvent)]
    first = make_trainer(Sequences(PAIRS, epochs_differ=True), TokenModel(0.5), epochs=2.5)
    found: list[StepEvent] = []
    for event in first.events():
        if isinstance(event, StepEvent):
            found.append(event)
        if isinstance(event, BoundaryEvent) and event.step == interrupted_after:
            break
    torch.rand(17)
    second = make_trainer(Sequences(PAIRS, epochs_differ=True), TokenModel(0.5), epochs=2.5)
    second.model.load_state_dict(first.model.state_dict())
    second.position = Position(**vars(first.position))
    found += [event for event in second.events() if isinstance(event, StepEvent)]
    assert found == expected
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


def test_dropout_differs_between_steps_and_seeds() -> None:
    model = TokenModel(0.5)
    trainer = make_trainer(Sequences([[0, 1]] * 3), model, learning_rate=1e-12)
    losses = [event.loss for event in trainer.events() if isinstance(event, StepEvent)]
    assert len(set(losses)) == 3


@pytest.mark.parametrize(
    ("train", "steps"),
    [
        ({"epochs": 2.0}, 8),
        ({"epochs": 0.5}, 2),
        ({"epochs": 1.3}, 6),
        ({"epochs": 3.0, "gradient_accumulation_steps": 3}, 6),
        ({"epochs": 1.0, "max_steps": 11}, 11),
        ({"epochs": 1.0, "max_steps": 2}, 2),
    ],
)
def test_number_of_steps(train: dict[str, Any], steps: int) -> None:
    trainer = make_trainer(Sequences(PAIRS), **train)
    assert trainer.total_steps == steps
    assert sum(isinstance(event, StepEvent) for event in trainer.events()) == steps


def test_learning_rates_of_the_events() -> None:
    trainer = make_trainer(Sequences(PAIRS), schedule="linear", warmup_ratio="auto", warmup_steps=2)
    rates = [event.learning_rate for event in trainer.events() if isinstance(event, StepEvent)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.05])


def kinds(trainer: Trainer) -> list[str]:
    short = {StepEvent: "s", EvaluationEvent: "e", BoundaryEvent: "b"}
    marks = []
    for event in trainer.events():
        due = isinstance(event, BoundaryEvent) and event.checkpoint_due
        marks.append("c" if due else short[type(event)])
    return marks


def test_evaluations_and_checkpoints_fall_where_they_are_due() -> None:
    half = {"evaluate_every": {"epochs": 0.5}, "checkpoint_every": {"steps": 3}}
    trainer = make_trainer(Sequences(PAIRS), evaluate=lambda: {"accuracy": 0.5}, epochs=2.0, **half)
    assert "".join(kinds(trainer)) == "sb" + "sec" + "sc" + "sec" + "sb" + "sec" + "sb" + "sec"


def test_the_last_step_is_always_evaluated() -> None:
    trainer = make_trainer(Sequences(PAIRS), evaluate=lambda: {"accuracy": 0.5}, epochs=0.75, evaluate_every={"steps": 100})
    assert "".join(kinds(trainer)) == "sbsbsec"


def test_early_stop_ends_after_its_checkpoint() -> None:
    values = iter([0.5, 0.4, 0.3, 0.9])
    trainer = make_trainer(Sequences(PAIRS), evaluate=lambda: {"accuracy": next(values)}, evaluate_every={"steps": 1}, patience=2)
    events = list(trainer.events())
    evaluations = [event for event in events if isinstance(event, EvaluationEvent)]
    assert [event.is_best for event in evaluations] == [True, False, False]
    assert [event.stop for event in evaluations] == [False, False, True]
    assert isinstance(events[-1], BoundaryEvent)
    assert events[-1].checkpoint_due


def test_r1_a_loss_that_is_not_finite_ends_the_run_before_the_update() -> None:
    class Breaking(Sequences):
        def load(self, indices: np.ndarray) -> dict[str, Any]:
            return super().load(indices)

    model = TokenModel()
    trainer = make_trainer(Breaking(PAIRS), model)
    events = trainer.events()
    next(events)
    with torch.no_grad():
        model.head.bias[0] = math.nan
    kept = model.embedding.weight.clone()
    with pytest.raises(DivergedError, match=r"diverged at step 2 of 4 .*the loss is nan") as caught:
        list(events)
    assert caught.value.exit_code == 3
    assert torch.equal(model.embedding.weight, kept)


def test_clipping_bounds_the_update() -> None:
    model = TokenModel()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(Sequences(WHOLE), model, max_grad_norm=1e-3, learning_rate=1.0)
    event = next(trainer.events())
    assert isinstance(event, StepEvent)
    moved = math.sqrt(sum(float(((value - before[name]) ** 2).sum()) for name, value in model.state_dict().items()))
    assert event.grad_norm > 1e-2
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_every_is_one_or_the_other() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Every.model_validate({"epochs": 1.0, "steps": 2})
