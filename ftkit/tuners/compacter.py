"""Compacter as a PEFT tuner: bottleneck adapters whose two layers are PHM layers that share their Kronecker factors A_i.

Places and parts are those of `ftkit.tuners.adapter`; the shared factors belong to the tuner, so that they are trained and saved once.
Source: Karimi Mahabadi, Henderson & Ruder 2021, https://arxiv.org/abs/2106.04647
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from peft import PeftConfig
from peft.utils import PeftType
from torch import Tensor, nn

from ftkit.tuners.adapter import AdapterConfig, AdapterModel, bottleneck_size
from ftkit.tuners.bottleneck import AdapterLayer, Bottleneck
from ftkit.tuners.phm import PHMLinear, new_rules


@dataclass
class CompacterConfig(AdapterConfig):
    """Config of a Compacter adapter. kronecker_terms: n. rank: of the B_i, None for full ones. shared_factors: one set of A_i for all."""

    kronecker_terms: int = field(default=4)
    rank: int | None = field(default=1)
    shared_factors: bool = field(default=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["COMPACTER"]

    def size(self, width: int) -> int:
        """Size of the bottleneck, a multiple of n."""
        return rounded_size(width, (self.bottleneck, self.reduction_factor), self.kronecker_terms)


def rounded_size(width: int, size: tuple[int | None, float | None], terms: int) -> int:
    """The size of a bottleneck, given as bottleneck or reduction factor, rounded up to a multiple of the number of terms."""
    return -(-bottleneck_size(width, *size) // terms) * terms


class CompacterLayer(AdapterLayer):
    """A module of the model with Compacter adapters."""

    adapter_layer_names: tuple[str, ...] = ("compacter_parts",)


class CompacterModel(AdapterModel):
    """Puts Compacter adapters into a model."""

    prefix = "compacter_"
    tuner_layer_cls = CompacterLayer
    uses_shared_state = True

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.compacter_rules = nn.ParameterDict()

    def make_adapter(self, config: Any, adapter_name: str, width: int) -> nn.Module:
        """The adapter for one place, with the adapter's shared factors."""
        rules = None
        if config.shared_factors:
            if adapter_name not in self.compacter_rules:
                self.compacter_rules[adapter_name] = new_rules(config.kronecker_terms)
            rules = partial(_looked_up, self.compacter_rules, adapter_name)
        return phm_bottleneck(config, width, rules)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activates adapters; the shared factors of the others are frozen with them."""
        super().set_adapter(adapter_name, inference_mode)
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        for name, rules in self.compacter_rules.items():
            rules.requires_grad_(name in names and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Deletes an adapter with its factors."""
        super().delete_adapter(adapter_name)
        if adapter_name in self.compacter_rules:
            del self.compacter_rules[adapter_name]


def phm_bottleneck(config: CompacterConfig, width: int, rules: Any) -> Bottleneck:
    """A bottleneck of PHM layers. rules: gives the shared A_i; None for A_i of each layer's own."""
    return Bottleneck(
        width,
        config.size(width),
        activation=config.activation,
        layer_norm=config.layer_norm,
        dropout=config.dropout,
        scaling=config.scaling,
        linear=partial(PHMLinear, terms=config.kronecker_terms, rank=config.rank, rules=rules),
    )


def _looked_up(rules: nn.ParameterDict, adapter_name: str) -> Tensor:
    # Not bound once: PEFT may put another parameter in its place when it changes types or loads without memory.
    return rules[adapter_name]
