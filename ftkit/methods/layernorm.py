"""Layer norm tuning: the gains and biases of the norms train, and the head; all else is frozen.

    y = (g + c) * normalized(x) + (b + d),   c = d = 0 at first;   for an RMSNorm there is no b

g and b are frozen. The additions c and d are a PEFT adapter of ftkit's own (`ftkit.tuners.norm_change`); merged, it is a plain model.
Count: the widths of all chosen norms, once for the gain and once for the bias where there is one.
Sources: Qi, Ruan, Zuo & Li 2022, https://arxiv.org/abs/2211.08682; for large language models Zhao et al. 2024,
https://arxiv.org/abs/2312.11420
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ftkit.methods.base import AdapterMethod, Capabilities, Default, Paper, encoder_epochs
from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

WITHOUT_GAINS = frozenset({"olmo"})
"""Model types whose norms have no trained numbers."""


class Options(Strict):
    """Which norms train, and what of them."""

    norms: Literal["all", "attention", "feed-forward", "final"] = Field(
        "all",
        description="all: every norm of the pretrained model, those of embeddings too. attention, feed-forward: those beside or inside "
        "that part of each block. final: the last norm of each stack of blocks.",
    )
    biases: bool = Field(True, description="Train the biases of norms that have some as well as the gains.")


class LayerNormTuning(AdapterMethod):
    """The norms train, as additions that a PEFT adapter holds."""

    name = "layernorm"
    summary = "Only the gains and biases of the norms train."
    update_rule = "y = (g + c) * normalized(x) + (b + d): g and b are frozen, c and d are trained and zero at first"
    paper = Paper(
        title="Parameter-Efficient Tuning on Layer Normalization for Pre-trained Language Models",
        authors="Qi, Ruan, Zuo, Li",
        year=2022,
        url="https://arxiv.org/abs/2211.08682",
    )
    capabilities = Capabilities(adapter=True, merge=True)
    Options = Options
    known_to_peft = False
    prefix = "norm_change_"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        if facts.narrow_encoder:
            source = "ftkit: the better of 1e-3 and 1e-2 after 28 steps, MiniLM (width 384) on 210 rows of BBC News"
            return {"train.learning_rate": Default(value=1e-2, source=source), **encoder_epochs(facts)}
        source = "that of BitFit, whose trained numbers are of the same kind and count (the authors' run_glue.py)"
        if facts.kind == "decoder":
            source = "PEFT's method comparison: its 1e-4 teaches Llama-3.2-3B nothing with trained norms, so ten times that"
        return {"train.learning_rate": Default(value=1e-3, source=source), **encoder_epochs(facts)}

    def refusal(self, facts: ModelFacts) -> str:
        if facts.model_type in WITHOUT_GAINS:
            return f"the norms of {facts.model_type} models have no gains or biases that could train; use `lora`"
        return ""

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.errors import ModelError
        from ftkit.tuners.norm_change import NormChangeConfig
        from ftkit.tuners.wrap import wrap

        if not (norms := self._norms(layout)):
            which = "norms" if self.options.norms == "all" else f"norms that belong to the part {self.options.norms}"
            raise ModelError(
                f"{layout.architecture} has no {which} with a gain that could train", hint="Use `norms: all` or `lora`"
            )
        config = NormChangeConfig(target_modules=layout.suffixes(norms), biases=self.options.biases)
        return wrap(model, layout, config, self.declares)

    def parameter_count(self, layout: ModelLayout) -> int:
        from ftkit.tuners.wrap import head_parameter_count

        kinds = ("weight", "bias") if self.options.biases else ("weight",)
        wanted = {f"{norm}.{kind}" for norm in self._norms(layout) for kind in kinds}
        sizes = {layout.canonical(name): parameter.numel() for name, parameter in layout.model.named_parameters()}
        return sum(size for name, size in sizes.items() if name in wanted) + head_parameter_count(layout)

    def _norms(self, layout: ModelLayout) -> list[str]:
        """Paths of the norms that train, in order of the model."""
        from ftkit.models.norms import norms_by_place

        return norms_by_place(layout, self.options.norms)
