"""BitFit: only the bias vectors of the pretrained model train, and the head.

    y = W x + (b + d),  d <- d - lr * AdamW(dL/dd),  d = 0 at first; the same for the biases of layer norms

W and b are frozen. The addition d is a PEFT adapter of ftkit's own (`ftkit.tuners.bitfit`); merged, it is a plain model.
Source: Ben Zaken, Goldberg & Ravfogel 2022, https://arxiv.org/abs/2106.10199
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ftkit.methods.base import AdapterMethod, Capabilities, Default, Paper
from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

WITHOUT_BIASES = frozenset(
    {
        "cohere",
        "cohere2",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "granite",
        "llama",
        "longt5",
        "ministral",
        "mistral",
        "mixtral",
    }
    | {"modernbert", "mt5", "olmo", "olmo2", "qwen3", "smollm3", "switch_transformers", "t5", "umt5"}
)
"""Model types whose layers have no biases, unless a flag of their config puts some in."""

BIAS_FLAGS = ("attention_bias", "mlp_bias", "attn_bias", "norm_bias", "use_bias", "bias")

ADVICE = "BitFit trains nothing but biases; use `lora` for this model"


class Options(Strict):
    """Which biases train."""

    subset: Literal["all", "query-ffn"] = Field(
        "all",
        description="all: every bias of the pretrained model. query-ffn: those of the query and of the first feed-forward layer, "
        "the paper's half-size subset (b_q and b_m2).",
    )


class BitFit(AdapterMethod):
    """The biases train, as additions that a PEFT adapter holds."""

    name = "bitfit"
    summary = "Only the bias vectors train."
    update_rule = "y = W x + (b + d): W and b are frozen, d is trained and zero at first"
    paper = Paper(
        title="BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
        authors="Ben Zaken, Goldberg, Ravfogel",
        year=2022,
        url="https://arxiv.org/abs/2106.10199",
    )
    capabilities = Capabilities(adapter=True, merge=True)
    Options = Options
    known_to_peft = False
    prefix = "bitfit_"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        authors = "the authors' run_glue.py (github.com/benzakenelad/BitFit)"
        rate = Default(value=1e-3, source=authors)
        if facts.kind == "decoder":
            rate = Default(value=1e-4, source="Mosbach et al. 2023, scripts of github.com/uds-lsv/llmft: OPT-1.3B")
        elif facts.kind == "encoder-decoder":
            rate = Default(value=3e-4, source="Karimi Mahabadi et al. 2021 (Compacter), configs/bitfit.json")
        return {"train.learning_rate": rate, "train.epochs": Default(value=16.0, source=authors)}

    def refusal(self, facts: ModelFacts) -> str:
        if facts.model_type not in WITHOUT_BIASES or any(_config(facts).get(flag) for flag in BIAS_FLAGS):
            return ""
        return f"{facts.model_type} models have no biases. {ADVICE}"

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.errors import ModelError
        from ftkit.tuners.bitfit import BitFitConfig
        from ftkit.tuners.wrap import wrap

        names = self._biases(layout)
        if not names:
            which = "no biases" if self.options.subset == "all" else "no biases of its own for the query or the feed-forward part"
            raise ModelError(f"{layout.architecture} has {which}", hint=ADVICE)
        modules = [name.removesuffix(".bias") for name in names]
        return wrap(model, layout, BitFitConfig(target_modules=layout.suffixes(modules)), self.declares)

    def parameter_count(self, layout: ModelLayout) -> int:
        from ftkit.tuners.wrap import head_parameter_count

        sizes = {layout.canonical(name): parameter.numel() for name, parameter in layout.model.named_parameters()}
        return sum(sizes[name] for name in self._biases(layout)) + head_parameter_count(layout)

    def _biases(self, layout: ModelLayout) -> list[str]:
        if self.options.subset == "all":
            return layout.biases()
        chosen = set(layout.linears("query", "ffn_in"))
        return [name for name in layout.biases() if name.removesuffix(".bias") in chosen]


def _config(facts: ModelFacts) -> dict[str, Any]:
    """The model's config.json; empty where it is not at hand."""
    from ftkit.models.folder import read_json

    path = facts.path / "config.json" if facts.path else None
    return read_json(path) if path and path.is_file() else {}
