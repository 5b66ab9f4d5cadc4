"""Where the parts of an adapter go: from a placement and the model's layout to modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftkit.errors import ModelError, Problem
from ftkit.methods.base import block_numbers, range_refusal
from ftkit.models.layout import ModelLayout
from ftkit.models.sublayers import AttentionOutput, FeedForward, attention_outputs, feed_forwards


@dataclass(frozen=True)
class Places:
    """Paths of leaf modules, by what they are there for (see `ftkit.tuners.adapter.AdapterConfig`), and the width at each adapter."""

    outputs: list[str]
    around: list[str]
    carries: list[str]
    norms: list[str]
    widths: list[int]

    def config(self, layout: ModelLayout) -> dict[str, Any]:
        """Arguments for an `AdapterConfig`."""
        everything = dict.fromkeys([*self.outputs, *self.around, *self.carries, *self.norms])
        groups = {"output": self.outputs, "around": self.around, "carry": self.carries, "norm": self.norms}
        patterns = {f"{name}_modules": layout.suffixes(paths) for name, paths in groups.items() if paths}
        return {"target_modules": layout.suffixes(list(everything)), **patterns}


def find_places(
    layout: ModelLayout, placement: str, *, blocks: Sequence[str | int] | None, cross_attention: bool, norms: bool
) -> Places:
    """The places of an adapter. blocks: only in these. cross_attention: behind that, too (houlsby). norms: train the norms, too.

    Raises ModelError if the model lacks a named block, or where its sublayers cannot be found.
    """
    chosen = _chosen(layout, blocks)
    forwards = [place for place in feed_forwards(layout) if place.block in chosen]
    if not forwards:
        raise ModelError(Problem(message=f"no feed-forward part of {layout.architecture} is in `blocks`", key="method.blocks"))
    trained = [name for name in layout.norms() if blocks is None or layout.depth(f"{name}.weight") - 1 in chosen] if norms else []
    if placement == "houlsby":
        attentions = [
            place for place in attention_outputs(layout) if place.block in chosen and (cross_attention or not place.cross)
        ]
        sublayers: list[AttentionOutput | FeedForward] = [*attentions, *forwards]
        return Places([place.output for place in sublayers], [], [], trained, [place.width for place in sublayers])
    around = [place.norm for place in forwards if place.norm and placement == "pfeiffer"]
    others = [place for place in forwards if not place.norm or placement != "pfeiffer"]
    return Places([p.output for p in others], around, [p.entry for p in others], trained, [p.width for p in forwards])


def _chosen(layout: ModelLayout, blocks: Sequence[str | int] | None) -> set[int]:
    if blocks is None:
        return {block.index for block in layout.blocks}
    if reason := range_refusal(blocks, len(layout.blocks)):
        raise ModelError(Problem(message=reason, key="method.blocks"))
    return set(block_numbers(blocks))


def norm_parameter_count(layout: ModelLayout, norms: Sequence[str]) -> int:
    """Number of gains and biases of norms of the model."""
    wanted = {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}
    return sum(parameter.numel() for name, parameter in layout.model.named_parameters() if layout.canonical(name) in wanted)
