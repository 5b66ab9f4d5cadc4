"""BitFit as a PEFT tuner: each adapted module computes with the bias b + d, where b is frozen and d is trained, zero at first.

That equals training b in place and leaves the base untouched: several adapters share it, disabling one gives the base back, and
merging adds d to b. Source: Ben Zaken, Goldberg & Ravfogel 2022, https://arxiv.org/abs/2106.10199
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType
from torch import Tensor, nn
from torch.func import functional_call


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


class BitFitLayer(nn.Module, BaseTunerLayer):
    """A module of any class that has a parameter `bias`, with a trained addition to it for each adapter."""

    adapter_layer_names = ("bitfit_bias",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, *, inference_mode: bool) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bitfit_bias = nn.ParameterDict({})
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._unmerged_biases: list[Tensor] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, inference_mode=inference_mode)

    def update_layer(self, adapter_name: str, *, inference_mode: bool) -> None:
        """Adds an adapter."""
        self.bitfit_bias[adapter_name] = nn.Parameter(torch.zeros(self._base_bias().shape))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    @property
    def bias(self) -> Tensor:
        """The bias in use, b + d. Model code that reads it instead of calling the module gets the trained one, too."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [] if self.disable_adapters or self.merged else self.active_adapters
        return self._base_bias_plus([self.bitfit_bias[name] for name in active if name in self.bitfit_bias])

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the named (default: active) adapters to the base bias: in float32, rounded once."""
        for name in check_adapters_to_merge(self, adapter_names) or []:
            if name not in self.bitfit_bias:
                continue
            merged = self._base_bias_plus([self.bitfit_bias[name]]).detach()
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"the adapter {name} holds values that are not finite numbers")
            self._unmerged_biases.append(self._base_bias().data)
            self._base_bias().data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Puts the very bias back that was there before the merge; subtracting would leave rounding errors."""
        while self.merged_adapters:
            self.merged_adapters.pop()
            self._base_bias().data = self._unmerged_biases.pop()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base module computes with the bias b + d."""
        bias = self.bias
        if bias is self._base_bias():
            return self.base_layer(*args, **kwargs)
        return functional_call(self.base_layer, {"bias": bias}, args, kwargs)

    def _base_bias(self) -> nn.Parameter:
        bias = self.get_base_layer().bias
        if not isinstance(bias, nn.Parameter):
            raise TypeError(f"{type(self.get_base_layer()).__name__} has no bias that BitFit can train")
        return bias

    def _base_bias_plus(self, added: list[Tensor]) -> Tensor:
        """Summed in the wider of the two types, rounded once."""
        base = self._base_bias()
        return sum(added, start=base).to(base.dtype) if added else base


class BitFitModel(BaseTuner):
    """Puts BitFit layers into a model."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BitFitLayer):
            target.update_layer(adapter_name, inference_mode=peft_config.inference_mode)
            return
        layer = BitFitLayer(target, adapter_name, inference_mode=peft_config.inference_mode)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own also copies `weight` from the old module to the new one, which fails for a head of several layers.
        setattr(parent, child_name, new_module)
