"""One pass over a split: loss, predictions and metrics, each example exactly once, whatever the batch size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ftkit.data.batching import eval_batches
from ftkit.data.features import FeatureStore
from ftkit.data.table import Table
from ftkit.models.sharding import gathered, is_sharded
from ftkit.tasks.base import Batch, Prediction, Task
from ftkit.training.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of a split and the prediction for each of its rows, in row order."""

    metrics: dict[str, Any]
    predictions: list[Prediction]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode comes back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def predict_features(
    model: nn.Module,
    task: Task,
    features: FeatureStore,
    processor: Any,
    *,
    batch_size: int,
    max_tokens: int | None,
    accelerator: Accelerator,
    names: Sequence[str] | None = None,
    presenting: bool = False,
) -> tuple[list[Prediction], float, int]:
    """Predictions of this split (in row order), the sum of its losses and the number of its targets.

    Rows without targets count nothing. With several processes each takes a share and all get the whole.
    names: metrics that the predictions are for (None: all); presenting: they are for `present`. Text is generated only where needed.
    """
    processes = Processes(accelerator)
    batches = eval_batches(features.lengths, batch_size=batch_size, max_tokens=max_tokens)
    mine = batches[processes.rank :: processes.size]
    # Each call of a divided model is one of all processes.
    turns = -(-len(batches) // processes.size) if is_sharded(model) else len(mine)
    # Wrappers that synchronize in a forward pass would wait for processes that have a batch less.
    model = accelerator.unwrap_model(model)
    generates = task.generates(names) or (presenting and task.generates_to_present)
    done: list[_Done] = []
    with evaluating(model):
        for turn in range(turns):
            taken = features.take(mine[turn] if turn < len(mine) else batches[0][:1])
            batch = to_device(task.collate(taken, processor), accelerator.device)
            count, loss = task.target_count(batch), 0.0
            found: list[Prediction] = [{"example": int(feature["example"])} for feature in taken]
            if count or not generates:
                outputs = task.forward(model, batch)
                loss = float(task.loss(outputs, batch)) if count else 0.0
                found = task.predictions(outputs, batch)
            if generates:
                with gathered(model):
                    texts = task.generate(model, taken, processor)
                found = [{**prediction, **text} for prediction, text in zip(found, texts, strict=True)]
            if turn < len(mine):
                done.append((found, loss, count))
    done = _in_turn(processes.gathered(done))
    predictions = [prediction for found, _, _ in done for prediction in found]
    return _by_example(predictions, task), sum(loss for _, loss, _ in done), sum(count for _, _, count in done)


_Done = tuple[list[Prediction], float, int]
"""Of one batch: its predictions, the sum of its losses, the number of its targets."""


def _in_turn(shares: list[list[_Done]]) -> list[_Done]:
    """Batches that processes took in turn, in their own order: sums and ties come out as in one process."""
    return [share[turn] for turn in range(len(shares[0])) for share in shares if turn < len(share)]


def _by_example(predictions: Sequence[Prediction], task: Task) -> list[Prediction]:
    parts: dict[int, list[Prediction]] = {}
    for prediction in predictions:
        parts.setdefault(int(prediction["example"]), []).append(prediction)
    return [task.combine(parts[example]) for example in sorted(parts)]


def evaluate(
    model: nn.Module,
    task: Task,
    features: FeatureStore,
    rows: Table,
    processor: Any,
    *,
    batch_size: int,
    max_tokens: int | None,
    accelerator: Accelerator,
    names: Sequence[str] | None = None,
) -> Evaluation:
    """Metrics over the whole split, computed once, by the main process.

    names: only these besides the loss (default: all of the task's).
    """
    predictions, losses, targets = predict_features(
        model, task, features, processor, batch_size=batch_size, max_tokens=max_tokens, accelerator=accelerator, names=names
    )
    found = [int(prediction["example"]) for prediction in predictions]
    if found != list(range(len(rows))):
        raise RuntimeError(f"the evaluation covered {len(set(found))} of {len(rows)} examples, {len(found)} times in all")
    processes = Processes(accelerator)
    metrics = processes.agreed(task.score(predictions, rows, names) if processes.is_main else {})
    return Evaluation(metrics={**metrics, "loss": losses / targets if targets else None}, predictions=predictions)
