"""The training loop: a generator of events. It saves nothing, prints nothing and decides nothing about files.

What holds by construction:
- The loss of an optimizer step is the sum over all supervised targets of its accumulation window, over all processes, divided by
  their number. So the gradient does not depend on how the window is cut into batches.
- A window holds `batch_size x gradient_accumulation_steps` examples however many processes share it. So steps, rates and order are
  those of a run in one process.
- Batches are a pure function of (seed, epoch), randomness of (seed, step, process), the rate of the step. A run that continues
  from step k does exactly what an uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from ftkit.errors import DivergedError
from ftkit.methods.base import Method
from ftkit.models.sharding import Sharding
from ftkit.recipe.schema import Every, TrainSpec
from ftkit.tasks.base import Task
from ftkit.training.events import BoundaryEvent, EvaluationEvent, Event, StepEvent
from ftkit.training.gradients import BatchSource, Gradients
from ftkit.training.optimizers import set_learning_rate
from ftkit.training.schedule import learning_rate_factor
from ftkit.training.seeding import seed_everything
from ftkit.training.stopping import StoppingRule
from ftkit.training.unfreezing import GradualUnfreezing

MAX_SKIPPED_STEPS = 20
"""Steps in a row that fp16's loss scaler may skip before the run counts as diverged: by then the scale has shrunk 2^20-fold."""


@dataclass
class Position:
    """How far a run is: finished optimizer steps, the current epoch and its finished windows; and the parts that batches are cut into
    since memory ran out."""

    step: int = 0
    epoch: int = 0
    window: int = 0
    parts: int = 1


class Trainer:
    """Trains a prepared model; iterate over `events()`.

    model and optimizer are those that `accelerator.prepare` returned, or a divided model (`sharding`) and an optimizer over its
    shares; `evaluate` gives the metrics of the validation split, None if there is none. `position` may be set before the first event
    to continue an earlier run.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        task: Task,
        method: Method,
        batches: BatchSource,
        train: TrainSpec,
        seed: int,
        stopping: StoppingRule,
        evaluate: Callable[[], dict[str, Any]] | None,
        unfreezing: GradualUnfreezing | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.task, self.method, self.batches, self.train, self.seed = task, method, batches, train, seed
        self.stopping, self.evaluate, self.unfreezing, self.sharding = stopping, evaluate, unfreezing, sharding
        self.position = Position()
        self._window_size = train.gradient_accumulation_steps
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._skipped = 0
        self.gradients = Gradients(
            accelerator=accelerator,
            model=model,
            parameters=self._parameters,
            task=task,
            method=method,
            batches=batches,
            train=train,
            sharding=sharding,
        )
        self.processes = self.gradients.processes
        self.total_steps = count_steps(train, batches)
        warmup = warmup_steps(train, self.total_steps)
        self._factor = learning_rate_factor(train.schedule, warmup_steps=warmup, total_steps=self.total_steps)

    def never_trained(self) -> str:
        """What gradual unfreezing does not reach in this run, '' for nothing."""
        if self.unfreezing is None:
            return ""
        left, epoch = self.total_steps, 0
        while left > (windows := math.ceil(len(self.batches.epoch(epoch)) / self._window_size)):
            left, epoch = left - windows, epoch + 1
        return self.unfreezing.never_trained(step=self.total_steps - 1, epoch=epoch + (left - 1) / windows)

    def events(self) -> Iterator[Event]:
        """Runs from `position` to the end (or an early stop), yielding what happens.

        Raises DivergedError when a loss or gradient is not finite; the parameters are then those of the last good step.
        """
        position = self.position
        while position.step < self.total_steps:
            batches = self.batches.epoch(position.epoch)
            windows = math.ceil(len(batches) / self._window_size)
            while position.window < windows and position.step < self.total_steps:
                before = position.epoch + position.window / windows
                if self.unfreezing:
                    self.unfreezing.update(step=position.step, epoch=before)
                start = position.window * self._window_size
                event = self._step(batches[start : start + self._window_size], windows)
                yield event
                last = position.step == self.total_steps
                evaluation = self._evaluation_due(before, event, last)
                if evaluation:
                    yield evaluation
                stop = evaluation is not None and evaluation.stop
                due = evaluation is not None or last or _due(self.train.checkpoint_every, event.step, before, event.epoch)
                yield BoundaryEvent(step=position.step, checkpoint_due=due)
                if stop:
                    return
            if position.window == windows:
                position.epoch, position.window = position.epoch + 1, 0

    def _evaluation_due(self, before: float, event: StepEvent, last: bool) -> EvaluationEvent | None:
        if self.evaluate is None or not (last or _due(self.train.evaluate_every, event.step, before, event.epoch)):
            return None
        metrics = self.evaluate()
        if (loss := metrics.get("loss")) is not None and not math.isfinite(loss):
            raise DivergedError(
                f"training diverged by step {event.step} of {self.total_steps}: the validation loss is {loss}",
                hint="Nothing was exported. Lower train.learning_rate, or raise train.warmup_ratio",
            )
        verdict = self.stopping.update(metrics.get(self.train.best_metric), event.step, metrics.get("loss"))
        return EvaluationEvent(step=event.step, epoch=event.epoch, metrics=metrics, is_best=verdict.is_best, stop=verdict.stop)

    def _step(self, window: Sequence[np.ndarray], windows_in_epoch: int) -> StepEvent:
        """One optimizer step over a window of batches."""
        position = self.position
        rate = float(self.train.learning_rate) * self._factor(position.step)
        set_learning_rate(self.optimizer, rate)
        self.gradients.parts = max(self.gradients.parts, position.parts)
        loss = self.gradients.accumulate(window, partial(seed_everything, self.seed, position.step, self.processes.rank))
        position.parts = self.gradients.parts
        if self.unfreezing:
            self.unfreezing.drop_gradients()
        grad_norm = self._clip()
        self._refuse_divergence(loss, grad_norm, rate)
        self.optimizer.step()
        self.method.after_step(self.accelerator.unwrap_model(self.model), position.step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        position.step, position.window = position.step + 1, position.window + 1
        return StepEvent(
            step=position.step,
            epoch=position.epoch + position.window / windows_in_epoch,
            loss=loss,
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens=sum(self.batches.tokens(indices) for indices in window),
            examples=sum(len(indices) for indices in window),
        )

    def _clip(self) -> float:
        limit = math.inf if self.train.max_grad_norm is None else self.train.max_grad_norm
        if self.sharding:
            return self.sharding.clip(self._parameters, limit)
        return float(self.accelerator.clip_grad_norm_(self._parameters, limit))

    def _refuse_divergence(self, loss: float, grad_norm: float, rate: float) -> None:
        scaled = self.accelerator.scaler is not None
        self._skipped = self._skipped + 1 if scaled and not math.isfinite(grad_norm) else 0
        gradient_is_bad = not math.isfinite(grad_norm) and (not scaled or self._skipped > MAX_SKIPPED_STEPS)
        if math.isfinite(loss) and not gradient_is_bad:
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {grad_norm}"
        raise DivergedError(
            f"training diverged at step {self.position.step + 1} of {self.total_steps} (learning rate {rate:.3g}): {what}",
            hint="Nothing was exported. Lower train.learning_rate, raise train.warmup_ratio, or look for broken rows with `ftkit inspect`",
        )


def count_steps(train: TrainSpec, batches: BatchSource) -> int:
    """Optimizer steps of a whole run: `max_steps` where given, else those of `epochs` passes (the last may be partial)."""
    if train.max_steps:
        return train.max_steps

    def windows(epoch: int) -> int:
        return math.ceil(len(batches.epoch(epoch)) / train.gradient_accumulation_steps)

    whole = int(float(train.epochs) + 1e-9)
    rest = float(train.epochs) - whole
    steps = sum(windows(epoch) for epoch in range(whole))
    return steps + (math.ceil(rest * windows(whole) - 1e-9) if rest > 1e-9 else 0)


def warmup_steps(train: TrainSpec, total_steps: int) -> int:
    """Steps with a rising rate: `warmup_steps` where given, else `warmup_ratio` of all, rounded up."""
    return train.warmup_steps if train.warmup_steps is not None else math.ceil(float(train.warmup_ratio) * total_steps)


def _due(every: Every, step: int, before: float, after: float) -> bool:
    """Whether a multiple of `every` lies in the step that led from epoch `before` to epoch `after`."""
    if every.steps:
        return step % every.steps == 0
    distance = every.epochs or 1.0
    return math.floor(after / distance + 1e-9) > math.floor(before / distance + 1e-9)
