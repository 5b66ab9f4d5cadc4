"""Layers that compute with parameters to which an adapter adds something: what the tuners share that train weights by their changes.

    W' = W + d_1 + d_2 ...   summed in the wider of the types, rounded once to that of W

W stays as it is: several adapters share it, disabling them gives it back, merging puts W' in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.func import functional_call


class AdditionLayer(nn.Module, BaseTunerLayer):
    """A module of any class with additions to its own parameters, for each adapter."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._before_merges: list[dict[str, Tensor]] = []
        self._active_adapter: str | list[str] = []

    def changed(self, adapter_name: str) -> Sequence[str]:
        """Names of the base layer's parameters to which an adapter adds something."""
        raise NotImplementedError

    def plus(self, adapter_name: str, name: str, value: Tensor) -> Tensor:
        """value + d, in the wider type of the two, with the adapter's d for one of its changed parameters."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The weight in use. Model code that reads it instead of calling the module gets the changed one, too."""
        return self._in_use("weight")

    @property
    def bias(self) -> Tensor:
        """The bias in use."""
        return self._in_use("bias")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the named (default: active) adapters to the base parameters: in float32, rounded once.

        Raises ValueError, with `safe_merge`, for values that are not finite.
        """
        for adapter in check_adapters_to_merge(self, adapter_names) or []:
            if not (names := self.changed(adapter)):
                continue
            base = self.get_base_layer()
            merged = {name: self.plus(adapter, name, base.get_parameter(name)).detach() for name in names}
            if safe_merge and not all(torch.isfinite(value).all() for value in merged.values()):
                raise ValueError(f"the adapter {adapter} holds values that are not finite numbers")
            self._before_merges.append({name: base.get_parameter(name).data for name in merged})
            for name, value in merged.items():
                base.get_parameter(name).data = value.to(base.get_parameter(name).dtype)
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Puts the very parameters back that were there before the merge; subtracting would leave rounding errors."""
        while self.merged_adapters:
            self.merged_adapters.pop()
            for name, value in self._before_merges.pop().items():
                self.get_base_layer().get_parameter(name).data = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base module computes with the changed parameters."""
        names = dict.fromkeys(name for adapter in self._in_force() for name in self.changed(adapter))
        if not names:
            return self.base_layer(*args, **kwargs)
        return self.run({name: self._summed(name) for name in names}, args, kwargs)

    def run(self, changed: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls the base module with changed parameters, given in the wider type."""
        base = self.get_base_layer()
        rounded = {name: value.to(base.get_parameter(name).dtype) for name, value in changed.items()}
        return functional_call(self.base_layer, rounded, args, kwargs)

    def _in_force(self) -> list[str]:
        """Adapters that are added at each forward pass."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        return [] if self.disable_adapters or self.merged else self.active_adapters

    def _summed(self, name: str) -> Tensor:
        value: Tensor = self.get_base_layer().get_parameter(name)
        for adapter in self._in_force():
            if name in self.changed(adapter):
                value = self.plus(adapter, name, value)
        return value

    def _in_use(self, name: str) -> Tensor:
        base: Any = getattr(self.get_base_layer(), name)
        return self._summed(name).to(base.dtype) if isinstance(base, nn.Parameter) else base


class AdditionModel(BaseTuner):
    """Puts addition layers into a model. Subclasses say how one is made and how an adapter is added to it (`_create_and_replace`)."""

    target_module_mapping: dict[str, list[str]] = {}

    def make_layer(self, target: nn.Module) -> AdditionLayer:
        """The layer around a module of the model."""
        raise NotImplementedError

    def add_adapter(self, layer: Any, config: Any, adapter_name: str, path: str) -> None:
        """Gives a layer an adapter. path: of the module in the plain model."""
        raise NotImplementedError

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
        layer: Any = target if isinstance(target, AdditionLayer) else self.make_layer(target)
        self.add_adapter(layer, peft_config, adapter_name, current_key)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own also copies `weight` from the old module to the new one, which fails for a head of several layers.
        setattr(parent, child_name, new_module)
