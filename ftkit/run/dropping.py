"""AdapterDrop for a finished run: its adapters in the lowest blocks are left out of the forward pass."""

from __future__ import annotations

from collections import Counter

from ftkit.errors import Problem, RecipeError
from ftkit.run.predictor import Predictor

PLACE = "--drop-blocks"


def drop_blocks(predictor: Predictor, blocks: int) -> None:
    """Leaves the bottleneck adapters of the first blocks (of each stack) out.

    Raises RecipeError if there are none, or not so many blocks.
    """
    from ftkit.tuners.adapter import drop_adapters

    prepared = predictor.prepared
    largest = max(Counter(block.stack for block in prepared.layout.blocks).values())
    if blocks >= largest:
        message = f"{blocks} leaves no adapter: the model has {largest} blocks"
        raise RecipeError(Problem(message=message, place=PLACE, hint=f"Give at most {largest - 1}"))
    if not drop_adapters(prepared.model, prepared.layout, blocks):  # type: ignore[arg-type]
        message = f"{prepared.method.name} of this run has no bottleneck adapters in the first {blocks} blocks"
        hint = "Use it on a run whose method puts bottleneck adapters into these blocks, such as `adapter`"
        raise RecipeError(Problem(message=message, place=PLACE, hint=hint))
