"""UniPELT: low-rank updates of query and value, a prefix and Pfeiffer adapters together, each behind a trained gate.

    q = W x + g_L(x) (alpha / r) U D x,   the same for v
    Attention(q, [g_P(x) P_K; K], [g_P(x) P_V; V])
    y = LN(z + g_A(LN(z)) A(LN(z))),  z = r + FFN(r);   without a norm behind it y = z + g_A(z) A(z)

with g(x) = sigmoid(w . x + b), a number for each token and part, x what goes into that part. The gates learn which of the three
suits the task (and the token).
Count, for A attention modules of inputs d, L layers with an update and adapters of size m: the prefix as for `prefix-tuning`, A (d + 1);
L (r (in + out) + in + 1); for each feed-forward part 2 d m + m + d + d + 1; and the head.
Source: Mao et al. 2022, https://arxiv.org/abs/2110.07577; github.com/morningmoni/UniPELT
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from ftkit.methods.base import AdapterMethod, BlockRanges, Capabilities, Default, Paper, encoder_epochs, range_refusal
from ftkit.methods.parts.placement import expert_refusal
from ftkit.methods.parts.prefixes import (
    check_attention,
    prefix_groups,
    prefix_refusal,
    prefix_size,
    prefixed_modules,
    start_prefixes,
)
from ftkit.methods.parts.targets import BLOCKS_TEXT, chosen_layers, layer_shapes
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout
    from ftkit.tuners.places import Places

PAPER = "Mao et al. 2022, section 4.1: BERT base on GLUE"
WITHOUT_GATES = frozenset({"deberta-v2"})
"""Model types that take a prefix, but compute its scores in a way of their own that has no place for a gate."""


class Options(Strict):
    """Sizes of the three parts."""

    length: int = Field(10, ge=1, le=10_000, description="Keys and values k in front of each attention. 10 in the paper.")
    reparametrization: bool = Field(
        True, description="Train a network that gives the prefix instead of the prefix itself; only the prefix is kept."
    )
    hidden_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="reparametrization: size of the network's hidden layer. Default: 512, as for prefix-tuning."
    )
    rank: int = Field(8, ge=1, description="Rank r of the updates of query and value. 8 in the paper.")
    alpha: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto",
        description="The updates are scaled by alpha / rank. auto: the rank, so that only the gate scales them, as the authors have it.",
    )
    reduction_factor: float = Field(
        16.0, ge=1, description="Width of the model divided by the size of the adapters. 16 gives the paper's 48 for BERT base."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the updates and on the output of the adapters.")
    blocks: BlockRanges | None = Field(None, description=BLOCKS_TEXT)

    @model_validator(mode="after")
    def _size_where_it_counts(self) -> Options:
        if self.hidden_size is not None and not self.reparametrization:
            raise ValueError("hidden_size has no effect with `reparametrization: false`")
        return self


class UniPELT(AdapterMethod):
    """Three kinds of adapters behind gates."""

    name = "unipelt"
    summary = "LoRA, prefix and adapters together; trained gates choose between them."
    update_rule = (
        "W x + g_L(x) s U D x, Attention(q, [g_P(x) P; K V]), z + g_A(z) A(z), g(x) = sigmoid(w . x + b): "
        "D, U, P, A and the gates are trained, the model is frozen"
    )
    paper = Paper(
        title="UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning",
        authors="Mao, Mathias, Hou, Almahairi, Ma, Han, Yih, Khabsa",
        year=2022,
        url="https://arxiv.org/abs/2110.07577",
    )
    capabilities = Capabilities(adapter=True, merge=False, quantized=True)
    Options = Options
    known_to_peft = False
    prefix = "unipelt_"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        alpha = Default(value=self._alpha(), source="the authors' lora_layers.py: the gate is the only scale")
        rate = Default(value=5e-4, source=PAPER)
        if facts.narrow_encoder:
            source = "ftkit: the better of 5e-4 and 3e-3, MiniLM (width 384) on 210 rows of BBC News, 42 steps"
            rate = Default(value=3e-3, source=source)
        return {"train.learning_rate": rate, "method.alpha": alpha, **encoder_epochs(facts)}

    def refusal(self, facts: ModelFacts) -> str:
        if facts.model_type in WITHOUT_GATES:
            return f"{facts.model_type} computes attention in a way of its own, which has no place for a gate; use `mam` or `lora`"
        reason = prefix_refusal(facts) or expert_refusal(facts)
        if not reason and self.options.blocks is not None:
            reason = range_refusal(self.options.blocks, facts.block_count)
        return reason

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.tuners.unipelt import UniPELTConfig
        from ftkit.tuners.wrap import wrap

        check_attention(layout, self.name)
        modules, places, updated = self._modules(layout), self._places(layout), self._updated(layout)
        everything = dict.fromkeys([*modules, *places.outputs, *places.around, *places.carries, *updated])
        config = UniPELTConfig(
            **{**places.config(layout), "target_modules": layout.suffixes(list(everything))},
            prefix_modules=layout.suffixes(list(modules)),
            length=self.options.length,
            groups=prefix_groups(modules),
            hidden_size=self._hidden_size(),
            width=layout.hidden_size,
            gate_width=self._gate_width(layout),
            lora_modules=layout.suffixes(updated),
            rank=self.options.rank,
            alpha=self._alpha(),
            placement="pfeiffer",
            reduction_factor=self.options.reduction_factor,
            dropout=self.options.dropout,
        )
        wrapped = wrap(model, layout, config, self.declares)
        if not self.options.reparametrization:
            start_prefixes(wrapped)
        return wrapped

    def parameter_count(self, layout: ModelLayout) -> int:
        from ftkit.tuners.adapter import bottleneck_size
        from ftkit.tuners.wrap import head_parameter_count

        modules, rank = self._modules(layout), self.options.rank
        count = prefix_size(prefix_groups(modules), self.options.length, layout.hidden_size, self._hidden_size())
        count += len(modules) * (self._gate_width(layout) + 1)
        count += sum(rank * (inward + outward) + inward + 1 for inward, outward in layer_shapes(layout, self._updated(layout)))
        for width in self._places(layout).widths:
            size = bottleneck_size(width, None, self.options.reduction_factor)
            count += 2 * width * size + size + width + width + 1
        return count + head_parameter_count(layout)

    def _alpha(self) -> float:
        return float(self.options.rank if self.options.alpha == "auto" else self.options.alpha)

    def _hidden_size(self) -> int:
        return (self.options.hidden_size or 512) if self.options.reparametrization else 0

    def _modules(self, layout: ModelLayout) -> dict[str, int]:
        """Paths of the attention modules and the width of their keys. Raises ModelError where one takes no gate."""
        from ftkit.errors import ModelError
        from ftkit.tuners.prefixed_attention import takes_gate

        modules = prefixed_modules(layout, self.options.blocks)
        if not all(takes_gate(layout.model.get_submodule(path)) for path in modules):
            message = f"{layout.architecture} computes attention in a way of its own, which has no place for a gate"
            raise ModelError(message, hint="Use `mam` or `lora`")
        return modules

    def _updated(self, layout: ModelLayout) -> list[str]:
        return chosen_layers(layout, ["query", "value"], self.options.blocks)

    def _gate_width(self, layout: ModelLayout) -> int:
        """Of what goes into attention. Raises ModelError where it differs between blocks."""
        from ftkit.errors import ModelError

        widths = {inward for inward, _ in layer_shapes(layout, self._updated(layout))}
        if len(widths) > 1:
            raise ModelError(
                f"the blocks of {layout.architecture} differ in width, and UniPELT's prefix needs one", hint="Use `lora`"
            )
        return widths.pop()

    def _places(self, layout: ModelLayout) -> Places:
        from ftkit.tuners.places import find_places

        return find_places(layout, "pfeiffer", blocks=self.options.blocks, cross_attention=False, norms=False)
