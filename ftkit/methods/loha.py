"""LoHa: an update that is the elementwise product of two low-rank matrices, of a rank up to r^2.

    y = W x + s (A1 B1 * A2 B2) x,   s = alpha / r,   A1, A2: out x r,   B1, B2: r x in,   B2 = 0 at first

W is frozen. Number of parameters: 2 r (in + out) for each layer.
Sources: FedPara, Hyeon-Woo, Ye-Bin & Oh 2022, https://arxiv.org/abs/2108.06098, proposition 1; as an adapter: LyCORIS, Yeh et al. 2024,
https://arxiv.org/abs/2309.14859.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ftkit.methods.base import Capabilities, Default, Paper, encoder_epochs
from ftkit.methods.parts.targets import BLOCKS_TEXT, BlockRanges, TargetChoice, TargetedMethod, targets_text
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from peft import LoHaConfig

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout


class Options(Strict):
    """Size and place of the updates."""

    rank: int = Field(8, ge=1, description="Rank r of each of the two matrices; their product may have the rank r^2.")
    alpha: Annotated[float, Field(gt=0)] | Auto = Field("auto", description="The update is scaled by alpha / rank. auto: the rank.")
    rank_dropout: float = Field(0.0, ge=0, lt=1, description="Share of the outputs whose update is left out in a training step.")
    module_dropout: float = Field(0.0, ge=0, lt=1, description="Share of the layers whose update is left out in a training step.")
    targets: TargetChoice = Field("auto", description=targets_text("query and value; in a decoder all-linear"))
    blocks: BlockRanges | None = Field(None, description=BLOCKS_TEXT)


class LoHa(TargetedMethod):
    """Updates that are elementwise products of two low-rank matrices."""

    name = "loha"
    summary = "A trained update beside each chosen weight matrix: the elementwise product of two low-rank matrices."
    update_rule = (
        "y = W x + (alpha / r) (A1 B1 * A2 B2) x: W is frozen, the A (out x r) and B (r x in) are trained, B2 is zero at first"
    )
    paper = Paper(
        title="FedPara: Low-rank Hadamard Product for Communication-Efficient Federated Learning",
        authors="Hyeon-Woo, Ye-Bin, Oh",
        year=2022,
        url="https://arxiv.org/abs/2108.06098",
    )
    capabilities = Capabilities(adapter=True, merge=True)
    Options = Options
    prefix = "hada_"
    adapts_conv1d = False

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        alpha = Default(value=float(self.options.rank), source="PEFT's image classification guide: alpha = rank")
        return {
            "train.learning_rate": _learning_rate(facts),
            **encoder_epochs(facts),
            "method.alpha": alpha,
            **self.target_defaults(facts),
        }

    def config(self, layout: ModelLayout, paths: list[str]) -> LoHaConfig:
        from peft import LoHaConfig

        alpha = float(self.options.rank if self.options.alpha == "auto" else self.options.alpha)
        return LoHaConfig(
            r=self.options.rank,
            # PEFT declares a whole number here and computes with any.
            alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
            rank_dropout=self.options.rank_dropout,
            module_dropout=self.options.module_dropout,
        )

    def layer_count(self, inward: int, outward: int) -> int:
        """2 r (in + out)."""
        return 2 * int(self.options.rank) * (inward + outward)


def _learning_rate(facts: ModelFacts) -> Default:
    return Default(value=5e-3, source="PEFT's image classification guide: ViT base, LoHa")
