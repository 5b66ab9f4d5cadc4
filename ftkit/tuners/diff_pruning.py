"""Diff pruning as a PEFT tuner: a gated difference to each weight, driven to sparsity while it trains.

    W' = W + z * w,   z = z_i z_g,   each z = min(1, max(0, s (r - l) + l)),   s = sigmoid(log u - log(1 - u) + a),   u ~ U(0, 1)
    expected number of numbers that are not zero: sum over tensors g of sigmoid(a_g - log(-l / r)) sum over i of sigmoid(a_i - log(-l / r))

w (one number for each of W), the gates' a_i and (structured) one a_g for each tensor are trained; l = -1.5, r = 1.5. Outside training z is
what it is for s = sigmoid(a), and only the k largest |z w| of the whole model count: what is evaluated, exported and merged is always the
sparse difference. `fix` makes that choice once and for all; from then on only the chosen w train, without gates.
Source: Guo, Rush & Kim 2021, https://arxiv.org/abs/2012.07463, equations 1 to 5; github.com/dguo98/DiffPruning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import PeftType
from torch import Tensor, nn

from ftkit.tuners.additions import AdditionLayer, AdditionModel
from ftkit.tuners.sparse_change import FlatOrder, SortedPositions, plus_at

LOWER, UPPER = -1.5, 1.5
"""l and r: how far a gate's values are stretched beyond 0 and 1, so that it can be exactly closed or open."""


@dataclass
class DiffPruningConfig(PeftConfig):
    """Config of a gated difference.

    tensors, count: see `ftkit.tuners.sparse_change.SparseChangeConfig`; count is what is left in the end.
    structured: one more gate for each tensor. gate_start: a of all gates at first.
    """

    tensors: dict[str, int] = field(default_factory=dict)
    count: int = field(default=1)
    structured: bool = field(default=True)
    gate_start: float = field(default=5.0)
    target_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["DIFF_PRUNING"]


def sampled_gate(a: Tensor) -> Tensor:
    """A hard-concrete gate, drawn anew for each number."""
    u = torch.rand_like(a).clamp_(1e-6, 1 - 1e-6)
    return _stretched(torch.sigmoid(u.log() - (1 - u).log() + a))


def settled_gate(a: Tensor) -> Tensor:
    """The gate without chance."""
    return _stretched(torch.sigmoid(a))


def open_probability(a: Tensor) -> Tensor:
    """How likely a gate is not zero."""
    return torch.sigmoid(a - math.log(-LOWER / UPPER))


def _stretched(s: Tensor) -> Tensor:
    return (s * (UPPER - LOWER) + LOWER).clamp(0.0, 1.0)


class GatedDifference(nn.Module):
    """w, a_i and a_g of one tensor of the model. group: None without structure."""

    def __init__(self, shape: Sequence[int], *, structured: bool, gate_start: float) -> None:
        super().__init__()
        self.difference = nn.Parameter(torch.zeros(shape))
        self.gate = nn.Parameter(torch.full(tuple(shape), gate_start))
        self.group = nn.Parameter(torch.full((1,), gate_start)) if structured else None

    def sampled(self) -> Tensor:
        """z w with gates by chance."""
        z = sampled_gate(self.gate)
        return self.difference * (z if self.group is None else z * sampled_gate(self.group))

    def settled(self) -> Tensor:
        """z w without chance."""
        z = settled_gate(self.gate)
        return self.difference * (z if self.group is None else z * settled_gate(self.group))

    def expected_count(self) -> Tensor:
        """How many of its numbers are expected not to be zero."""
        count = open_probability(self.gate).sum()
        return count if self.group is None else count * open_probability(self.group).sum()


class Pruning:
    """Which numbers of an adapter's difference count: the largest of the whole model, or those that were fixed.

    order: in which positions count the tensors' elements. differences: by tensor, filled in while the adapter is put into the model.
    """

    def __init__(self, config: DiffPruningConfig) -> None:
        self.count, self.order = config.count, FlatOrder(config.tensors)
        self.differences: dict[str, GatedDifference] = {}
        self.fixed: Tensor | None = None
        self._chosen: Tensor | None = None
        self._versions: list[tuple[int, int, torch.device]] = []
        self._lookup = SortedPositions(self.order)

    def positions(self) -> Tensor:
        """The k positions that count, sorted. Found anew only after a difference or gate has changed, or after `forget`."""
        if self.fixed is not None:
            return self.fixed
        versions = [(id(parameter), parameter._version, parameter.device) for parameter in self._parameters()]
        if self._chosen is None or versions != self._versions:
            with torch.no_grad():
                sizes = torch.cat([self.differences[name].settled().flatten().abs() for name in self.order.numbers])
                self._chosen = sizes.topk(self.count).indices.sort().values.to(self.order.dtype)
            self._versions = versions
        return self._chosen

    def forget(self) -> None:
        """Finds the positions anew next time: fused optimizers change parameters without counting up their versions."""
        self._chosen = None

    def fix(self) -> None:
        """Makes the choice final, and the settled difference the one that trains on."""
        self.fixed = self.positions()
        with torch.no_grad():
            for difference in self.differences.values():
                difference.difference.copy_(difference.settled())

    def values(self) -> Tensor:
        """What is added at `positions`."""
        return torch.cat([self._inside(name)[1] for name in self.order.numbers]).detach()

    def add(self, name: str, value: Tensor) -> Tensor:
        """A tensor of the model with what counts of its difference."""
        return plus_at(value, *self._inside(name))

    def _inside(self, name: str) -> tuple[Tensor, Tensor]:
        """Places in a tensor, and what is added there."""
        positions, part = self.positions(), self.differences[name]
        first, last = self._lookup.span(positions, name)
        places = positions[first:last] - self.order.start(name)
        return places, (part.difference if self.fixed is not None else part.settled()).flatten()[places.long()]

    def _parameters(self) -> Iterator[nn.Parameter]:
        for difference in self.differences.values():
            yield from difference.parameters()


class DiffPruningLayer(AdditionLayer):
    """A leaf module of the model with a gated difference to each of its parameters, for each adapter."""

    adapter_layer_names = ("diff_pruning_parts",)

    def __init__(self, base_layer: nn.Module, prunings: Mapping[str, Pruning]) -> None:
        super().__init__(base_layer)
        self.diff_pruning_parts = nn.ModuleDict({})
        self.prunings = prunings
        self.paths: dict[str, str] = {}

    def add(self, adapter_name: str, path: str, config: DiffPruningConfig) -> None:
        """Adds an adapter. path: of the module in the plain model."""
        own = {
            name: GatedDifference(parameter.shape, structured=config.structured, gate_start=config.gate_start)
            for name, parameter in self.get_base_layer().named_parameters(recurse=False)
            if f"{path}.{name}" in config.tensors
        }
        self.diff_pruning_parts[adapter_name] = nn.ModuleDict(own)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.prunings[adapter_name].differences.update({f"{path}.{name}": part for name, part in own.items()})
        self.paths[adapter_name] = path
        self.set_adapter(self.active_adapters or adapter_name, inference_mode=config.inference_mode)

    def changed(self, adapter_name: str) -> Sequence[str]:
        """All parameters of the module that have a difference."""
        return list(self._parts(adapter_name)) if adapter_name in self.diff_pruning_parts else ()

    def plus(self, adapter_name: str, name: str, value: Tensor) -> Tensor:
        """In training with gates by chance, else (and once the choice is fixed) with the difference that counts."""
        pruning, part = self.prunings[adapter_name], self._parts(adapter_name)[name]
        if self.training and pruning.fixed is None:
            return value + part.sampled()
        return pruning.add(f"{self.paths[adapter_name]}.{name}", value)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the difference that counts to the base parameters."""
        training, self.training = self.training, False
        super().merge(safe_merge, adapter_names)
        self.training = training

    def _parts(self, adapter_name: str) -> Any:
        return self.diff_pruning_parts[adapter_name]


class DiffPruningModel(AdditionModel):
    """Puts gated differences into a model. prunings: by adapter."""

    prefix = "diff_pruning_"
    tuner_layer_cls = DiffPruningLayer
    prunings: dict[str, Pruning]

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.prunings = {}

    def make_layer(self, target: nn.Module) -> AdditionLayer:
        """The layer around a leaf module."""
        return DiffPruningLayer(target, self.prunings)

    def add_adapter(self, layer: Any, config: Any, adapter_name: str, path: str) -> None:
        """Differences of zero behind gates that are nearly open."""
        if adapter_name not in self.prunings:
            self.prunings[adapter_name] = Pruning(config)
        layer.add(adapter_name, path, config)
