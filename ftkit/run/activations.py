"""How much memory the activations of a training step take, by looking at what autograd keeps for the backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftkit.data.features import FeatureStore
from ftkit.recipe.schema import TrainSpec
from ftkit.run.wiring import Prepared

PROBE_ROWS = 4
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def largest_batch_bytes(prepared: Prepared, store: FeatureStore) -> float:
    """Bytes that a training step on the longest rows keeps for its backward pass.

    Counted on a few of them, forward only and on the CPU, and scaled to the batch size; kernels of a GPU may keep less. Gradient
    checkpointing is reckoned as one block and the inputs of all.
    """
    train = prepared.plan.recipe.train
    longest = np.argsort(store.lengths)[::-1]
    rows = min(_rows_of_largest_batch(train, int(store.lengths.max())), len(store))
    probe = np.sort(longest[: min(PROBE_ROWS, rows)])
    kept = _kept_bytes(prepared, store, probe) * rows / len(probe)
    blocks = max(1, len(prepared.layout.blocks))
    if not train.gradient_checkpointing or blocks == 1:
        return kept
    inputs = _block_input_bytes(prepared, store, probe) * rows / len(probe)
    return kept / blocks + inputs


def _rows_of_largest_batch(train: TrainSpec, longest: int) -> int:
    return train.batch_size if train.max_tokens is None else max(1, min(train.batch_size, train.max_tokens // max(1, longest)))


def _kept_bytes(prepared: Prepared, store: FeatureStore, probe: np.ndarray) -> int:
    """Bytes of the tensors that autograd saves in one forward pass with its loss, weights left out, each storage once."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*prepared.model.parameters(), *prepared.model.buffers())}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # A freed address would be counted for another tensor.
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _forward(prepared, store, probe)
    return sum(sizes.values())


def _block_input_bytes(prepared: Prepared, store: FeatureStore, probe: np.ndarray) -> int:
    """Bytes of the hidden states that enter the blocks."""
    found: list[int] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = next((value for value in (*inputs, *named.values()) if isinstance(value, Tensor)), None)
        found.append(0 if hidden is None else hidden.nbytes)

    blocks = [module for name, module in prepared.model.named_modules() if name in _block_names(prepared)]
    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    try:
        _forward(prepared, store, probe)
    finally:
        for handle in handles:
            handle.remove()
    return sum(found)


def _block_names(prepared: Prepared) -> set[str]:
    inner = {block.name for block in prepared.layout.blocks}
    return {
        name for name, _ in prepared.model.named_modules() if name in inner or any(name.endswith(f".{block}") for block in inner)
    }


def _forward(prepared: Prepared, store: FeatureStore, probe: np.ndarray) -> Tensor:
    """The loss of a batch, as in training but without gradient checkpointing."""
    model: Any = prepared.model
    task, train = prepared.task, prepared.plan.recipe.train
    batch = task.collate(store.take(probe), prepared.processor, training=True)
    training = model.training
    if train.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model.train()
    try:
        with _precision(train.precision):
            return task.loss(task.forward(model, batch), batch)
    finally:
        model.train(training)
        if train.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _precision(name: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=AUTOCAST[name]) if name in AUTOCAST else nullcontext()
