"""Mix-and-match adapters (MAM): a short prefix at each attention, a wide scaled adapter beside each feed-forward part.

    Attention(q, [P_K; K], [P_V; V]),   y = r + FFN(r) + s (U f(D r + b_d) + b_u)

P has k rows for each attention module; D: m x d, U: d x m; r: the residual stream (in post-norm models the sum is normed). While it trains,
P comes out of a network (`reparametrization`), of which only P is saved.
Count: that of `prefix-tuning` with these sizes, and for each feed-forward part 2 d m + m + d; and the head.
Source: He et al. 2022, https://arxiv.org/abs/2110.04366, section 4.6; github.com/jxhe/unify-parameter-efficient-tuning
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from ftkit.methods.base import AdapterMethod, BlockRanges, Capabilities, Default, Paper, range_refusal
from ftkit.methods.parts.placement import NO_SIZE, Factor, Size, bottleneck_field, expert_refusal, factor_field, refuse_two_sizes
from ftkit.methods.parts.prefixes import (
    check_attention,
    prefix_groups,
    prefix_refusal,
    prefix_size,
    prefixed_modules,
    start_prefixes,
)
from ftkit.methods.parts.targets import BLOCKS_TEXT
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout
    from ftkit.tuners.places import Places

GLUE = "He et al. 2022, the authors' run_glue.sh: RoBERTa base"
SMALL = "that of `adapter` with parallel placement, measured for models this narrow: MiniLM (width 384) on BBC News"
XSUM = "He et al. 2022, the authors' run_xsum.sh: BART large"


class Options(Strict):
    """Size of the prefix and of the adapters."""

    length: Annotated[int, Field(ge=1, le=10_000)] | Auto = Field(
        "auto", description="Keys and values k in front of each attention. auto: 16, in decoders and encoder-decoders 30."
    )
    reparametrization: bool = Field(
        True, description="Train a network that gives the prefix instead of the prefix itself; only the prefix is kept."
    )
    hidden_size: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="reparametrization: size of the network's hidden layer. Default: 800, as in the authors' scripts (mid_dim).",
    )
    bottleneck: Size = bottleneck_field("16; in decoders and encoder-decoders none, so that `reduction_factor` decides")
    reduction_factor: Factor = factor_field("none; in decoders and encoder-decoders 2")
    scaling: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto", description="Factor s on the adapter's output. auto: 2, in decoders and encoder-decoders 4."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's output.")
    blocks: BlockRanges | None = Field(None, description=BLOCKS_TEXT)

    @model_validator(mode="after")
    def _fit_together(self) -> Options:
        refuse_two_sizes(self.bottleneck, self.reduction_factor)
        if self.bottleneck is None and self.reduction_factor is None:
            raise ValueError(NO_SIZE)
        if self.hidden_size is not None and not self.reparametrization:
            raise ValueError("hidden_size has no effect with `reparametrization: false`")
        return self


class MixAndMatch(AdapterMethod):
    """A prefix and parallel adapters."""

    name = "mam"
    summary = "A short prefix at each attention and a scaled parallel adapter at each feed-forward part (mix-and-match)."
    update_rule = "Attention(q, [P_K; K], [P_V; V]) and y = r + FFN(r) + s U f(D r): P, D and U are trained, the model is frozen"
    paper = Paper(
        title="Towards a Unified View of Parameter-Efficient Transfer Learning",
        authors="He, Zhou, Ma, Berg-Kirkpatrick, Neubig",
        year=2022,
        url="https://arxiv.org/abs/2110.04366",
    )
    capabilities = Capabilities(adapter=True, merge=False, quantized=True)
    Options = Options
    known_to_peft = False
    prefix = "mix_and_match_"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        long = facts.kind in ("decoder", "encoder-decoder")
        source = XSUM if long else GLUE
        given = self.options.bottleneck != "auto" or self.options.reduction_factor != "auto"
        bottleneck, factor = self._sizes() if given else ((None, 2.0) if long else (16, None))
        sized = "follows from the other of bottleneck and reduction_factor" if given else source
        found = {
            "train.learning_rate": Default(value=5e-5 if long else 1e-4, source=source),
            "method.length": Default(value=30 if long else 16, source=source),
            "method.bottleneck": Default(value=bottleneck, source=sized),
            "method.reduction_factor": Default(value=factor, source=sized),
            "method.scaling": Default(value=4.0 if long else 2.0, source=source),
        }
        if not long:
            found["train.epochs"] = Default(value=10.0, source=source)
        if facts.narrow_encoder:
            found["train.learning_rate"] = Default(value=1e-3, source=SMALL)
        return found

    def refusal(self, facts: ModelFacts) -> str:
        reason = prefix_refusal(facts) or expert_refusal(facts)
        if not reason and self.options.blocks is not None:
            reason = range_refusal(self.options.blocks, facts.block_count)
        return reason

    def _sizes(self) -> tuple[int | None, float | None]:
        """Bottleneck and reduction factor, one of them None."""
        if isinstance(self.options.bottleneck, int):
            return self.options.bottleneck, None
        return (None, self.options.reduction_factor) if isinstance(self.options.reduction_factor, float) else (16, None)

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.tuners.mix_and_match import MixAndMatchConfig
        from ftkit.tuners.wrap import wrap

        check_attention(layout, self.name)
        modules, places = prefixed_modules(layout, self.options.blocks), self._places(layout)
        bottleneck, factor = self._sizes()
        everything = dict.fromkeys([*modules, *places.outputs, *places.carries])
        config = MixAndMatchConfig(
            **{**places.config(layout), "target_modules": layout.suffixes(list(everything))},
            prefix_modules=layout.suffixes(list(modules)),
            length=self._value("length"),
            groups=prefix_groups(modules),
            hidden_size=self._hidden_size(),
            width=layout.hidden_size,
            placement="parallel",
            bottleneck=bottleneck,
            reduction_factor=factor,
            scaling=self._value("scaling"),
            dropout=self.options.dropout,
            init="zero-up",
        )
        wrapped = wrap(model, layout, config, self.declares)
        if not self.options.reparametrization:
            start_prefixes(wrapped)
        return wrapped

    def parameter_count(self, layout: ModelLayout) -> int:
        from ftkit.tuners.adapter import bottleneck_size
        from ftkit.tuners.wrap import head_parameter_count

        groups = prefix_groups(prefixed_modules(layout, self.options.blocks))
        count = prefix_size(groups, self._value("length"), layout.hidden_size, self._hidden_size())
        for width in self._places(layout).widths:
            size = bottleneck_size(width, *self._sizes())
            count += 2 * width * size + size + width
        return count + head_parameter_count(layout)

    def _hidden_size(self) -> int:
        return (self.options.hidden_size or 800) if self.options.reparametrization else 0

    def _value(self, name: str) -> Any:
        """An option; what a plan has not filled in is that of encoders."""
        given = getattr(self.options, name)
        return {"length": 16, "scaling": 2.0}[name] if given == "auto" else given

    def _places(self, layout: ModelLayout) -> Places:
        from ftkit.tuners.places import find_places

        return find_places(layout, "parallel", blocks=self.options.blocks, cross_attention=False, norms=False)
