"""Weights divided over the processes of a run (FSDP2), by torch's `fully_shard`.

Each block of the model is gathered when its turn comes, forward and backward, and let go again; so each process holds its share of the
weights, of their gradients and of the optimizer's state. Zhao et al. 2023, https://arxiv.org/abs/2304.11277.

Where a method trains something beside or in a frozen model, what trains stays whole in each process, and its gradients are averaged
once a step: it is small, and in float32 beside a base that may not be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class Sharding:
    """A model divided over all processes. blocks: its parts that are gathered one at a time."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        everything = len(trained) == sum(1 for _ in model.parameters())
        self._whole = [] if everything else trained
        for part in (*blocks, model):
            fully_shard(part, mesh=mesh, ignored_params=set(self._whole))
        self._model = model

    def synchronize(self, last: bool) -> None:
        """Whether the backward pass that follows ends the step: only then gradients travel."""
        _shards(self._model)[0].set_requires_gradient_sync(last)

    def finish_gradients(self) -> None:
        """Averages the gradients of what every process holds whole."""
        for parameter in self._whole:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= distributed.get_world_size()

    @staticmethod
    def clip(parameters: Sequence[nn.Parameter], limit: float) -> float:
        """The norm of all gradients over all processes; scales them where it is above the limit."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = math.sqrt(float(sum(_square(gradient) for gradient in gradients)))
        if norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / (norm + 1e-6))
        return norm


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """The whole model in each process, for as long as each uses it in its own time, as in writing texts; nothing for others."""
    parts = _shards(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for number, part in enumerate(parts):
            # The outermost part is needed again at once in the backward pass: torch's default.
            part.set_reshard_after_forward(number > 0, recurse=False)
            part.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is divided, so that all processes have to call it equally often."""
    return bool(_shards(model))


def whole(tensor: Tensor) -> Tensor:
    """A tensor as one process would have it, on every process. All of them have to ask, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(values: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, which every process has, with the division and on the device of another one of its shape."""
    values = values.to(model.device)
    if not isinstance(model, DTensor):
        return values
    return distribute_tensor(values, model.device_mesh, model.placements, src_data_rank=None)


def _shards(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _square(gradient: Tensor) -> Tensor:
    squared = gradient.detach().float().pow(2).sum()
    return whole(squared)
