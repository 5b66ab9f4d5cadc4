"""Bottleneck adapters as a PEFT tuner, in the layouts of the AdapterHub library (`adapters`).

`ftkit.tuners.bottleneck` holds the modules and their formulas, `ftkit.tuners.places` finds where they belong. Sources: Houlsby et al.
2019, https://arxiv.org/abs/1902.00751; Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247; He et al. 2022,
https://arxiv.org/abs/2110.04366; AdapterDrop, Rücklé et al. 2021, https://arxiv.org/abs/2010.11918
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType
from torch import nn

from ftkit.models.layout import ModelLayout
from ftkit.models.naming import matches
from ftkit.models.roles import is_linear, linear_shape
from ftkit.tuners.bottleneck import AdapterLayer, Bottleneck, NormChange, Part

Patterns = list[str] | str | None

OUTPUT_PLACES = {"houlsby": "after", "pfeiffer": "sum", "parallel": "beside"}
"""What an adapter does with a sublayer's output, by placement."""


@dataclass
class AdapterConfig(PeftConfig):
    """Config of a bottleneck adapter. Modules are lists of module name endings, or a regular expression for whole names.

    target_modules: every leaf module that the adapter touches; the next four say what for.
    output_modules: give what sublayers add to the residual stream. around_modules: norm that sum (post-norm blocks).
    carry_modules: get the residual stream as input. norm_modules: norms whose gain and bias are trained.
    exclude_modules: modules to leave out. modules_to_save: modules trained and saved whole, beside the adapter (the task head).
    placement: houlsby, pfeiffer or parallel. bottleneck: size, or reduction_factor: width / size.
    activation, layer_norm, dropout, scaling, init: see `ftkit.tuners.bottleneck.Bottleneck`.
    """

    target_modules: Patterns = field(default=None)
    exclude_modules: Patterns = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    output_modules: Patterns = field(default=None)
    around_modules: Patterns = field(default=None)
    carry_modules: Patterns = field(default=None)
    norm_modules: Patterns = field(default=None)
    placement: str = field(default="pfeiffer")
    bottleneck: int | None = field(default=None)
    reduction_factor: float | None = field(default=None)
    activation: str = field(default="relu")
    layer_norm: str = field(default="none")
    dropout: float = field(default=0.0)
    scaling: float | str = field(default=1.0)
    init: str = field(default="normal")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["ADAPTER"]

    def size(self, width: int) -> int:
        """Size of the bottleneck in a residual stream of this width."""
        return bottleneck_size(width, self.bottleneck, self.reduction_factor)

    def place(self, path: str) -> str:
        """What the adapter does at a module, see `Part`."""
        if matches(self.output_modules or [], path):
            return OUTPUT_PLACES[self.placement]
        if matches(self.around_modules or [], path):
            return "around"
        return "carry" if matches(self.carry_modules or [], path) else ""


def bottleneck_size(width: int, bottleneck: int | None, reduction_factor: float | None) -> int:
    """The given size, or width / reduction_factor, at least 1."""
    return bottleneck or max(1, int(width / (reduction_factor or 1)))


class AdapterModel(BaseTuner):
    """Puts bottleneck adapters into a model."""

    prefix = "bottleneck_"
    tuner_layer_cls: type[AdapterLayer] = AdapterLayer
    target_module_mapping: dict[str, list[str]] = {}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adds an adapter, and connects its parts that need the residual stream with those that have it."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, AdapterLayer)}
        parts: dict[str, Any] = {path: layer.parts[adapter_name] for path, layer in layers.items() if adapter_name in layer.parts}
        carriers = {path: part for path, part in parts.items() if part.place == "carry"}
        for path, part in parts.items():
            if part.place in ("sum", "beside"):
                part.take_residual_from(carriers[max(carriers, key=lambda other: _shared(path, other))])

    @classmethod
    def adapter_layer_class(cls) -> type[AdapterLayer]:
        """The class of the layers around modules of the model."""
        return cls.tuner_layer_cls

    def make_adapter(self, config: Any, adapter_name: str, width: int) -> nn.Module:
        """The adapter for one place."""
        return Bottleneck(
            width,
            config.size(width),
            activation=config.activation,
            layer_norm=config.layer_norm,
            dropout=config.dropout,
            scaling=config.scaling,
            init=config.init,
        )

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT's own looks for the name right before the parameter's.
        before, container, inside = key.partition(f".{cls.tuner_layer_cls.adapter_layer_names[0]}.")
        if not container:
            return super()._remove_adapter_name_from_key(key, adapter_name)
        return before + container + inside.removeprefix(f"{adapter_name}.")

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
        layer = target if isinstance(target, AdapterLayer) else self.adapter_layer_class()(target, _reference(target, parent))
        layer.add(adapter_name, self._part(peft_config, adapter_name, current_key, layer))
        if layer is not target:
            setattr(parent, target_name, layer)

    def _part(self, config: Any, adapter_name: str, path: str, layer: AdapterLayer) -> Part:
        place = config.place(path)
        adapts = place not in ("carry", "")
        adapter = self.make_adapter(config, adapter_name, _width(layer.reference)) if adapts else None
        changes = matches(config.norm_modules or [], path)
        return Part(place, adapter, NormChange(layer.base_layer) if changes else None)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own also copies `weight` from the old module to the new one, which a dropout does not have.
        setattr(parent, child_name, new_module)


def _reference(target: nn.Module, parent: nn.Module) -> nn.Module:
    """The module itself, or for one without weights (a dropout) the norm beside it."""
    if getattr(target, "weight", None) is not None:
        return target
    weights = ((child, getattr(child, "weight", None)) for child in parent.children() if child is not target)
    return next(child for child, weight in weights if weight is not None and weight.dim() == 1)


def _width(reference: Any) -> int:
    return linear_shape(reference)[1] if is_linear(reference) else int(reference.weight.shape[0])


def _shared(one: str, other: str) -> int:
    """How many leading segments two module paths have in common."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def drop_adapters(wrapped: PeftModel, layout: ModelLayout, blocks: int) -> int:
    """Leaves the adapters of the first blocks out of the forward pass (AdapterDrop); in models with two stacks, of each stack.

    Whatever an adapter changes there is left out, trained norms and what precedes the blocks included, so that the hidden states up to
    there are those of the base and can be shared by many adapters. layout: of the plain model. blocks: 0 puts everything back.
    Returns the number of modules that are left out.
    """
    starts: dict[str, int] = {}
    for block in layout.blocks:
        starts.setdefault(block.stack, block.index)
    dropped = {block.index for block in layout.blocks if block.index - starts[block.stack] < blocks}
    count = 0
    for path, layer in wrapped.named_modules():
        if isinstance(layer, AdapterLayer):
            depth = layout.depth(path)
            layer.left_out = depth - 1 in dropped if depth else blocks > 0
            count += layer.left_out
    return count
