"""Where batches are the same and nothing is random, ftkit and transformers' Trainer end with the same weights."""

from __future__ import annotations

import importlib
import json
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
from tests.benchmarks.test_benchmarks import SCRIPTS
from tests.tiny import save_tiny

BATCH_SIZE = 4


class InOrder:
    """Batches of the training rows in the order of the file."""

    def __init__(self, prepared: Any) -> None:
        self.store, self.prepared = prepared.stores["train"], prepared

    def epoch(self, epoch: int) -> list[np.ndarray]:
        return [np.arange(start, min(start + BATCH_SIZE, len(self.store))) for start in range(0, len(self.store), BATCH_SIZE)]

    def load(self, indices: np.ndarray) -> Any:
        return self.prepared.task.collate(self.store.take(indices), self.prepared.tokenizer)

    def tokens(self, indices: np.ndarray) -> int:
        return int(self.store.lengths[indices].sum())


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("sides")


@pytest.fixture
def request_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "bert", "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, **dropout}))
    for name in ("train", "test"):
        rows = [
            {"text": " ".join(f"w{(number * word) % 41}" for word in range(1, 3 + number % 7)), "label": number % 2}
            for number in range(18)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def make(method: str, **train: Any) -> dict[str, Any]:
        settings = {"epochs": 3.0, "batch_size": BATCH_SIZE, "learning_rate": 1e-2, "weight_decay": 0.1, **train}
        keys = {
            "model": str(tmp_path / "bert"),
            "task": "text-classification",
            "data": "{train: train.jsonl, test: test.jsonl, leaks: 'off'}",
            "method": method,
            "train": json.dumps(settings),
        }
        path = tmp_path / "tiny.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
        return {"recipe": str(path), "overrides": [], "seed": 3, "precision": "fp32"}

    return make


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


def train_theirs(sides: Any, prepared: Any, folder: Path) -> tuple[Any, list[float]]:
    """The same with transformers' Trainer."""
    from transformers import Trainer

    model, rows = sides.reference_model(prepared), sides.as_dataset(prepared.stores["train"])
    settings = sides.trainer_arguments(prepared.plan, len(rows), str(folder / "trainer"))
    settings.train_sampling_strategy, settings.logging_steps = "sequential", 1
    trainer = Trainer(model=model, args=settings, train_dataset=rows, processing_class=prepared.tokenizer)
    trainer.train()
    return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("method", ["full", "{name: lora, rank: 4}", "{name: partial, top_blocks: 1}", "linear-probe"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_same_batches_give_the_trainers_weights(sides: Any, request_for: Any, tmp_path: Path, method: str, schedule: str) -> None:
    request = request_for(method, schedule=schedule, warmup_steps=0, max_grad_norm=0.5)
    prepared = sides.Prepared(sides.planned(request))
    ours, our_losses = train_ours(prepared)
    theirs, their_losses = train_theirs(sides, prepared, tmp_path)
    assert len(our_losses) == len(their_losses) == 3 * 5
    assert our_losses == pytest.approx(their_losses, abs=1e-4)
    expected = {name: weight.detach() for name, weight in theirs.named_parameters()}
    moved = 0.0
    fresh = dict(sides.reference_model(prepared).named_parameters())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(
            weight.detach(), expected[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        moved = max(moved, float((expected[name] - fresh[name].detach()).abs().max()))
    assert moved > 1e-2, "the Trainer trained"
