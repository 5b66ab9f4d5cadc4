"""Layer norm tuning as a PEFT tuner: each adapted norm computes with the gain g + c and the bias b + d; c and d are trained, zero at first.

That equals training the norms in place and leaves the base untouched. PEFT 0.21's own (`LN_TUNING`) trains whole copies of the norms,
warns of each norm whose widths it does not know, and turns copies in a half-precision base around at each merge. Sources: Qi et al.
2022, https://arxiv.org/abs/2211.08682; Zhao et al. 2024, https://arxiv.org/abs/2312.11420
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import PeftType
from torch import Tensor, nn
from torch.func import functional_call

from ftkit.models.trainable import HALF_PRECISION
from ftkit.tuners.additions import AdditionLayer, AdditionModel


@dataclass
class NormChangeConfig(PeftConfig):
    """Config of trained norms.

    target_modules: list of module name endings, or a regular expression that matches whole module names.
    biases: whether biases train as well as gains, where a norm has one.
    modules_to_save: modules trained and saved whole, beside the norms (the task head).
    """

    target_modules: list[str] | str | None = field(default=None)
    biases: bool = field(default=True)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["NORM_CHANGE"]


class NormChangeLayer(AdditionLayer):
    """A norm of the model with trained additions to gain and bias, for each adapter."""

    adapter_layer_names = ("norm_change_gain", "norm_change_bias")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.norm_change_gain, self.norm_change_bias = nn.ParameterDict({}), nn.ParameterDict({})

    def add(self, adapter_name: str, *, biases: bool, inference_mode: bool) -> None:
        """Adds an adapter."""
        base = self.get_base_layer()
        self.norm_change_gain[adapter_name] = nn.Parameter(torch.zeros(base.get_parameter("weight").shape))
        if biases and isinstance(getattr(base, "bias", None), nn.Parameter):
            self.norm_change_bias[adapter_name] = nn.Parameter(torch.zeros(base.get_parameter("bias").shape))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters or adapter_name, inference_mode=inference_mode)

    def changed(self, adapter_name: str) -> Sequence[str]:
        """The gain (`weight`), and the bias if it trains."""
        return [name for name, values in self._by_name().items() if adapter_name in values]

    def plus(self, adapter_name: str, name: str, value: Tensor) -> Tensor:
        """g + c, or b + d."""
        return value + self._by_name()[name][adapter_name]

    def _by_name(self) -> dict[str, nn.ParameterDict]:
        return {"weight": self.norm_change_gain, "bias": self.norm_change_bias}

    def run(self, changed: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In float32, since gains lie near 1, where bfloat16 has steps of 1/128; handed on in the norm's own type."""
        own = self.get_base_layer().get_parameter("weight").dtype
        if own not in HALF_PRECISION:
            return super().run(changed, args, kwargs)
        values = {name: parameter.float() for name, parameter in self.base_layer.named_parameters()} | changed
        named = {name: _wide(value) for name, value in kwargs.items()}
        return functional_call(self.base_layer, values, tuple(_wide(value) for value in args), named).to(own)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class NormChangeModel(AdditionModel):
    """Puts trained norms into a model."""

    prefix = "norm_change_"
    tuner_layer_cls = NormChangeLayer

    def make_layer(self, target: nn.Module) -> AdditionLayer:
        """The layer around a norm."""
        return NormChangeLayer(target)

    def add_adapter(self, layer: Any, config: Any, adapter_name: str, path: str) -> None:
        """Changes of zero."""
        layer.add(adapter_name, biases=config.biases, inference_mode=config.inference_mode)
