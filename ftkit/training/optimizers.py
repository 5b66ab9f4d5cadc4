"""Optimizers and their parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ftkit.errors import ModelError
from ftkit.methods.base import Method
from ftkit.models.layout import ModelLayout
from ftkit.models.sharding import divided_like, whole
from ftkit.recipe.schema import TrainSpec


def parameter_groups(model: nn.Module, layout: ModelLayout, train: TrainSpec, method: Method | None = None) -> list[dict[str, Any]]:
    """Trainable parameters in groups of equal weight decay and learning rate.

    Each group has `params`, `names`, `weight_decay`, `scale` (multiplier of the learning rate) and `lr` (the peak).
    Weight decay spares biases and norms, as in the BERT and AdamW practice (Loshchilov & Hutter 2019). With `layer_decay` d, a
    parameter of depth k of n has the rate lr * d^(n-k): the head keeps lr (Howard & Ruder 2018; Clark et al. 2020). A method's own
    factor (LoRA+) multiplies that.
    """
    plain = _undecayed(model)
    top = len(layout.blocks) + 1
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if name in plain else float(train.weight_decay)
        scale = (train.layer_decay or 1.0) ** (top - layout.depth(name))
        scale *= method.learning_rate_factor(name, layout) if method else 1.0
        group = groups.setdefault(
            (decay, scale),
            {"params": [], "names": [], "weight_decay": decay, "scale": scale, "lr": float(train.learning_rate) * scale},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _undecayed(model: nn.Module) -> set[str]:
    """Names of biases and of the weights of norms (one-dimensional parameters)."""
    return {name for name, parameter in model.named_parameters() if parameter.ndim <= 1 or name.endswith("bias")}


def make_optimizer(groups: Sequence[dict[str, Any]], train: TrainSpec) -> torch.optim.Optimizer:
    """The optimizer that the recipe names, over prepared groups. Raises ModelError if it cannot run here."""
    betas = (train.adam_beta1, train.adam_beta2)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=betas, eps=train.adam_epsilon, fused=_can_fuse(groups))
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=train.momentum)
    if train.optimizer == "adafactor":
        return torch.optim.Adafactor(groups)
    try:
        import bitsandbytes
    except ImportError:
        raise ModelError(
            "adamw_8bit needs the package bitsandbytes", hint="pip install 'ftkit[quant]', or use `optimizer: adamw`"
        ) from None
    return bitsandbytes.optim.AdamW8bit(  # type: ignore[attr-defined]
        groups, betas=betas, eps=train.adam_epsilon
    )


def _can_fuse(groups: Sequence[dict[str, Any]]) -> bool:
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return devices <= {"cpu", "cuda"}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the peak group's rate; the others follow by their scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """State, whole on every process, as (tensors by `<slot>|<parameter name>`, other values by the same kind of key)."""
    tensors: dict[str, torch.Tensor] = {}
    others: dict[str, Any] = {}
    for name, parameter in _named(optimizer):
        for slot, value in optimizer.state.get(parameter, {}).items():
            target = tensors if isinstance(value, torch.Tensor) else others
            target[f"{slot}|{name}"] = whole(value) if isinstance(value, torch.Tensor) else value
    return tensors, others


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], others: dict[str, Any]) -> None:
    """The inverse of `optimizer_state`. Raises ModelError if a name belongs to no parameter."""
    parameters = dict(_named(optimizer))
    for key, value in {**tensors, **others}.items():
        slot, _, name = key.partition("|")
        if name not in parameters:
            raise ModelError(f"the checkpoint has optimizer state for {name!r}, which this run does not train")
        parameter = parameters[name]
        # A step counter stays where the optimizer keeps it (on the CPU unless fused); everything else lives with the parameter.
        moved = divided_like(value, parameter) if isinstance(value, torch.Tensor) and value.ndim else value
        if isinstance(value, torch.Tensor) and not value.ndim and optimizer.defaults.get("fused"):
            moved = value.to(parameter.device)
        optimizer.state[parameter][slot] = moved


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]
