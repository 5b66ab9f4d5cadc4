"""Makes what a run needs out of a plan: data, model, method, accelerator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from ftkit.data.batching import BatchList, epoch_batches, rows_per_epoch
from ftkit.data.features import FeatureStore, encode_table
from ftkit.data.pool import number_of_workers
from ftkit.data.splits import Splits
from ftkit.data.table import Table
from ftkit.errors import DataError, ModelError, Problem, RecipeError
from ftkit.methods.base import Method
from ftkit.models.layout import ModelLayout
from ftkit.models.load import load_model
from ftkit.models.processor import align_padding, load_processor, processor_key
from ftkit.models.sharding import whole
from ftkit.models.trainable import load_trainable, trainable_state
from ftkit.recipe.plan import Plan
from ftkit.recipe.schema import Auto, TrainSpec
from ftkit.run.observer import Observer
from ftkit.tasks.base import Batch, Task
from ftkit.training.seeding import seed_everything


@dataclass
class Prepared:
    """A model ready to train or to use, and what goes with it.

    model: what `method.apply` returned, on the CPU; trained parameters are float32.
    """

    plan: Plan
    task: Task
    method: Method
    model: nn.Module
    layout: ModelLayout
    processor: Any


def prepare_processor(plan: Plan) -> tuple[Any, str]:
    """The tokenizer and a hash of all that shapes its output."""
    processor = load_processor(plan.recipe.model, plan.facts)
    return processor, processor_key(processor)


def prepare_model(plan: Plan, task: Task, processor: Any, *, seed: int, allow_code: bool) -> Prepared:
    """Loads the base model with the task's head and applies the method.

    Raises ModelError if what the method made trainable is not what it declares, or nothing.
    """
    loaded = load_model(plan.recipe.model, task.head(), seed=seed, allow_remote_code=allow_code)
    align_padding(loaded.model, processor)
    method = plan.method()
    method.take_processor(processor)
    if task.source_column is not None:
        method.take_sources(task.sources)
    seed_everything(seed)
    model: Any = method.apply(loaded.model, loaded.layout)
    check_trainable(model, method, loaded.layout)
    task.bind(model, processor)
    if plan.recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Prepared(plan, task, method, model, loaded.layout, processor)


def load_weights(prepared: Prepared, tensors: Callable[[str], dict[str, Tensor]]) -> None:
    """Puts a checkpoint's trained parameters, and what the method keeps beside them, into the model.

    tensors: gives the checkpoint's tensors by file name. Raises ModelError if they are not those of this model.
    """
    load_trainable(prepared.model, tensors("trainable"), strict=True)
    prepared.method.restore(prepared.model, tensors("method"))


def weights_of(prepared: Prepared) -> dict[str, Mapping[str, Tensor]]:
    """What `load_weights` loads, by file name; whole tensors, where the model is divided over processes."""
    trainable = {name: whole(value) for name, value in trainable_state(prepared.model).items()}
    return {"trainable": trainable, "method": prepared.method.state(prepared.model)}


def check_trainable(model: nn.Module, method: Method, layout: ModelLayout) -> None:
    """Raises ModelError unless exactly the declared parameters train, in float32."""
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    declared = {name for name, _ in model.named_parameters() if method.declares(name, layout)}
    if not trainable and method.capabilities.trains:
        raise ModelError(f"{method.name} found nothing to train in this {type(layout.model).__name__}")
    if trainable != declared:
        surprise = sorted(trainable ^ declared)
        raise ModelError(f"{method.name} should train other parameters than it does; the first of {len(surprise)}: {surprise[0]}")
    low = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.dtype != torch.float32]
    if low:
        raise ModelError(f"{low[0]} would be trained in {dict(model.named_parameters())[low[0]].dtype}, not float32")


def encode_splits(
    splits: Splits, task: Task, processor: Any, key: str, *, cache: bool, observer: Observer, num_workers: int | Auto = 1
) -> dict[str, FeatureStore]:
    """Encoded rows of each split, out of the cache where nothing changed. num_workers: see `data.num_workers`."""
    stores, count = {}, number_of_workers(num_workers)
    for name, table in splits.items():
        observer.stage(f"encoding {name}")
        training = name == "train"
        stores[name] = encode_rows(
            table, task, processor, key, cache=cache, training=training, progress=observer.progress, num_workers=count
        )
        if training and task.left_out:
            _note_left_out(table, stores[name], task, observer)
        if training:
            task.learn_encoded(stores[name].numbers)
        if stores[name].hit:
            observer.note(f"{name}: {len(table):,} encoded rows reused from the cache ({stores[name].key[:12]})")
    return stores


def _note_left_out(table: Table, store: FeatureStore, task: Task, observer: Observer) -> None:
    """Says which training rows gave nothing to learn from. Raises DataError if that is all of them."""
    used = np.zeros(len(table), dtype=bool)
    used[store.example] = True
    missing = np.flatnonzero(~used)
    if not len(missing):
        return
    places = ", ".join(table.place(int(row)) for row in missing[:3])
    if len(missing) == len(table):
        raise DataError(Problem(message=f"no training row can be used: {task.left_out}", place=places))
    observer.note(f"train: {len(missing):,} of {len(table):,} rows were left out: {task.left_out} ({places})")


def encode_rows(
    table: Table,
    task: Task,
    processor: Any,
    key: str,
    *,
    cache: bool,
    training: bool = False,
    progress: Callable[[int, int], None] | None = None,
    num_workers: int = 1,
) -> FeatureStore:
    """Encoded rows of a table. training: whether these are training rows. num_workers: processes that may help."""
    return encode_table(
        table, task, processor, processor_key=key, cache=cache, training=training, progress=progress, num_workers=num_workers
    )


class TrainingBatches:
    """Batches of the training split, by epoch."""

    def __init__(self, features: FeatureStore, rows: Table, task: Task, processor: Any, train: TrainSpec, seed: int) -> None:
        self._features, self._task, self._processor, self._train, self._seed = features, task, processor, train, seed
        weights = rows.weights()
        self._weights = None if weights is None else weights[features.example]
        self._last: tuple[int, BatchList] | None = None
        if not rows_per_epoch(len(features), self._weights):
            message = "an epoch has no rows: `weight` is so small that no row is drawn"
            raise DataError(Problem(message=message, key="data.train", hint="Raise the weights of the training sources"))

    def epoch(self, epoch: int) -> BatchList:
        """Feature indices of each batch of an epoch."""
        if self._last is None or self._last[0] != epoch:
            batches = epoch_batches(
                self._features.lengths,
                seed=self._seed,
                epoch=epoch,
                batch_size=self._train.batch_size,
                max_tokens=self._train.max_tokens,
                bucket=self._train.bucket_by_length,
                weights=self._weights,
            )
            self._last = (epoch, batches)
        return self._last[1]

    def load(self, indices: np.ndarray) -> Batch:
        """The collated batch of these features."""
        return self._task.collate(self._features.take(indices), self._processor, training=True)

    def tokens(self, indices: np.ndarray) -> int:
        """Tokens of these features, padding left out."""
        return int(self._features.lengths[indices].sum())


def make_accelerator(precision: str, *, trackers: list[str], folder: Path | None) -> Accelerator:
    """An Accelerator for this process. Devices and process groups come from the launcher's environment."""
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        # Accelerate keeps the first precision of a process for good; a notebook may train a second time in another one.
        AcceleratorState._reset_state()
    try:
        return Accelerator(
            # Left to itself, Accelerate takes several processes without a GPU for several runs.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=mixed,
            log_with=trackers or None,
            project_dir=str(folder) if folder and trackers else None,
        )
    except (ValueError, ImportError) as error:
        raise RecipeError(f"the accelerator cannot be set up as asked: {error}") from error
