"""(IA)^3: trained factors for keys, values and the hidden units of the feed-forward part; everything else is frozen.

    k = l_k * (W_k x),   v = l_v * (W_v x),   y = W_out (l_ff * h);   all l are one at first

In models that compute query, key and value in one layer, that layer's whole output has factors.
Count: outputs of each key and value layer, and inputs of each last feed-forward layer.
Source: Liu et al. 2022, https://arxiv.org/abs/2205.05638, section 3.3, equations 1 to 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ftkit.errors import Problem
from ftkit.methods.base import (
    AdapterMethod,
    BlockRanges,
    Capabilities,
    Combination,
    Default,
    Method,
    Paper,
    encoder_epochs,
    range_refusal,
)
from ftkit.methods.parts.targets import BLOCKS_TEXT, all_conv1d, chosen_layers, layer_shapes
from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

FEED_FORWARD = "ffn_out"
SUM_TOLERANCE = 1e-6


class Options(Strict):
    """Which activations have factors."""

    targets: Annotated[list[Literal["query", "key", "value", "attention_out", "ffn_in", "ffn_out"]], Field(min_length=1)] = Field(
        ["key", "value", "ffn_out"],
        description="Layers whose outputs have factors; for ffn_out its inputs, the hidden units of the feed-forward part.",
    )
    blocks: BlockRanges | None = Field(None, description=BLOCKS_TEXT)


class IA3(AdapterMethod):
    """Trained factors for activations, saved as an adapter."""

    name = "ia3"
    summary = "A trained factor for each key, each value and each hidden unit of the feed-forward part."
    update_rule = "k = l_k * (W_k x), v = l_v * (W_v x), y = W_out (l_ff * h): the vectors l are trained and one at first"
    paper = Paper(
        title="Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
        authors="Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel",
        year=2022,
        url="https://arxiv.org/abs/2205.05638",
    )
    capabilities = Capabilities(adapter=True, merge=True, quantized=True)
    Options = Options
    prefix = "ia3_"
    combinations = ("linear",)

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        if facts.kind == "decoder":
            source = "PEFT's method comparison (MetaMathQA), llama-3.2-3B-all-attn-5k-lr0.005"
            return {"train.learning_rate": Default(value=5e-3, source=source)}
        if facts.narrow_encoder:
            source = "ftkit: best of 3e-3 and 1e-2 by validation, MiniLM (width 384) on 512 rows of BBC News, 48 steps"
            return {"train.learning_rate": Default(value=1e-2, source=source), **encoder_epochs(facts)}
        source = "Liu et al. 2022, the authors' configs/ia3.json (github.com/r-three/t-few): T0-3B"
        return {"train.learning_rate": Default(value=3e-3, source=source), **encoder_epochs(facts)}

    def refusal(self, facts: ModelFacts) -> str:
        return range_refusal(self.options.blocks, facts.block_count) if self.options.blocks is not None else ""

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from peft import IA3Config

        from ftkit.tuners.wrap import wrap

        inner, outer = self._paths(layout)
        targets, feed_forward = _patterns(layout, inner, outer)
        fan_in_fan_out = all_conv1d(layout, [*outer, *inner])
        config = IA3Config(target_modules=targets, feedforward_modules=feed_forward, fan_in_fan_out=fan_in_fan_out)
        return wrap(model, layout, config, self.declares)

    def parameter_count(self, layout: ModelLayout) -> int:
        from ftkit.tuners.wrap import head_parameter_count

        inner, outer = self._paths(layout)
        factors = sum(inward for inward, _ in layer_shapes(layout, inner)) + sum(out for _, out in layer_shapes(layout, outer))
        return factors + head_parameter_count(layout)

    def combination_refusal(self, others: Sequence[Method], how: Combination) -> Problem | None:
        different = [str(number) for number, method in enumerate(others, start=2) if method.options != self.options]
        if different:
            message = "factors at other places than those of run 1: their `targets` or `blocks` differ"
            return Problem(message=message, place=f"run {', '.join(different)}", hint="Train them with the same options")
        if abs(sum(how.weights) - 1) > SUM_TOLERANCE:
            message = f"factors are one where nothing changes, so their weights must sum to 1, not to {sum(how.weights):g}"
            equal = ",".join([f"{1 / len(how.weights):g}"] * len(how.weights))
            return Problem(message=message, place="--weights", hint=f"Give, for instance, --weights {equal}, or leave them out")
        return None

    def combine(self, wrapped: Any, names: Sequence[str], target: str, how: Combination) -> None:
        wrapped.base_model.add_weighted_adapter(list(names), list(how.weights), target)

    def _paths(self, layout: ModelLayout) -> tuple[list[str], list[str]]:
        """Paths of the layers whose inputs and of those whose outputs have factors. Raises ModelError for missing targets."""
        paths = chosen_layers(layout, self.options.targets, self.options.blocks)
        last = set(layout.linears(FEED_FORWARD)) if FEED_FORWARD in self.options.targets else set()
        return [path for path in paths if path in last], [path for path in paths if path not in last]


def _patterns(layout: ModelLayout, inner: list[str], outer: list[str]) -> tuple[list[str] | str, list[str] | str]:
    """PEFT's `target_modules` and `feedforward_modules`; of two lists it wants the second to be part of the first, entry by entry."""
    ends = [layout.suffixes(paths) for paths in (outer, inner) if paths]
    if all(isinstance(names, list) for names in ends):
        return [name for names in ends for name in names], ends[-1] if inner else []
    return layout.suffixes([*outer, *inner]), "|".join(map(re.escape, inner)) if inner else []
