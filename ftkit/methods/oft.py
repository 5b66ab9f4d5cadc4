"""OFT: each weight matrix is turned by a trained block-diagonal orthogonal matrix, which keeps the angles between its rows.

    y = W R x + bias,   R = diag(R1 ... Rn),   Ri = (I + Qi) (I - Qi)^-1,   Qi = -Qi' (b x b),   Q = 0 at first

W is frozen. By default the inverse is replaced by the first five terms of its Neumann series (OFTv2), which is faster and nearly
orthogonal. Number of parameters: in (b - 1) / 2 for each layer, with shared blocks b (b - 1) / 2.
Sources: Qiu et al. 2023, https://arxiv.org/abs/2306.07280; OFTv2, Qiu et al. 2025, https://arxiv.org/abs/2506.19847.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ftkit.methods.base import Capabilities, Default, Paper, encoder_epochs
from ftkit.methods.parts.targets import (
    BLOCKS_TEXT,
    BlockRanges,
    TargetChoice,
    TargetedMethod,
    check_divisible,
    largest_divisor,
    targets_text,
)
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from peft import OFTConfig

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

USUAL_BLOCK = 32


class Options(Strict):
    """Size and place of the rotations."""

    block_size: Annotated[int, Field(ge=2)] | Auto = Field(
        "auto",
        description="Width b of the blocks; must divide the width of each layer's input. auto: 32, or the next smaller divisor.",
    )
    share_blocks: bool = Field(False, description="One block for all of a layer instead of one for each b inputs.")
    exact: bool = Field(False, description="Compute the orthogonal matrices exactly instead of by five terms of a series; slower.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the blocks that turn nothing in a training step.")
    targets: TargetChoice = Field("auto", description=targets_text("query and value; in a decoder all-linear"))
    blocks: BlockRanges | None = Field(None, description=BLOCKS_TEXT)


class OFT(TargetedMethod):
    """Orthogonal matrices that turn the inputs of linear layers."""

    name = "oft"
    summary = "A trained orthogonal matrix turns each chosen weight matrix."
    update_rule = (
        "y = W R x: W is frozen, R is block-diagonal and orthogonal, made of trained skew-symmetric blocks, the identity at first"
    )
    paper = Paper(
        title="Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
        authors="Qiu, Liu, Feng, Xue, Feng, Liu, Zhang, Weller, Schölkopf",
        year=2023,
        url="https://arxiv.org/abs/2306.07280",
    )
    capabilities = Capabilities(adapter=True, merge=True, quantized=True)
    Options = Options
    prefix = "oft_"
    adapts_conv1d = False

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        block = Default(value=self._block(facts.hidden_size), source="PEFT's default of 32; it must divide the width of the model")
        return {
            "train.learning_rate": _learning_rate(facts),
            **encoder_epochs(facts),
            "method.block_size": block,
            **self.target_defaults(facts),
        }

    def _block(self, width: int) -> int:
        chosen = self.options.block_size
        return (largest_divisor(width, USUAL_BLOCK) or USUAL_BLOCK) if chosen == "auto" else int(chosen)

    def config(self, layout: ModelLayout, paths: list[str]) -> OFTConfig:
        from peft import OFTConfig

        block = self._block(layout.hidden_size)
        check_divisible(layout, paths, block, "method.block_size")
        return OFTConfig(
            r=0,
            oft_block_size=block,
            block_share=self.options.share_blocks,
            use_cayley_neumann=not self.options.exact,
            module_dropout=self.options.dropout,
        )

    def parameter_count(self, layout: ModelLayout) -> int | None:
        """That of the blocks which `config` chooses for the whole model."""
        chosen = OFT(self.options.model_copy(update={"block_size": self._block(layout.hidden_size)}))
        return super(OFT, chosen).parameter_count(layout)

    def layer_count(self, inward: int, outward: int) -> int:
        """b (b - 1) / 2 for each block."""
        block = self._block(inward)
        return block * (block - 1) // 2 * (1 if self.options.share_blocks else inward // block)


def _learning_rate(facts: ModelFacts) -> Default:
    return Default(value=1e-4, source="PEFT's method comparison")
