"""Which norm belongs to which part of a Transformer block."""

from __future__ import annotations

from typing import Any

from torch import nn

from ftkit.models.layout import ModelLayout
from ftkit.models.sublayers import feed_forwards

PLACES = ("all", "attention", "feed-forward", "final")


def norms_by_place(layout: ModelLayout, place: str) -> list[str]:
    """Paths of the norms with a gain, in order of the model; batch norms, which keep statistics of the data, are left out.

    place: `all`; `feed-forward`: those that norm the input, the output or the sum of that sublayer; `attention`: all other norms of the
    blocks, cross-attention's and those of queries and keys too; `final`: what follows the blocks of a stack, or the last norm of its
    last block.
    Raises ValueError for another place, ModelError if the feed-forward parts cannot be told (a mixture of experts).
    """
    if place not in PLACES:
        raise ValueError(f"unknown place {place!r}, known: {', '.join(PLACES)}")
    norms = [name for name in layout.norms() if not isinstance(_plain(layout, name), nn.modules.batchnorm._BatchNorm)]
    if place == "all":
        return norms
    if place == "final":
        return _final(layout, norms)
    beside = {path for part in feed_forwards(layout) for path in (part.entry, part.norm, part.output)}
    return [name for name in norms if _block(layout, name) >= 0 and (name in beside) == (place == "feed-forward")]


def _final(layout: ModelLayout, norms: list[str]) -> list[str]:
    last = {block.stack: block for block in layout.blocks}
    found = []
    for block in last.values():
        deepest = [name for name in norms if layout.depth(f"{name}.weight") == block.index + 1]
        behind = [name for name in deepest if _block(layout, name) < 0]
        found += behind or deepest[-1:]
    return found


def _block(layout: ModelLayout, path: str) -> int:
    """Number of the block that a module lies in, -1 for none."""
    return next((block.index for block in layout.blocks if path.startswith(f"{block.name}.")), -1)


def _plain(layout: ModelLayout, path: str) -> nn.Module:
    module: Any = layout.model.get_submodule(path)
    return getattr(module, "base_layer", module)
