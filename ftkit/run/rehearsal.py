"""What would end a run after hours, tried before its first step: the longest batches, and the room for checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ftkit.data.batching import eval_batches
from ftkit.data.features import FeatureStore
from ftkit.errors import MemoryExhaustedError, Problem, RunFolderError
from ftkit.models.sharding import gathered
from ftkit.run.training import TrainingSession
from ftkit.training.evaluation import evaluating, to_device
from ftkit.training.memory import lacks_memory

MIB = 2**20


def rehearse(session: TrainingSession) -> None:
    """Raises MemoryExhaustedError if the longest batches do not fit into memory.

    The longest batch of training goes forward and backward, that of each evaluation forward; on a GPU its texts are generated, too.
    Weights, optimizer and the random numbers of training stay as they are.
    """
    if not session.trains:
        return
    session.observer.stage("trying the longest batches")
    train = session.recipe.train
    longest = eval_batches(session.stores["train"].lengths, batch_size=train.batch_size, max_tokens=train.max_tokens)[0]
    buffers = {name: buffer.clone() for name, buffer in session.model.named_buffers()}
    try:
        session.try_batch(longest)
    except Exception as error:
        raise _explained(error, session.stores["train"], longest, "train.batch_size") from error
    for name, buffer in session.model.named_buffers():
        buffer.copy_(buffers[name])
    for name in ("validation", "test"):
        if name in session.stores:
            _try_evaluation(session, session.stores[name])


def refuse_full_disk(folder: Path, disk: Mapping[str, float]) -> None:
    """Raises RunFolderError if the file system has no room for what the run will write. disk: MiB, of `planning.disk_of`."""
    free = shutil.disk_usage(folder).free / MIB
    if free < disk["total"]:
        parts = f"checkpoints {disk['checkpoints']:,.0f}, exports {disk['exports']:,.0f}"
        message = f"the run needs {disk['total']:,.0f} MiB ({parts}), and {free:,.0f} MiB are free"
        hint = "Free space, choose another --output, or lower train.keep_checkpoints"
        raise RunFolderError(Problem(message=message, place=str(folder), hint=hint))


def _try_evaluation(session: TrainingSession, store: FeatureStore) -> None:
    train, task = session.recipe.train, session.prepared.task
    longest = eval_batches(store.lengths, batch_size=int(train.eval_batch_size), max_tokens=train.max_tokens)[0]
    model, processor = session.accelerator.unwrap_model(session.model), session.prepared.processor
    taken = store.take(longest)
    try:
        with evaluating(model):
            batch = to_device(task.collate(taken, processor), session.accelerator.device)
            task.predictions(task.forward(model, batch), batch)
            if task.generates(None) and session.accelerator.device.type != "cpu":
                with gathered(model):
                    task.generate(model, taken, processor)
    except Exception as error:
        raise _explained(error, store, longest, "train.eval_batch_size") from error


def _explained(error: Exception, store: FeatureStore, rows: np.ndarray, key: str) -> Exception:
    if not lacks_memory(error):
        return error
    lengths = store.lengths[rows]
    message = f"out of memory on the longest batch: {len(lengths)} rows of up to {int(lengths.max()):,} tokens"
    smaller = "Lower it, or task.max_length; for training, train.gradient_checkpointing keeps less"
    return MemoryExhaustedError(Problem(message=message, key=key, hint=smaller))
