"""UniPELT as a PEFT tuner: low-rank updates, a prefix and Pfeiffer adapters in one, each behind a gate made from its input.

    q = W x + g_L(x) s U D x,   Attention(q, [g_P(x) P_K; K], [g_P(x) P_V; V]),   A(z) = g_A(z) U' f(D' z),   g(x) = sigmoid(w . x + b)

Gates are numbers for each token. The authors take the mean of a gate over the sequence; that would let padding and, in decoders, later
tokens into it, so that a text would be computed in one way alone and in another way in a batch or while it is written.
Source: Mao et al. 2022, https://arxiv.org/abs/2110.07577, section 3; places and sizes as in github.com/morningmoni/UniPELT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft.utils import PeftType
from torch import Tensor, nn

from ftkit.models.naming import matches
from ftkit.models.roles import linear_shape
from ftkit.tuners.adapter import Patterns
from ftkit.tuners.attention_prefix import AttentionPrefix
from ftkit.tuners.bottleneck import AdapterLayer, Part
from ftkit.tuners.mix_and_match import MixAndMatchConfig, MixAndMatchModel
from ftkit.tuners.prefixed_attention import add_prefix


@dataclass
class UniPELTConfig(MixAndMatchConfig):
    """Config of all three parts.

    lora_modules: linear layers with a low-rank update. rank, alpha: of the updates, scaled by alpha / rank.
    gate_width: of what goes into attention modules. `dropout` is that of adapters and updates.
    """

    lora_modules: Patterns = field(default=None)
    rank: int = field(default=8)
    alpha: float = field(default=8.0)
    gate_width: int = field(default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["UNIPELT"]


class Gate(nn.Module):
    """g(x) = sigmoid(w . x + b): (..., width) -> (..., 1), in the type of its own weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Between 0 and 1 for each vector."""
        return torch.sigmoid(self.linear(x.to(self.linear.weight.dtype)))


class GatedAdapter(nn.Module):
    """g(x) A(x)."""

    def __init__(self, adapter: nn.Module, width: int) -> None:
        super().__init__()
        self.adapter, self.gate = adapter, Gate(width)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the model's own activations."""
        return self.adapter(x) * self.gate(x).to(x.dtype)


class GatedUpdate(nn.Module):
    """g(x) (alpha / r) U D x for a linear layer; U is zero at first, D Kaiming-uniform."""

    def __init__(self, inward: int, outward: int, *, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inward, rank, bias=False), nn.Linear(rank, outward, bias=False)
        self.gate, self.dropout, self.scale = Gate(inward), nn.Dropout(dropout), alpha / rank
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the layer's output."""
        update = self.up(self.down(self.dropout(x.to(self.down.weight.dtype))))
        return (update * self.scale * self.gate(x)).to(x.dtype)


class UniPELTLayer(AdapterLayer):
    """A module of the model with adapters or updates."""

    adapter_layer_names: tuple[str, ...] = ("unipelt_parts",)


class UniPELTPrefix(AttentionPrefix):
    """The prefixes of all attention modules and their gates."""

    adapter_layer_names: tuple[str, ...] = ("unipelt_encoder", "unipelt_gates")

    def __init__(self) -> None:
        super().__init__()
        self.unipelt_gates = nn.ModuleDict({})
        self._widths: dict[str, int] = {}
        self._values: dict[str, Tensor] = {}

    def update_layer(self, adapter_name: str, config: Any, device: torch.device) -> None:
        """Adds a prefix."""
        super().update_layer(adapter_name, config, device)
        self.unipelt_gates[adapter_name] = nn.ModuleDict({})
        self._widths[adapter_name] = config.gate_width

    def serve(self, adapter_name: str, path: str) -> None:
        """Gives the attention module at `path` the next keys and values, and a gate."""
        super().serve(adapter_name, path)
        device = next(self.encoders[adapter_name].parameters()).device
        self._gates(adapter_name)[_key(path)] = Gate(self._widths[adapter_name]).to(device)

    def connect(self, module: nn.Module, path: str) -> list[Callable[[], Any]]:
        """Hands prefix and gate to an attention module; returns what undoes it."""
        before = module.register_forward_pre_hook(partial(self._before_attention, path), with_kwargs=True)
        return [add_prefix(module, partial(self.prefix, path), partial(self._value, path)), before.remove]

    def _before_attention(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        active = self._active()
        if active is not None and _key(path) in self._gates(active):
            states = args[0] if args else kwargs["hidden_states"]
            self._values[path] = self._gates(active)[_key(path)](states)

    def _value(self, path: str) -> Tensor:
        return self._values.pop(path)

    def _gates(self, adapter_name: str) -> Any:
        return self.unipelt_gates[adapter_name]

    def __getstate__(self) -> dict[str, Any]:
        """For copies: what was computed belongs to a graph and cannot be copied."""
        return {**super().__getstate__(), "_values": {}}


def _key(path: str) -> str:
    return path.replace(".", "-")


class UniPELTModel(MixAndMatchModel):
    """Puts gated updates, prefixes and adapters into a model."""

    prefix = "unipelt_"
    container_name = "unipelt_prefix"
    prefix_class = UniPELTPrefix
    layer_class = UniPELTLayer

    def make_adapter(self, config: Any, adapter_name: str, width: int) -> nn.Module:
        """The adapter behind its gate."""
        return GatedAdapter(super().make_adapter(config, adapter_name, width), width)

    def _part(self, config: Any, adapter_name: str, path: str, layer: AdapterLayer) -> Part:
        if not matches(config.lora_modules or [], path):
            return super()._part(config, adapter_name, path, layer)
        shape = linear_shape(layer.base_layer)
        return Part("update", GatedUpdate(*shape, rank=config.rank, alpha=config.alpha, dropout=config.dropout), None)
