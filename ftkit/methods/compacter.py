"""Compacter: bottleneck adapters whose matrices are sums of Kronecker products with shared small factors.

    A(x) = U f(D x + b_d) + b_u,   D, U = sum_i A_i (x) s_i t_i,   i = 1..n

A_i (n x n) are shared by all layers, s_i t_i are matrices of rank r of each layer's own. Places as for `adapter`; the paper's Compacter
is houlsby, its Compacter++ has the adapters after the feed-forward part alone. Norms train, too, as in the authors' code.
Count, with width d and bottleneck m: for each adapter 2 r (d + m) + m + d (rank null: 2 d m / n + m + d), n^3 shared by all (2 n^3 for
each adapter with `shared_factors: false`), with `norms` their gains and biases.
Source: Karimi Mahabadi, Henderson & Ruder 2021, https://arxiv.org/abs/2106.04647, equations 5 and 6; github.com/rabeehk/compacter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from ftkit.methods.base import Capabilities, Default, Paper
from ftkit.methods.parts.placement import (
    PLACEMENT_TEXT,
    Activation,
    Factor,
    PlacedMethod,
    Placement,
    PlacementOptions,
    Size,
    bottleneck_field,
    factor_field,
)

if TYPE_CHECKING:
    from peft import PeftConfig

    from ftkit.models.facts import ModelFacts

CONFIG = "Karimi Mahabadi et al. 2021, the authors' configs/compacter.json"
PRESETS: Mapping[str, Any] = {"bottleneck": None, "reduction_factor": 32.0, "activation": "gelu_new"}


class Options(PlacementOptions):
    """Place and size of the adapters, number and rank of the Kronecker terms."""

    placement: Placement = Field("houlsby", description=f"{PLACEMENT_TEXT} The paper's Compacter is houlsby.")
    bottleneck: Size = bottleneck_field("none, so that `reduction_factor` decides")
    reduction_factor: Factor = factor_field("32; the size is rounded up to a multiple of kronecker_terms")
    activation: Activation = Field("auto", description="Between the two layers. auto: gelu_new.")
    kronecker_terms: int = Field(4, ge=1, description="Number n of Kronecker products, and size of the shared factors.")
    rank: Annotated[int, Field(ge=1)] | None = Field(1, description="Rank of each layer's own factors; null: full matrices.")
    shared_factors: bool = Field(True, description="All layers share the n x n factors; otherwise each layer has its own.")
    norms: bool = Field(
        True, description="Train gains and biases of the model's norms as well (of the chosen blocks), as the authors did."
    )

    def preset_sizes(self) -> tuple[int | None, float | None]:
        """Of the authors."""
        return PRESETS["bottleneck"], PRESETS["reduction_factor"]

    @model_validator(mode="after")
    def _divides(self) -> Options:
        if isinstance(self.bottleneck, int) and self.bottleneck % self.kronecker_terms:
            raise ValueError(f"bottleneck {self.bottleneck} is no multiple of kronecker_terms ({self.kronecker_terms})")
        return self


class Compacter(PlacedMethod):
    """Adapters made of Kronecker products."""

    name = "compacter"
    summary = "Bottleneck adapters out of shared Kronecker factors: a tenth of their parameters or less."
    update_rule = "y = h + U f(D x), D and U = sum_i A_i (x) s_i t_i: s_i, t_i and the shared A_i are trained, the model is frozen"
    paper = Paper(
        title="Compacter: Efficient Low-Rank Hypercomplex Adapter Layers",
        authors="Karimi Mahabadi, Henderson, Ruder",
        year=2021,
        url="https://arxiv.org/abs/2106.04647",
    )
    capabilities = Capabilities(adapter=True, merge=False, quantized=True, fusable=True)
    Options = Options
    prefix = "compacter_"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        bottleneck, factor = self.options.sizes()
        values = {
            "train.learning_rate": 3e-3,
            "train.epochs": 20.0,
            "method.bottleneck": bottleneck,
            "method.reduction_factor": factor,
            "method.activation": self.preset("activation"),
        }
        found = {key: Default(value=value, source=f"{CONFIG}: T5 base on GLUE") for key, value in values.items()}
        if facts.narrow_encoder:
            small = "ftkit: best of 3e-3 and 1e-2 by validation, MiniLM (width 384) on 512 rows of BBC News, 48 steps"
            found["train.learning_rate"] = Default(value=1e-2, source=small)
        return found

    def refusal(self, facts: ModelFacts) -> str:
        terms = self.options.kronecker_terms
        if facts.hidden_size % terms:
            return f"kronecker_terms is {terms}, which does not divide the model's width of {facts.hidden_size}"
        return super().refusal(facts)

    def preset(self, name: str) -> Any:
        return PRESETS[name]

    def config(self, fields: dict[str, Any]) -> PeftConfig:
        from ftkit.tuners.compacter import CompacterConfig

        return CompacterConfig(
            **fields,
            kronecker_terms=self.options.kronecker_terms,
            rank=self.options.rank,
            shared_factors=self.options.shared_factors,
        )

    def adapter_size(self, width: int) -> int:
        from ftkit.tuners.compacter import rounded_size
        from ftkit.tuners.phm import phm_size

        terms, rank = self.options.kronecker_terms, self.options.rank
        size = rounded_size(width, self.options.sizes(), terms)
        own = 0 if self.options.shared_factors else 2 * terms**3
        return phm_size(width, size, terms, rank) + phm_size(size, width, terms, rank) + own

    def shared_size(self) -> int:
        return self.options.kronecker_terms**3 if self.options.shared_factors else 0
