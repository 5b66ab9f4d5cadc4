"""Training as a whole: the loop's events become files, a best checkpoint, a resumable state."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ftkit.data.features import FeatureStore
from ftkit.data.splits import Splits
from ftkit.errors import DivergedError, InterruptedRunError
from ftkit.models.sharding import Sharding
from ftkit.run.folder import METRICS, MetricsLog, RunFolder, readable
from ftkit.run.observer import Observer
from ftkit.run.signals import SignalGuard
from ftkit.run.tracking import Tracking
from ftkit.run.wiring import Prepared, TrainingBatches, load_weights, weights_of
from ftkit.training.checkpoint import (
    BEST,
    RESUMABLE,
    Checkpoint,
    checkpoint_path,
    complete_checkpoints,
    open_checkpoint,
    prune,
    save_checkpoint,
)
from ftkit.training.evaluation import evaluate, to_device
from ftkit.training.events import EvaluationEvent, StepEvent
from ftkit.training.loop import Position, Trainer
from ftkit.training.optimizers import load_optimizer_state, make_optimizer, optimizer_state, parameter_groups
from ftkit.training.seeding import seed_everything
from ftkit.training.stopping import StoppingRule
from ftkit.training.unfreezing import GradualUnfreezing


@dataclass
class Totals:
    """Sums over the whole run, those of earlier processes included. Times are in seconds."""

    tokens: int = 0
    examples: int = 0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How training ended. `weights` is the checkpoint that counts: the best, or the last where nothing was evaluated."""

    weights: Checkpoint
    steps: int
    total_steps: int
    epochs: float
    totals: Totals
    best_step: int | None
    best_value: float | None
    stopped_early: bool


class TrainingSession:
    """Trains a prepared model inside a run folder."""

    def __init__(
        self,
        prepared: Prepared,
        splits: Splits,
        stores: dict[str, FeatureStore],
        folder: RunFolder,
        accelerator: Accelerator,
        observer: Observer,
        tracking: Tracking,
    ) -> None:
        self.tracking = tracking
        self.prepared, self.splits, self.stores = prepared, splits, stores
        self.folder, self.accelerator, self.observer = folder, accelerator, observer
        recipe = prepared.plan.recipe
        self.recipe, self.totals, self.epochs, self._parts = recipe, Totals(), 0.0, 1
        self.stopping = self._stopping_rule()
        self._bare = prepared.model
        self.trains = prepared.method.capabilities.trains
        self._bare.to(accelerator.device)
        sharding = None
        if recipe.train.sharding != "none":
            sharding = Sharding(self._bare, [block.module for block in prepared.layout.blocks], accelerator.device)
        # An optimizer refuses to have nothing to do.
        groups = parameter_groups(self._bare, prepared.layout, recipe.train, prepared.method) or [_nothing_to_train()]
        unfreezing = recipe.train.gradual_unfreezing
        several = accelerator.num_processes > 1
        self._unfreezing = GradualUnfreezing(self._bare, prepared.layout, unfreezing, several=several) if unfreezing else None
        if recipe.train.compile:
            # Batches differ in length; shapes known only at run time save a compilation for each.
            self._bare.compile(dynamic=True)
        optimizer = make_optimizer(groups, recipe.train)
        if self.trains and sharding is None:
            self.model, self.optimizer = accelerator.prepare(self._bare, optimizer)
        else:
            # Nothing is left to synchronize: a divided model does that by itself, and what trains nothing has no gradients.
            self.model, self.optimizer = accelerator.prepare_model(self._bare, evaluation_mode=True), optimizer
        self.model.train()
        self.trainer = Trainer(
            accelerator=accelerator,
            model=self.model,
            optimizer=self.optimizer,
            task=prepared.task,
            method=prepared.method,
            batches=TrainingBatches(stores["train"], splits.train, prepared.task, prepared.processor, recipe.train, recipe.seed),
            train=recipe.train,
            seed=recipe.seed,
            stopping=self.stopping,
            evaluate=self._evaluate if "validation" in stores else None,
            unfreezing=self._unfreezing,
            sharding=sharding,
        )
        prepared.method.training_begins(self._bare, self.trainer.total_steps)

    def _stopping_rule(self) -> StoppingRule:
        train = self.recipe.train
        spec = train.early_stopping
        directions = {metric.name: metric.direction for metric in self.prepared.task.metrics()}
        mode: Any = spec.mode if spec else directions[train.best_metric]
        return StoppingRule(mode=mode, patience=spec.patience if spec else None, min_delta=spec.min_delta if spec else 0.0)

    def _evaluate(self) -> dict[str, Any]:
        return self.evaluate_split("validation", self._names_during_training()).metrics

    def _names_during_training(self) -> list[str] | None:
        """Generating text costs far more than a forward pass: unless it decides the best weights, it waits for the end."""
        task = self.prepared.task
        if task.generates([self.recipe.train.best_metric]):
            return None
        return [metric.name for metric in task.metrics() if not task.generates([metric.name])]

    def evaluate_split(self, name: str, names: list[str] | None = None) -> Any:
        """Evaluates a split with the current weights. names: only these metrics (default: all)."""
        train, prepared = self.recipe.train, self.prepared
        return evaluate(
            self.model,
            prepared.task,
            self.stores[name],
            dict(self.splits.items())[name],
            prepared.processor,
            batch_size=int(train.eval_batch_size),
            max_tokens=train.max_tokens,
            accelerator=self.accelerator,
            names=names,
        )

    def run(self) -> Outcome:
        """Trains to the end, continuing from the newest complete checkpoint of a resumed folder.

        Raises InterruptedRunError after a checkpoint when a signal came, DivergedError when training left the finite numbers.
        """
        log = MetricsLog(self.folder.path / METRICS, writes=self.folder.writes)
        if not self.trains:
            log.close()
            return self._outcome(stopped_early=False)
        try:
            return self._outcome(stopped_early=self._restore(log) or self._train(log))
        finally:
            log.close()

    def replay(self, until: int) -> None:
        """Goes on as `run` does, but only to a checkpoint after the step `until`."""
        log = MetricsLog(self.folder.path / METRICS, writes=self.folder.writes)
        try:
            if not self._restore(log):
                self._train(log, until=until)
        finally:
            log.close()

    def _restore(self, log: MetricsLog) -> bool:
        """Brings back the newest complete checkpoint; returns whether that run had already stopped early."""
        found, notes = complete_checkpoints(self.folder.checkpoints, RESUMABLE)
        for note in notes:
            self.observer.note(note)
        if not found:
            log.rewind(0)
            if self.folder.resumed:
                self.observer.note("no complete checkpoint yet: starting from the first step")
            self._prepare_method()
            return False
        state = found[-1].state()
        with readable(found[-1].path / "state.json"):
            self.trainer.position = Position(**_numbers(state["position"]))
            self.stopping.restore(_numbers(state["stopping"]))
            self.totals, self.epochs = Totals(**_numbers(state["totals"])), float(state["epochs"])
            written, others = int(state["metrics_bytes"]), dict(state["optimizer"])
            if self.accelerator.scaler is not None and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        self._load(found[-1])
        load_optimizer_state(self._inner_optimizer(), found[-1].tensors("optimizer"), others)
        if self.stopping.best_step is not None:
            self._best_checkpoint(self.stopping.best_step)
        log.rewind(written)
        self.observer.note(f"continuing after step {found[-1].step:,} of {self.trainer.total_steps:,}")
        return bool(state["stopped_early"])

    def _prepare_method(self) -> None:
        """Lets a method that starts from the data see the first batches of the first epoch."""
        method, batches = self.prepared.method, self.trainer.batches
        if not (count := method.batches_before_training()):
            return
        self.observer.stage(f"preparing {method.name}")
        seed_everything(self.recipe.seed)
        self._bare.eval()
        method.prepare(self._bare, [partial(self._mean_loss, indices) for indices in batches.epoch(0)[:count]])
        self._bare.zero_grad(set_to_none=True)
        self._bare.train()

    def _mean_loss(self, indices: np.ndarray) -> Tensor:
        task = self.prepared.task
        batch = to_device(self.trainer.batches.load(indices), self.accelerator.device)
        return task.loss(task.forward(self._bare, batch), batch) / max(1, task.target_count(batch))

    def _train(self, log: MetricsLog, until: int | None = None) -> bool:
        """Whether it stopped early. until: the step to end after, with a checkpoint."""
        trainer, best = self.trainer, self.recipe.train.best_metric
        names = [metric.name for metric in self.prepared.task.metrics()]
        first = trainer.position.step
        self.observer.stage("training")
        self.observer.training_starts(
            total_steps=trainer.total_steps,
            first_step=first,
            metrics=names,
            best_metric=best,
            unit=self.prepared.task.length_unit,
        )
        stopped_early, pace = False, _Pace(first, trainer.total_steps)
        with SignalGuard() as guard:
            processes = trainer.processes
            mark = time.perf_counter()
            for event in trainer.events():
                elapsed, mark = time.perf_counter() - mark, time.perf_counter()
                if isinstance(event, StepEvent):
                    self._on_step(event, elapsed, log, pace)
                elif isinstance(event, EvaluationEvent):
                    self.totals.evaluation_seconds += elapsed
                    stopped_early = event.stop
                    self._on_evaluation(event, log)
                else:
                    # A signal may have reached one process only, and all have to stop at the same step.
                    received = processes.largest(int(guard.received or 0))
                    arrived = event.step == until
                    if event.checkpoint_due or received or arrived:
                        self._save(log, stopped_early)
                    if received:
                        raise _interrupted(received, trainer.position.step, trainer.total_steps)
                    if arrived:
                        break
                mark = time.perf_counter()
        return stopped_early

    def try_batch(self, indices: np.ndarray) -> None:
        """Forward and backward over a batch of which nothing is kept; says so if memory asks for smaller parts."""
        self.trainer.gradients.rehearse(indices)
        self._note_parts("the longest batch does not fit into memory")

    def _note_parts(self, why: str) -> None:
        if (parts := self.trainer.gradients.parts) > self._parts:
            self._parts = parts
            self.observer.note(
                f"{why}: batches go through the model in {parts} parts from here on; what a step learns from stays the same"
            )

    def _on_step(self, event: StepEvent, seconds: float, log: MetricsLog, pace: _Pace) -> None:
        self.totals.tokens += event.tokens
        self.totals.examples += event.examples
        self.totals.training_seconds += seconds
        self.epochs = event.epoch
        log.append("step", asdict(event))
        self._note_parts(f"memory ran out at step {event.step:,}")
        rate, left = pace.update(event, seconds)
        self.observer.step(event, tokens_per_second=rate, seconds_left=left)
        self.tracking.log(
            {"loss": event.loss, "learning_rate": event.learning_rate, "grad_norm": event.grad_norm, "epoch": event.epoch},
            event.step,
        )

    def _on_evaluation(self, event: EvaluationEvent, log: MetricsLog) -> None:
        log.append("evaluation", {"step": event.step, "epoch": event.epoch, "metrics": event.metrics, "is_best": event.is_best})
        if event.is_best:
            self._write(BEST, event.step, self._weights(), {"metrics": event.metrics})
        self.observer.evaluation(event)
        self.tracking.log({f"validation/{name}": value for name, value in event.metrics.items() if value is not None}, event.step)

    def _write(self, kind: str, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]) -> Checkpoint:
        """A checkpoint, written by the main process; the others have it to read when this returns."""
        if self.folder.writes:
            saved = save_checkpoint(self.folder.checkpoints, kind, step, tensors, state)
        else:
            saved = Checkpoint(checkpoint_path(self.folder.checkpoints, kind, step), step)
        self.trainer.processes.wait()
        return saved

    def _save(self, log: MetricsLog, stopped_early: bool) -> None:
        tensors, others = optimizer_state(self._inner_optimizer())
        scaler = self.accelerator.scaler
        state = {
            "position": asdict(self.trainer.position),
            "stopping": self.stopping.state(),
            "stopped_early": stopped_early,
            "totals": asdict(self.totals),
            "epochs": self.epochs,
            "metrics_bytes": log.position(),
            "optimizer": others,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        contents = {**self._weights(), "optimizer": tensors}
        self._write(RESUMABLE, self.trainer.position.step, contents, state)
        if self.folder.writes:
            prune(self.folder.checkpoints, keep=self.recipe.train.keep_checkpoints, best_step=self.stopping.best_step)

    def _weights(self) -> dict[str, Mapping[str, Tensor]]:
        if self._unfreezing:
            self._unfreezing.thaw()
        found = weights_of(self.prepared)
        if broken := next((name for name, value in found["trainable"].items() if not bool(value.isfinite().all())), ""):
            hint = "Nothing was exported. Lower train.learning_rate, or raise train.warmup_ratio"
            message = f"training diverged by step {self.trainer.position.step}: {broken} holds numbers that are not finite"
            raise DivergedError(message, hint=hint)
        return found

    def _load(self, checkpoint: Checkpoint) -> None:
        if self._unfreezing:
            self._unfreezing.thaw()
        load_weights(self.prepared, checkpoint.tensors)

    def _inner_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _outcome(self, stopped_early: bool) -> Outcome:
        return Outcome(
            weights=self._best_weights(),
            steps=self.trainer.position.step,
            total_steps=self.trainer.total_steps if self.trains else 0,
            epochs=self.epochs,
            totals=self.totals,
            best_step=self.stopping.best_step,
            best_value=self.stopping.best_value,
            stopped_early=stopped_early,
        )

    def _best_weights(self) -> Checkpoint:
        """The best checkpoint, loaded back into the model; the current weights, saved as such, where none was evaluated."""
        step = self.stopping.best_step
        if step is None:
            return self._write(BEST, self.trainer.position.step, self._weights(), {"metrics": {}})
        found = self._best_checkpoint(step)
        self._load(found)
        return found

    def _best_checkpoint(self, step: int) -> Checkpoint:
        # By its name: others in that folder may be vanishing, when the main process removes all but the newest.
        return open_checkpoint(checkpoint_path(self.folder.checkpoints, BEST, step))


def _nothing_to_train() -> dict[str, Any]:
    return {"params": [torch.nn.Parameter(torch.zeros(1))], "names": [""], "weight_decay": 0.0, "scale": 1.0, "lr": 0.0}


class _Pace:
    """Speed over the recent steps, for the display only."""

    def __init__(self, first: int, total: int) -> None:
        self._first, self._total = first, total
        self._tokens_per_second = self._step_seconds = 0.0

    def update(self, event: StepEvent, seconds: float) -> tuple[float, float]:
        """(tokens per second, seconds left), smoothed over about 20 steps."""
        fresh = event.step - self._first
        share = max(0.05, 1.0 / fresh)
        self._step_seconds += share * (seconds - self._step_seconds)
        self._tokens_per_second += share * (event.tokens / max(seconds, 1e-9) - self._tokens_per_second)
        return self._tokens_per_second, self._step_seconds * (self._total - event.step)


def _interrupted(number: int, step: int, total: int) -> InterruptedRunError:
    name = signal.Signals(number).name
    return InterruptedRunError(
        f"{name} received: stopped after step {step:,} of {total:,}; a checkpoint is written. Continue with --resume",
        exit_code=128 + number,
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a part of state.json. Raises TypeError for one that is neither a number nor null."""
    if wrong := [name for name, value in values.items() if value is not None and type(value) not in (int, float)]:
        raise TypeError(f"{', '.join(wrong)} should be numbers")
    return dict(values)
