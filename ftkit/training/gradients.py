"""The gradient of one optimizer step: of a window of batches, over all processes, in as many forward passes as memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ftkit.methods.base import Method
from ftkit.models.sharding import Sharding
from ftkit.recipe.schema import TrainSpec
from ftkit.tasks.base import Batch, Task
from ftkit.training.evaluation import to_device
from ftkit.training.memory import free_memory, lacks_memory
from ftkit.training.processes import Processes


class BatchSource(Protocol):
    """Training batches of any epoch."""

    def epoch(self, epoch: int) -> Sequence[np.ndarray]:
        """Feature indices of each batch of an epoch; a pure function of the epoch."""

    def load(self, indices: np.ndarray) -> Batch:
        """The batch of these features, on the CPU."""

    def tokens(self, indices: np.ndarray) -> int:
        """Tokens of these features without padding."""


class Gradients:
    """Leaves gradients in the parameters.

    parts: into how many forward passes each batch is cut. It grows where memory runs out (`train.out_of_memory: halve`), and the
    gradient stays that of the whole window.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        task: Task,
        method: Method,
        batches: BatchSource,
        train: TrainSpec,
        sharding: Sharding | None,
    ) -> None:
        self._accelerator, self._model, self._parameters = accelerator, model, parameters
        self._task, self._method, self._batches, self._train, self._sharding = task, method, batches, train, sharding
        self.processes = Processes(accelerator)
        self.parts = 1

    def accumulate(self, window: Sequence[np.ndarray], begin: Callable[[], None]) -> float:
        """The mean loss of a window of batches, whose gradient is then in the parameters. begin: sets the seeds of the step."""
        while True:
            begin()
            loss = self._attempt(window)
            if loss is not None:
                return loss

    def rehearse(self, indices: np.ndarray) -> None:
        """Forward and backward over a batch, and nothing of it kept: finds the parts that memory needs, in all processes the same."""
        while True:
            lacking = self._lacks_memory_for(indices)
            if not self.processes.largest(int(lacking)):
                return
            self.parts *= 2

    def _attempt(self, window: Sequence[np.ndarray]) -> float | None:
        """The mean loss; None where memory ran out and a smaller batch is to be tried."""
        try:
            return self._whole(window)
        except Exception as error:
            # The other processes are in the middle of the same step and wait for this one.
            if not lacks_memory(error) or self.processes.size > 1 or not self._can_halve(window):
                raise
        # Outside of the `except`, so that the error no longer holds the tensors that filled the memory.
        self._forget()
        free_memory()
        self.parts *= 2
        return None

    def _lacks_memory_for(self, indices: np.ndarray) -> bool:
        try:
            pieces = cut([(indices, True)], self.parts)
            self._backward([(self._batches.load(piece), real) for piece, real in pieces], 1, apart=self._sharding is None)
        except Exception as error:
            if not lacks_memory(error) or self._sharding is not None or not self._can_halve([indices]):
                raise
            lacking = True
        else:
            lacking = False
        self._forget()
        if lacking:
            free_memory()
        return lacking

    def _can_halve(self, window: Sequence[np.ndarray]) -> bool:
        largest = max(len(indices) for indices in window)
        return self._train.out_of_memory == "halve" and self.parts * self.processes.size < largest

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _whole(self, window: Sequence[np.ndarray]) -> float:
        # The calls of a divided model are of all processes, whose batches may differ in size.
        parts = 1 if self._sharding else self.parts
        share = cut(share_of(window, self.processes.rank, self.processes.size), parts)
        loaded = [(self._batches.load(indices), real) for indices, real in share]
        targets = self.processes.total(sum(self._task.target_count(batch) for batch, real in loaded if real))
        total = self._backward(loaded, targets)
        if self._sharding:
            self._sharding.finish_gradients()
        return float(self._accelerator.reduce(total, "sum") if self.processes.size > 1 else total)

    def _backward(self, loaded: Sequence[tuple[Batch, bool]], targets: int, *, apart: bool = False) -> torch.Tensor:
        """Accumulates the gradient of the window's mean loss; returns this process's share of that mean. apart: tells no other process."""
        accelerator = self._accelerator
        total = torch.zeros((), device=accelerator.device)
        for number, (batch, real) in enumerate(loaded):
            last = number == len(loaded) - 1
            with self._accumulating(last and not apart):
                placed = to_device(batch, accelerator.device)
                outputs = self._task.forward(self._model, placed)
                loss = self._task.loss(outputs, placed, label_smoothing=self._train.label_smoothing) / max(1, targets)
                loss = loss if real else loss * 0.0
                total = total + loss.detach()
                # Data parallelism averages gradients over processes; the window's count is already that of all of them.
                scaled = loss * self.processes.size
                extra = self._method.extra_loss(accelerator.unwrap_model(self._model)) if last else None
                accelerator.backward(scaled if extra is None else scaled + extra)
        return total

    def _accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients travel between processes in the last backward pass of a step alone."""
        if self._sharding:
            self._sharding.synchronize(last)
        return nullcontext() if last or self._sharding else self._accelerator.no_sync(self._model)


def share_of(window: Sequence[np.ndarray], process: int, processes: int) -> list[tuple[np.ndarray, bool]]:
    """The batches that a process takes of a window of batches: as equal in number and size as the window allows.

    Whole batches where they come out even, else equal parts of them. All processes get equally many, since all join each
    synchronization: where there is nothing left, a batch that counts for nothing (False).
    """
    parts = processes // math.gcd(len(window), processes)
    pieces = [indices[part::parts] for indices in window for part in range(parts)]
    mine = pieces[process::processes]
    return [(piece, True) if len(piece) else (window[0][:1], False) for piece in mine]


def cut(share: Sequence[tuple[np.ndarray, bool]], parts: int) -> list[tuple[np.ndarray, bool]]:
    """The same batches, each in as many equal parts, none of them empty."""
    return [(piece, real) for indices, real in share for piece in np.array_split(indices, min(parts, len(indices)))]
