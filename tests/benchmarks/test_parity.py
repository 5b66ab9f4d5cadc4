"""Where batches are the same and nothing is random, ftkit and transformers' Trainer end with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftkit.run.wiring import make_accelerator, prepare_model
from ftkit.training.events import StepEvent
from ftkit.training.loop import Trainer as Loop
from ftkit.training.optimizers import make_optimizer, parameter_groups
from ftkit.training.stopping import StoppingRule
from tests.benchmarks.tiny_tasks import BATCH_SIZE, SQUAD2, TASKS

LORA = "{name: lora, rank: 4}"
STEADY = {"question-answering": {"adam_epsilon": 1e-3}}
"""What all positions share changes no answer: its gradient is rounding errors alone, of which Adam would make whole steps."""


class InOrder:
    """Batches of the training rows in the order of the file."""

    def __init__(self, prepared: Any) -> None:
        self.store, self.prepared = prepared.stores["train"], prepared

    def epoch(self, epoch: int) -> list[np.ndarray]:
        return [np.arange(start, min(start + BATCH_SIZE, len(self.store))) for start in range(0, len(self.store), BATCH_SIZE)]

    def load(self, indices: np.ndarray) -> Any:
        return self.prepared.task.collate(self.store.take(indices), self.prepared.tokenizer, training=True)

    def tokens(self, indices: np.ndarray) -> int:
        return int(self.store.lengths[indices].sum())


def train_ours(prepared: Any) -> tuple[Any, list[float]]:
    """The trained model and the loss of each step."""
    plan = prepared.plan
    made = prepare_model(plan, prepared.task, prepared.tokenizer, seed=plan.recipe.seed, allow_code=False)
    groups = parameter_groups(made.model, made.layout, plan.recipe.train)
    accelerator = make_accelerator("fp32", trackers=[], folder=None)
    model, optimizer = accelerator.prepare(made.model, make_optimizer(groups, plan.recipe.train))
    model.train()
    loop = Loop(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        task=prepared.task,
        method=made.method,
        batches=InOrder(prepared),
        train=plan.recipe.train,
        seed=plan.recipe.seed,
        stopping=StoppingRule(mode="max", patience=None),
        evaluate=None,
    )
    losses = [event.loss for event in loop.events() if isinstance(event, StepEvent)]
    return made.model, losses


def train_theirs(reference: Any, folder: Path) -> tuple[Any, list[float]]:
    """The same with transformers' Trainer."""
    model, examples = reference.model(), reference.examples(reference.prepared.rows("train"), training=True)
    trainer = reference.trainer(model, examples, str(folder / "trainer"), train_sampling_strategy="sequential", logging_steps=1)
    trainer.train()
    return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_training(reference: Any, folder: Path) -> None:
    ours, our_losses = train_ours(reference.prepared)
    theirs, their_losses = train_theirs(reference, folder)
    assert len(our_losses) == len(their_losses) >= 3 * 5
    assert our_losses == pytest.approx(their_losses, abs=1e-4)
    expected = {name: weight.detach() for name, weight in theirs.named_parameters()}
    moved = 0.0
    fresh = dict(reference.model().named_parameters())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(
            weight.detach(), expected[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        moved = max(moved, float((expected[name] - fresh[name].detach()).abs().max()))
    assert moved > 1e-2, "the Trainer trained"


@pytest.mark.parametrize("method", ["full", LORA, "{name: partial, top_blocks: 1}", "linear-probe"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_same_batches_give_the_trainers_weights(sides: Any, request_for: Any, tmp_path: Path, method: str, schedule: str) -> None:
    request = request_for("text-classification", method, schedule=schedule, warmup_steps=0, max_grad_norm=0.5)
    measure = sides("measure")
    assert_same_training(measure.make_reference(measure.planned(request)), tmp_path)


@pytest.mark.parametrize("method", ["full", LORA])
@pytest.mark.parametrize("task", [name for name in TASKS if name != "text-classification"])
def test_every_task_gives_the_trainers_weights(sides: Any, request_for: Any, tmp_path: Path, task: str, method: str) -> None:
    measure = sides("measure")
    request = request_for(task, method, warmup_steps=0, max_grad_norm=0.5, **STEADY.get(task, {}))
    reference = measure.make_reference(measure.planned(request))
    examples = reference.examples(reference.prepared.rows("train"), training=True)
    same = measure.same_examples(reference, examples)
    assert same == [(place, place) for place in range(len(examples))], "the same tokens and targets in the same order"
    assert_same_training(reference, tmp_path)


def test_questions_without_an_answer_give_the_trainers_weights(sides: Any, request_for: Any, tmp_path: Path) -> None:
    measure = sides("measure")
    request = request_for("question-answering", tiny=SQUAD2, warmup_steps=0, **STEADY["question-answering"])
    assert_same_training(measure.make_reference(measure.planned(request)), tmp_path)


@pytest.mark.parametrize("task", ["token-classification", "language-modeling"])
def test_label_smoothing_is_the_trainers(sides: Any, request_for: Any, tmp_path: Path, task: str) -> None:
    measure = sides("measure")
    request = request_for(task, label_smoothing=0.1, warmup_steps=0)
    assert_same_training(measure.make_reference(measure.planned(request)), tmp_path)
