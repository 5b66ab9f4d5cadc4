"""VeRA: two random matrices, frozen and shared by all layers; only a scale for each of their rows trains.

    y = W x + b * (B (d * (A x))),   A: r x in, B: out x r, drawn once;   b = 0 (out values), d = d_initial (r values) at first

W, A and B are frozen; layers of other widths use the first columns of A and rows of B. Number of parameters: r + out for each layer.
Source: Kopiczko, Blankevoort & Asano 2024, https://arxiv.org/abs/2310.11454, equation 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from ftkit.methods.base import Capabilities, Default, Paper, encoder_epochs
from ftkit.methods.parts.targets import (
    BLOCKS_TEXT,
    BlockRanges,
    TargetChoice,
    TargetedMethod,
    all_conv1d,
    targets_text,
)
from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from peft import VeraConfig

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout


class Options(Strict):
    """Size and place of the updates."""

    rank: int = Field(256, ge=1, description="Rank r of the shared matrices. Costs memory, but only r trained numbers a layer.")
    d_initial: float = Field(0.1, gt=0, description="Value that the scales d start from.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the update.")
    targets: TargetChoice = Field("auto", description=targets_text("query and value; in a decoder all-linear"))
    blocks: BlockRanges | None = Field(None, description=BLOCKS_TEXT)


class VeRA(TargetedMethod):
    """Trained scales of shared random matrices."""

    name = "vera"
    summary = "Trained scales of two frozen random matrices that all layers share."
    update_rule = "y = W x + b * (B (d * (A x))): W, A and B are frozen, the vectors b and d are trained, b is zero at first"
    paper = Paper(
        title="VeRA: Vector-based Random Matrix Adaptation",
        authors="Kopiczko, Blankevoort, Asano",
        year=2024,
        url="https://arxiv.org/abs/2310.11454",
    )
    capabilities = Capabilities(adapter=True, merge=True, quantized=True)
    Options = Options
    prefix = "vera_lambda_"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        return {"train.learning_rate": _learning_rate(facts), **encoder_epochs(facts), **self.target_defaults(facts)}

    def config(self, layout: ModelLayout, paths: list[str]) -> VeraConfig:
        from peft import VeraConfig

        return VeraConfig(
            r=self.options.rank,
            d_initial=self.options.d_initial,
            vera_dropout=self.options.dropout,
            # Drawn anew they might come out otherwise in another version of torch.
            save_projection=True,
            fan_in_fan_out=all_conv1d(layout, paths),
        )

    def layer_count(self, inward: int, outward: int) -> int:
        """r + out."""
        return int(self.options.rank) + outward


def _learning_rate(facts: ModelFacts) -> Default:
    if facts.kind == "decoder":
        return Default(value=4e-3, source="Kopiczko et al. 2024, table 10: instruction tuning of Llama")
    return Default(value=1e-2, source="Kopiczko et al. 2024, table 8: RoBERTa base on GLUE")
