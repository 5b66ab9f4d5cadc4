"""Bottleneck adapters and the layer that puts them into a model.

    A(x) = s * up(f(down(x)))           optionally with a layer norm before or after, and dropout

By place, with the sublayer's output h, the residual stream r before it and the model's own norm LN (post-norm blocks):
    after   h + A(h)                    Houlsby et al. 2019: before the residual sum and the norm
    around  LN(z + A(LN(z))), z = r + h     Pfeiffer et al. 2021 in post-norm blocks (AdapterHub: original_ln_before, original_ln_after)
    sum     h + A(r + h)                the same in pre-norm blocks, where no norm follows: r + h + A(r + h)
    beside  h + A(r)                    He et al. 2022, parallel
    update  h + A(x), x the module's own input: a low-rank update beside a linear layer
The residual stream is taken by a part (`carry`) at the module that gets it as input, and used up later in the same forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.func import functional_call

from ftkit.models.trainable import HALF_PRECISION

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
HOULSBY_SCALE, BERT_SCALE = 1e-2, 0.02

Linear = Callable[[int, int], nn.Module]


class Bottleneck(nn.Module):
    """An adapter without its residual: (..., width) -> (..., width), computed in the type of its own weights.

    scaling: a number, or `learned` for one trained factor that starts at 1.
    init: `normal` (deviation 0.02), `truncated` (deviation 0.01, cut at two deviations) or `zero-up`; ignored by other layers than
    nn.Linear. With a layer norm behind, its gain starts at zero, since it would lift any start to unit size.
    """

    def __init__(
        self,
        width: int,
        size: int,
        *,
        activation: str,
        layer_norm: str = "none",
        dropout: float = 0.0,
        scaling: float | str = 1.0,
        init: str = "normal",
        linear: Linear = nn.Linear,
    ) -> None:
        super().__init__()
        self.layer_norm = layer_norm
        if layer_norm != "none":
            self.norm = nn.LayerNorm(width)
        self.down, self.activation, self.up = linear(width, size), ACTIVATIONS[activation](), linear(size, width)
        self.dropout = nn.Dropout(dropout)
        self.fixed_scale = 1.0 if isinstance(scaling, str) else float(scaling)
        if isinstance(scaling, str):
            self.scale = nn.Parameter(torch.ones(1))
        self._reset(init)

    def _reset(self, init: str) -> None:
        if isinstance(self.down, nn.Linear) and isinstance(self.up, nn.Linear):
            _initialize(self.down, "kaiming" if init == "zero-up" else init)
            _initialize(self.up, init)
        if self.layer_norm == "after":
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the model's own activations."""
        inputs = x.to(next(self.parameters()).dtype)
        if self.layer_norm == "before":
            inputs = self.norm(inputs)
        change = self.up(self.activation(self.down(inputs)))
        change = self.dropout(change * (self.scale if hasattr(self, "scale") else self.fixed_scale))
        return (self.norm(change) if self.layer_norm == "after" else change).to(x.dtype)


def _initialize(layer: nn.Linear, how: str) -> None:
    if how == "kaiming":
        nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
    elif how == "zero-up":
        nn.init.zeros_(layer.weight)
    elif how == "truncated":
        nn.init.trunc_normal_(layer.weight, std=HOULSBY_SCALE, a=-2 * HOULSBY_SCALE, b=2 * HOULSBY_SCALE)
    else:
        nn.init.normal_(layer.weight, std=BERT_SCALE)
    nn.init.zeros_(layer.bias)


class NormChange(nn.Module):
    """Trained additions to the gain and bias of a norm of the model, zero at first."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(norm.get_parameter("weight").shape))
        if isinstance(getattr(norm, "bias", None), nn.Parameter):
            self.bias = nn.Parameter(torch.zeros(norm.get_parameter("bias").shape))


def changed_norm(norm: Any, changes: list[NormChange], x: Tensor) -> Tensor:
    """What a norm of the model computes with all changes to its gain and bias: in float32, handed on in the norm's own type."""
    values = {"weight": sum((change.gain for change in changes), start=norm.weight.float())}
    if hasattr(changes[0], "bias"):
        values["bias"] = sum((change.bias for change in changes), start=norm.bias.float())
    y: Tensor = functional_call(norm, values, (x.float(),))
    return y.to(norm.weight.dtype) if norm.weight.dtype in HALF_PRECISION else y


class Part(nn.Module):
    """What one adapter does at one module of the model.

    place: see the head of this file; `carry` hands the module's input on; '' changes nothing but the norm.
    """

    def __init__(self, place: str, adapter: nn.Module | None, norm: NormChange | None) -> None:
        super().__init__()
        self.place = place
        if adapter is not None:
            self.adapter = adapter
        if norm is not None:
            self.norm = norm

    def take_residual_from(self, carrier: Part) -> None:
        """Makes a `carry` part the source of the residual stream. It stays no child: it belongs to another module."""
        self.__dict__["carrier"] = carrier

    def forward(self, x: Tensor, y: Tensor, rerun: Callable[[Tensor], Tensor]) -> Tensor:
        """The new output of a module that turned x into y; `rerun` is that module, with its changed norm."""
        if self.place == "carry":
            self.__dict__["carried"] = x
        elif self.place == "after":
            return y + self.adapter(y)
        elif self.place == "update":
            return y + self.adapter(x).to(y.dtype)
        elif self.place == "around":
            return rerun(x + self.adapter(y).to(x.dtype))
        elif self.place:
            residual: Tensor = self.__dict__["carrier"].__dict__.pop("carried")
            return y + self.adapter(residual if self.place == "beside" else residual + y).to(y.dtype)
        return y


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A leaf module of the model with a part for each adapter. Several active adapters are stacked in their order.

    left_out: the module computes as if there were no adapters (AdapterDrop).
    """

    adapter_layer_names: tuple[str, ...] = ("bottleneck_parts",)

    def __init__(self, base_layer: nn.Module, reference: nn.Module) -> None:
        """reference: a module with a one-dimensional or linear `weight` as wide as the residual stream, on the device of the adapters."""
        super().__init__()
        self.base_layer = base_layer
        self.add_module(self.adapter_layer_names[0], nn.ModuleDict())
        # It may be a neighbor of this layer, so it stays no child of it.
        self.__dict__["reference"] = reference
        self._disable_adapters, self.left_out = False, False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self.train(base_layer.training)

    @property
    def parts(self) -> nn.ModuleDict:
        """By adapter name."""
        return getattr(self, self.adapter_layer_names[0])

    def add(self, adapter_name: str, part: Part) -> None:
        """Adds an adapter's part; whoever injects it says which adapters are active afterwards."""
        self.parts[adapter_name] = part.train(self.training)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, None]:
        # No type: adapters stay float32, since half-precision weights would lose small updates.
        return self.__dict__["reference"].weight.device, None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes, changed by the active adapters."""
        names = [] if self.disable_adapters or self.left_out else [name for name in self.active_adapters if name in self.parts]
        if not names:
            return self.base_layer(*args, **kwargs)
        parts: list[Any] = [self.parts[name] for name in names]
        changes = [part.norm for part in parts if hasattr(part, "norm")]
        x, *rest = args or (kwargs.pop(next(iter(kwargs))),)

        def run(inputs: Tensor) -> Any:
            return changed_norm(self.base_layer, changes, inputs) if changes else self.base_layer(inputs, *rest, **kwargs)

        y = run(x)
        for part in parts:
            y = part(x, y, run)
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Always raises NotImplementedError: an adapter is no linear map."""
        raise NotImplementedError("adapters cannot be merged into the model's weights, since they are not linear")
