"""Bottleneck adapters: small two-layer networks with a residual are trained inside a frozen model.

    A(x) = s (U f(D x + b_d) + b_u),   D: m x d, U: d x m, m the bottleneck, d the width

With the output h of a sublayer, the residual stream r before it and the norm LN that follows in post-norm models:
    houlsby   y = LN(r + h + A(h)), after attention and after the feed-forward part
    pfeiffer  y = LN(z + A(LN(z))), z = r + h, after the feed-forward part; without a norm behind it y = z + A(z)
    parallel  y = LN(r + h + s A(r)), beside the feed-forward part
Count: for each adapter 2 d m + m + d, with a layer norm 2 d more, with learned scaling 1 more; with `norms` their gains and biases.
Sources: Houlsby et al. 2019, section 2.1, https://arxiv.org/abs/1902.00751; Pfeiffer et al. 2021 (AdapterFusion), section 3 and
appendix, https://arxiv.org/abs/2005.00247; He et al. 2022, section 3.3, https://arxiv.org/abs/2110.04366; AdapterDrop, Rücklé et
al. 2021, https://arxiv.org/abs/2010.11918. The places are those of the AdapterHub library's DoubleSeqBnConfig, SeqBnConfig, ParBnConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ftkit.methods.base import Capabilities, Default, Paper, encoder_epochs
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
from ftkit.recipe.schema import Auto

if TYPE_CHECKING:
    from peft import PeftConfig

    from ftkit.models.facts import ModelFacts

PRESETS: Mapping[str, Mapping[str, tuple[Any, str]]] = {
    "houlsby": {
        "bottleneck": (64, "Houlsby et al. 2019, table 1 (adapters of size 64) and the authors' code"),
        "reduction_factor": (None, "houlsby has a fixed bottleneck"),
        "activation": ("gelu", "Houlsby et al. 2019, the authors' code (github.com/google-research/adapter-bert)"),
        "scaling": (1.0, "Houlsby et al. 2019: none"),
        "init": ("truncated", "Houlsby et al. 2019, section 3.6: deviation 0.01, cut at two deviations"),
    },
    "pfeiffer": {
        "bottleneck": (None, "pfeiffer has a reduction factor"),
        "reduction_factor": (16.0, "Pfeiffer et al. 2021, section 4, and AdapterHub's SeqBnConfig"),
        "activation": ("relu", "AdapterHub's SeqBnConfig"),
        "scaling": (1.0, "Pfeiffer et al. 2021: none"),
        "init": ("normal", "AdapterHub's `bert` init"),
    },
    "parallel": {
        "bottleneck": (None, "parallel has a reduction factor"),
        "reduction_factor": (2.0, "He et al. 2022, the authors' run_xsum.sh: 512 of 1024; AdapterHub's ParBnConfig"),
        "activation": ("relu", "AdapterHub's ParBnConfig"),
        "scaling": (4.0, "He et al. 2022, the authors' run_xsum.sh; AdapterHub's ParBnConfig"),
        "init": ("zero-up", "He et al. 2022, the authors' `lora` init"),
    },
}
"""What `auto` stands for, with its source, by placement."""

MEASURED = {
    "houlsby": (3e-3, "3e-4, 1e-3 and 3e-3"),
    "pfeiffer": (3e-3, "1e-4, 1e-3 and 3e-3"),
    "parallel": (1e-3, "3e-4 and 1e-3"),
}
"""Learning rate for small encoders and those it was chosen from, by placement."""


class Options(PlacementOptions):
    """Place, size and start of the adapters."""

    placement: Placement = Field("pfeiffer", description=PLACEMENT_TEXT)
    bottleneck: Size = bottleneck_field("with houlsby 64, else none, so that `reduction_factor` decides")
    reduction_factor: Factor = factor_field("with pfeiffer 16, with parallel 2")
    activation: Activation = Field("auto", description="Between the two layers. auto: with houlsby gelu, else relu.")
    layer_norm: Literal["none", "before", "after"] = Field(
        "none", description="A trained layer norm on the adapter's input, or on its output before the residual."
    )
    scaling: Annotated[float, Field(gt=0)] | Literal["learned"] | Auto = Field(
        "auto", description="Factor on the adapter's output; learned: trained, 1 at first. auto: with parallel 4, else 1."
    )
    init: Auto | Literal["normal", "truncated", "zero-up"] = Field(
        "auto",
        description="Both matrices N(0, 0.02), both N(0, 0.01) cut at two deviations, or the second one zero: the adapter starts (nearly) "
        "as nothing. auto: houlsby truncated, pfeiffer normal, parallel zero-up.",
    )
    norms: bool = Field(
        False, description="Train gains and biases of the model's norms as well (of the chosen blocks), as Houlsby et al. did."
    )

    def preset_sizes(self) -> tuple[int | None, float | None]:
        """Of the placement."""
        presets = PRESETS[self.placement]
        return presets["bottleneck"][0], presets["reduction_factor"][0]


class Adapter(PlacedMethod):
    """Bottleneck adapters after or beside the sublayers."""

    name = "adapter"
    summary = "Small bottleneck networks inside the frozen model (Houlsby, Pfeiffer, parallel)."
    update_rule = "y = h + s U f(D x): D (m x d) and U (d x m) are trained, the model is frozen; x and h by placement"
    paper = Paper(
        title="Parameter-Efficient Transfer Learning for NLP",
        authors="Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly",
        year=2019,
        url="https://arxiv.org/abs/1902.00751",
    )
    capabilities = Capabilities(adapter=True, merge=False, quantized=True, fusable=True)
    Options = Options
    prefix = "bottleneck_"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        presets = PRESETS[self.options.placement]
        bottleneck, factor = self.options.sizes()
        found = {f"method.{name}": Default(value=value, source=source) for name, (value, source) in presets.items()}
        if self.options.bottleneck != "auto" or self.options.reduction_factor != "auto":
            given = "follows from the other of bottleneck and reduction_factor"
            found["method.bottleneck"] = Default(value=bottleneck, source=given)
            found["method.reduction_factor"] = Default(value=factor, source=given)
        return {**found, **_train_defaults(facts, self.options.placement)}

    def preset(self, name: str) -> Any:
        return PRESETS[self.options.placement][name][0]

    def config(self, fields: dict[str, Any]) -> PeftConfig:
        from ftkit.tuners.adapter import AdapterConfig

        return AdapterConfig(**fields, layer_norm=self.options.layer_norm, scaling=self.value("scaling"), init=self.value("init"))

    def adapter_size(self, width: int) -> int:
        from ftkit.tuners.adapter import bottleneck_size

        size = bottleneck_size(width, *self.options.sizes())
        norm = 2 * width if self.options.layer_norm != "none" else 0
        return 2 * width * size + size + width + norm + (self.value("scaling") == "learned")


def _train_defaults(facts: ModelFacts, placement: str) -> dict[str, Default]:
    def default(rate: float, epochs: float | None, source: str) -> dict[str, Default]:
        found = {"train.learning_rate": Default(value=rate, source=source)}
        return found if epochs is None else {**found, "train.epochs": Default(value=epochs, source=source)}

    if facts.kind == "decoder":
        return default(3e-4, 3.0, "Hu et al. 2023 (LLM-Adapters), README: LLaMA-7B, series and parallel adapters")
    if facts.kind == "vision":
        return default(1e-3, None, "Steitz & Roth 2024 (Adapters Strike Back), the authors' configs: ViT-B on VTAB and FGVC")
    if facts.kind == "encoder-decoder":
        if placement == "parallel":
            return default(5e-5, None, "He et al. 2022, the authors' run_xsum.sh: BART large")
        return default(3e-4, 20.0, "Karimi Mahabadi et al. 2021 (Compacter), configs/adapters.json: T5 base")
    if facts.narrow_encoder:
        rate, tried = MEASURED[placement]
        return {
            **default(rate, None, f"ftkit: best of {tried} by validation, MiniLM (width 384) on 512 rows of BBC News, 48 steps"),
            **encoder_epochs(facts),
        }
    if placement == "houlsby":
        return default(3e-4, 5.0, "the authors' README (github.com/google-research/adapter-bert): BERT base on MRPC")
    if placement == "parallel":
        return default(1e-4, 10.0, "He et al. 2022, the authors' run_glue.sh: RoBERTa base")
    return default(1e-4, 10.0, "AdapterHub's training guide: BERT base on GLUE")
