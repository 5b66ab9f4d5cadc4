"""BitFit as a PEFT tuner: each adapted module computes with the bias b + d, where b is frozen and d is trained, zero at first.

That equals training b in place and leaves the base untouched: several adapters share it, disabling one gives the base back, and
merging adds d to b. Source: Ben Zaken, Goldberg & Ravfogel 2022, https://arxiv.org/abs/2106.10199
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import PeftType
from torch import Tensor, nn

from ftkit.tuners.additions import AdditionLayer, AdditionModel


@dataclass
class BitFitConfig(PeftConfig):
    """Config of a BitFit adapter.

    target_modules: list of module name endings, or a regular expression that matches whole module names.
    exclude_modules: modules to leave out, written like `target_modules`.
    modules_to_save: modules trained and saved whole, beside the biases (the task head).
    """

    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BITFIT"]


class BitFitLayer(AdditionLayer):
    """A module of any class that has a parameter `bias`, with a trained addition to it for each adapter."""

    adapter_layer_names = ("bitfit_bias",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.bitfit_bias = nn.ParameterDict({})

    def add(self, adapter_name: str, *, inference_mode: bool) -> None:
        """Adds an adapter. Raises TypeError for a module without a bias."""
        base = self.get_base_layer()
        if not isinstance(getattr(base, "bias", None), nn.Parameter):
            raise TypeError(f"{type(base).__name__} has no bias that BitFit can train")
        self.bitfit_bias[adapter_name] = nn.Parameter(torch.zeros(base.get_parameter("bias").shape))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters or adapter_name, inference_mode=inference_mode)

    def changed(self, adapter_name: str) -> Sequence[str]:
        """The bias."""
        return ("bias",) if adapter_name in self.bitfit_bias else ()

    def plus(self, adapter_name: str, name: str, value: Tensor) -> Tensor:
        """b + d."""
        return value + self.bitfit_bias[adapter_name]


class BitFitModel(AdditionModel):
    """Puts BitFit layers into a model."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def make_layer(self, target: nn.Module) -> AdditionLayer:
        """The layer around a module with a bias."""
        return BitFitLayer(target)

    def add_adapter(self, layer: Any, config: Any, adapter_name: str, path: str) -> None:
        """A bias change of zero."""
        layer.add(adapter_name, inference_mode=config.inference_mode)
