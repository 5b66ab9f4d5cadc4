"""BOFT: like OFT, but the orthogonal matrix is a product of sparse ones, ordered like the butterflies of a Fourier transform.

    y = c * (W R x) + bias,   R = product over i of P_i diag(blocks of i) P_i',   each block (I + Q) (I - Q)^-1,   Q = -Q' (b x b)

W is frozen; P_i are fixed permutations; Q = 0 and c = 1 (out values) at first. With m factors each output depends on b 2^(m-1) inputs.
Number of parameters: m b in + out for each layer (PEFT keeps Q as a full b x b matrix, of which only the skew part counts).
Source: Liu et al. 2024, https://arxiv.org/abs/2311.06243, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from ftkit.methods.base import Capabilities, Default, Paper, encoder_epochs
from ftkit.methods.parts.targets import (
    BLOCKS_TEXT,
    BlockRanges,
    TargetChoice,
    TargetedMethod,
    check_divisible,
    targets_text,
)
from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from peft import BOFTConfig

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout


class Options(Strict):
    """Size and place of the rotations."""

    block_size: int = Field(4, ge=2, description="Width b of the blocks.")
    factors: int = Field(
        1,
        ge=1,
        le=16,
        description="Number m of butterfly factors. block_size * 2^(m-1) must divide the width of each layer's input.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the blocks that turn nothing in a training step.")
    targets: TargetChoice = Field("auto", description=targets_text("query and value; in a decoder all-linear"))
    blocks: BlockRanges | None = Field(None, description=BLOCKS_TEXT)

    @model_validator(mode="after")
    def _even(self) -> Options:
        if self.factors > 1 and self.block_size % 2:
            raise ValueError(f"several factors need an even block_size, not {self.block_size}")
        return self


class BOFT(TargetedMethod):
    """Products of sparse orthogonal matrices that turn the inputs of linear layers."""

    name = "boft"
    summary = "A trained product of sparse orthogonal matrices turns each chosen weight matrix."
    update_rule = (
        "y = c * (W R x): W is frozen; R, a product of sparse orthogonal matrices, and c are trained; R = I and c = 1 at first"
    )
    paper = Paper(
        title="Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
        authors="Liu, Qiu, Feng, Xiu, Xue, Yu, Feng, Liu, Heo, Peng, Wen, Black, Weller, Schölkopf",
        year=2024,
        url="https://arxiv.org/abs/2311.06243",
    )
    capabilities = Capabilities(adapter=True, merge=True, quantized=True)
    Options = Options
    # PEFT by itself compiles a CUDA extension first, and without one loads adapters of a single factor only.
    known_to_peft = False
    prefix = "boft_"
    adapts_conv1d = False

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        return {"train.learning_rate": _learning_rate(facts), **encoder_epochs(facts), **self.target_defaults(facts)}

    def config(self, layout: ModelLayout, paths: list[str]) -> BOFTConfig:
        from peft import BOFTConfig

        size, factors = int(self.options.block_size), int(self.options.factors)
        check_divisible(layout, paths, size * 2 ** (factors - 1), "method.block_size")
        return BOFTConfig(
            boft_block_size=size,
            boft_n_butterfly_factor=factors,
            boft_dropout=self.options.dropout,
        )

    def layer_count(self, inward: int, outward: int) -> int:
        """m b in + out."""
        return int(self.options.factors) * int(self.options.block_size) * inward + outward


def _learning_rate(facts: ModelFacts) -> Default:
    return Default(value=1e-4, source="PEFT's method comparison")
