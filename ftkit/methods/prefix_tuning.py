"""Prefix tuning: trained keys and values in front of those of every attention; the model itself is frozen.

    Attention(q, [P_K; K], [P_V; V]),   P_K, P_V: k x width of a key, trained for each attention module

With `reparametrization`, P of all layers comes out of a network while it trains: P = W_2 tanh(W_1 D + b_1) + b_2 with D: k x d; only
P is saved. The prefix has no position: texts keep theirs. Encoder-decoders get prefixes in the self-attention of both and in the
cross-attention, with a network for each of the three. Parameters, with A attention modules and w numbers in a key of all heads:
    2 A k w;   reparametrized, for each kind of attention of A modules: k d + (d h + h) + (h 2 A w + 2 A w);   and the head.
Sources: Li & Liang 2021, https://arxiv.org/abs/2101.00190; for encoders Liu et al. 2022 (P-tuning v2),
https://arxiv.org/abs/2110.07602.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from ftkit.methods.base import AdapterMethod, BlockRanges, Capabilities, Default, Paper, range_refusal
from ftkit.methods.parts.prefixes import (
    check_attention,
    prefix_groups,
    prefix_refusal,
    prefix_size,
    prefixed_modules,
    start_prefixes,
)
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout


class Options(Strict):
    """Size, place and parametrization of the prefix."""

    length: Annotated[int, Field(ge=1, le=10_000)] | Auto = Field(
        "auto", description="Keys and values k in front of each attention. auto: 10 for decoders, else 20."
    )
    reparametrization: bool | Auto = Field(
        "auto",
        description="Train a network that gives the prefix instead of the prefix itself; only the prefix is kept. auto: true for decoders "
        "and encoder-decoders.",
    )
    hidden_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="reparametrization: size of the network's hidden layer. Default: 512, as the paper's scripts for GPT-2."
    )
    blocks: BlockRanges | None = Field(
        None, description="Only in these blocks: numbers and ranges, `[0-3, 10]`, from 0; decoder blocks follow encoder blocks."
    )

    @model_validator(mode="after")
    def _size_where_it_counts(self) -> Options:
        if self.hidden_size is not None and self.reparametrization is False:
            raise ValueError("hidden_size has no effect with `reparametrization: false`")
        return self


class PrefixTuning(AdapterMethod):
    """Trained keys and values."""

    name = "prefix-tuning"
    summary = "Trained keys and values in front of those of every attention."
    update_rule = (
        "Attention(q, [P_K; K], [P_V; V]): the model is frozen, P_K and P_V (k rows for each attention module) are trained"
    )
    paper = Paper(
        title="Prefix-Tuning: Optimizing Continuous Prompts for Generation",
        authors="Li, Liang",
        year=2021,
        url="https://arxiv.org/abs/2101.00190",
    )
    capabilities = Capabilities(adapter=True, merge=False, quantized=True)
    Options = Options
    known_to_peft = False
    prefix = "attention_prefix_"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        return {
            **_train_defaults(facts, self._is_reparametrized(facts)),
            "method.length": _length_default(facts),
            "method.reparametrization": _network_default(facts),
        }

    def _is_reparametrized(self, facts: ModelFacts) -> bool:
        chosen = self.options.reparametrization
        return bool(_network_default(facts).value if chosen == "auto" else chosen)

    def refusal(self, facts: ModelFacts) -> str:
        if reason := prefix_refusal(facts):
            return reason
        if self.options.hidden_size is not None and not self._is_reparametrized(facts):
            return "hidden_size has no effect without `reparametrization: true`"
        return range_refusal(self.options.blocks, facts.block_count) if self.options.blocks is not None else ""

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.tuners.attention_prefix import AttentionPrefixConfig
        from ftkit.tuners.wrap import wrap

        check_attention(layout, self.name)
        modules = self._modules(layout)
        config = AttentionPrefixConfig(
            length=self.length,
            groups=prefix_groups(modules),
            hidden_size=self._hidden_size(),
            width=layout.hidden_size,
            target_modules=layout.suffixes(list(modules)),
        )
        wrapped = wrap(model, layout, config, self.declares)
        if not self._hidden_size():
            start_prefixes(wrapped)
        return wrapped

    @property
    def length(self) -> int:
        """Keys in front of each attention."""
        return 20 if self.options.length == "auto" else int(self.options.length)

    def _hidden_size(self) -> int:
        """Of the network; 0 without one."""
        return (self.options.hidden_size or 512) if self.options.reparametrization is True else 0

    def parameter_count(self, layout: ModelLayout) -> int:
        from ftkit.tuners.wrap import head_parameter_count

        groups = prefix_groups(self._modules(layout))
        return prefix_size(groups, self.length, layout.hidden_size, self._hidden_size()) + head_parameter_count(layout)

    def _modules(self, layout: ModelLayout) -> dict[str, int]:
        """Paths of the attention modules in order, and the width of their keys. Raises ModelError if there are none."""
        return prefixed_modules(layout, self.options.blocks)


def _length_default(facts: ModelFacts) -> Default:
    if facts.kind == "decoder":
        return Default(value=10, source="Li & Liang 2021, section 7.2: best for table-to-text; train_e2e.py")
    return Default(value=20, source="Liu et al. 2022 (P-tuning v2), run_rte_bert.sh; PEFT's guides")


def _network_default(facts: ModelFacts) -> Default:
    if facts.kind in ("decoder", "encoder-decoder"):
        return Default(value=True, source="Li & Liang 2021, section 4.3: training the prefix itself is unstable")
    return Default(value=False, source="Liu et al. 2022 (P-tuning v2), section 3.3: a network helps on some tasks only")


def _train_defaults(facts: ModelFacts, reparametrized: bool) -> dict[str, Default]:
    def defaults(rate: float, epochs: float | None, source: str) -> dict[str, Default]:
        values = {"train.learning_rate": rate, "train.epochs": epochs}
        return {key: Default(value=value, source=source) for key, value in values.items() if value is not None}

    if facts.kind in ("decoder", "encoder-decoder") and reparametrized:
        return defaults(5e-5, 5.0, "Li & Liang 2021, the authors' train_e2e.py (GPT-2) and train_bart.py")
    if facts.kind == "decoder":
        return defaults(5e-3, None, "PEFT's method comparison: best of its prefix tuning runs (Llama-3.2-3B)")
    if facts.narrow_encoder:
        return defaults(3e-2, 30.0, "ftkit: the better of 1e-2 and 3e-2 after 36 steps, MiniLM (width 384) on BBC News")
    return defaults(
        1e-2, 30.0, "Liu et al. 2022 (P-tuning v2), run_rte_bert.sh; 5e-3 to 3e-2 and 30 to 100 epochs in their scripts"
    )
