"""LoKr: an update that is the Kronecker product of two small matrices, the larger one of low rank. Covers KronA.

    y = W x + s (C kron A B) x,   s = alpha / r,   C: l x m,   A: k x r,   B: r x n,   l k = out,   m n = in,   C = 0 at first

W is frozen. l and m are the factors of out and in next to their square roots from below, or `factor`. Where r is at least half of
max(k, n), or `rank` is null, one matrix k x n stands for A B: with `rank: null` that is KronA, (C kron D) x with s = alpha.
Number of parameters for each layer: l m + r (k + n), or l m + k n; with decompose_both r (l + m) instead of l m if r < max(l, m) / 2.
Sources: LyCORIS, Yeh et al. 2024, https://arxiv.org/abs/2309.14859; KronA, Edalati et al. 2022, https://arxiv.org/abs/2212.10650.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ftkit.methods.base import Capabilities, Default, Paper, encoder_epochs
from ftkit.methods.parts.targets import BLOCKS_TEXT, BlockRanges, TargetChoice, TargetedMethod, targets_text
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from peft import LoKrConfig

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

WHOLE = 2**20
"""A rank that no layer reaches: PEFT then keeps both matrices whole. It divides alpha without rounding."""


class Options(Strict):
    """Size and place of the updates."""

    rank: Annotated[int, Field(ge=1, lt=WHOLE)] | None = Field(
        8, description="Rank r of the larger matrix. null: both matrices are whole (KronA)."
    )
    alpha: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto", description="The update is scaled by alpha / rank, with `rank: null` by alpha. auto: what gives a scale of 1."
    )
    factor: int | None = Field(
        None,
        ge=2,
        description="Rows and columns of the small matrix, where it divides those of the weight. null: near the square root.",
    )
    decompose_both: bool = Field(False, description="Give the small matrix rank r, too, if r is below half of its longer side.")
    init: Literal["default", "lycoris"] = Field(
        "default", description="default: the small matrix is zero. lycoris: the large one is."
    )
    rank_dropout: float = Field(0.0, ge=0, lt=1, description="Share of the outputs whose update is left out in a training step.")
    module_dropout: float = Field(0.0, ge=0, lt=1, description="Share of the layers whose update is left out in a training step.")
    targets: TargetChoice = Field("auto", description=targets_text("query and value; in a decoder all-linear"))
    blocks: BlockRanges | None = Field(None, description=BLOCKS_TEXT)

    @model_validator(mode="after")
    def _fits_together(self) -> Options:
        if self.decompose_both and self.rank is None:
            raise ValueError("decompose_both needs a rank; `rank: null` keeps both matrices whole")
        return self


class LoKr(TargetedMethod):
    """Updates that are Kronecker products."""

    name = "lokr"
    summary = "A trained update beside each chosen weight matrix: the Kronecker product of two small matrices (KronA)."
    update_rule = "y = W x + (alpha / r) (C kron A B) x: W is frozen, C, A (k x r) and B (r x n) are trained, C is zero at first"
    paper = Paper(
        title="Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
        authors="Yeh, Hsieh, Gao, Yang, Oh, Gong",
        year=2024,
        url="https://arxiv.org/abs/2309.14859",
    )
    capabilities = Capabilities(adapter=True, merge=True)
    Options = Options
    prefix = "lokr_"
    adapts_conv1d = False

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        alpha = Default(value=float(self.options.rank or 1), source="PEFT's image classification guide: alpha = rank")
        return {
            "train.learning_rate": _learning_rate(facts),
            **encoder_epochs(facts),
            "method.alpha": alpha,
            **self.target_defaults(facts),
        }

    def config(self, layout: ModelLayout, paths: list[str]) -> LoKrConfig:
        from peft import LoKrConfig

        rank = self.options.rank or WHOLE
        scale = 1.0 if self.options.alpha == "auto" else float(self.options.alpha) / (self.options.rank or 1)
        alpha = scale * rank
        init: Any = "lycoris" if self.options.init == "lycoris" else True
        return LoKrConfig(
            r=rank,
            # PEFT declares a whole number here and computes with any.
            alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
            decompose_factor=self.options.factor or -1,
            decompose_both=self.options.decompose_both,
            init_weights=init,
            rank_dropout=self.options.rank_dropout,
            module_dropout=self.options.module_dropout,
        )

    def layer_count(self, inward: int, outward: int) -> int:
        """l m + r (k + n), or l m + k n where the large matrix is whole."""
        rank = self.options.rank or WHOLE
        (rows, large_rows), (columns, large_columns) = self._split(outward), self._split(inward)
        small, large = rows * columns, large_rows * large_columns
        if self.options.decompose_both and 2 * rank < max(rows, columns):
            small = rank * (rows + columns)
        if 2 * rank < max(large_rows, large_columns):
            large = rank * (large_rows + large_columns)
        return small + large

    def _split(self, width: int) -> tuple[int, int]:
        """The two factors of a width."""
        factor = self.options.factor
        if factor and width % factor == 0:
            return factor, width // factor
        small = max(number for number in range(1, min(math.isqrt(width), factor or width) + 1) if width % number == 0)
        return small, width // small


def _learning_rate(facts: ModelFacts) -> Default:
    return Default(value=5e-3, source="PEFT's image classification guide: ViT base, LoKr")
