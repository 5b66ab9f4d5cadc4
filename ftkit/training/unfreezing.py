"""Gradual unfreezing (Howard & Ruder 2018, ULMFiT, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ftkit.errors import RecipeError
from ftkit.models.layout import ModelLayout
from ftkit.recipe.schema import GradualUnfreezingSpec


@dataclass(frozen=True)
class _Frozen:
    parameter: nn.Parameter
    depth: int


class GradualUnfreezing:
    """Holds trainable parameters back by depth: the head trains from the start, blocks join from the top, embeddings last.

    Raises RecipeError if nothing but the head trains.

    What trains at a moment is a pure function of how far the run is, so a resumed run needs no state of it.
    several: there are other processes, whose synchronization counts on the gradients of all parameters: those held back have them
    dropped instead of never computed.
    """

    def __init__(self, model: nn.Module, layout: ModelLayout, spec: GradualUnfreezingSpec, *, several: bool = False) -> None:
        self._spec, self._top, self._several = spec, len(layout.blocks) + 1, several
        self._lowest = 0
        trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._parameters = [_Frozen(parameter, layout.depth(name)) for name, parameter in trainable]
        if all(held.depth == self._top for held in self._parameters):
            message = "`train.gradual_unfreezing` has nothing to unfreeze: the method trains the head alone"
            raise RecipeError(message, hint="Remove it, or choose a method that trains blocks")

    def update(self, *, step: int, epoch: float) -> int:
        """Sets what trains during the step after `step` finished ones; returns the lowest depth that does."""
        self._lowest = self._lowest_at(step, epoch)
        for held in self._parameters:
            held.parameter.requires_grad_(self._several or held.depth >= self._lowest)
        return self._lowest

    def drop_gradients(self) -> None:
        """Leaves what is held back without gradients; to be called before they are clipped and used."""
        for held in self._parameters:
            if held.depth < self._lowest:
                held.parameter.grad = None

    def never_trained(self, *, step: int, epoch: float) -> str:
        """What stays frozen in a run whose last step follows `step` finished ones: `10 of 12 blocks and the embeddings`, '' for nothing."""
        lowest, depths = self._lowest_at(step, epoch), {held.depth for held in self._parameters}
        blocks = {depth for depth in depths if 0 < depth < self._top}
        left = sum(depth < lowest for depth in blocks)
        parts = [f"{left} of {len(blocks)} blocks"] if left else []
        return " and ".join([*parts, "the embeddings"] if 0 in depths and lowest > 0 else parts)

    def _lowest_at(self, step: int, epoch: float) -> int:
        every = self._spec.every
        passed = step // every.steps if every.steps else int(epoch / (every.epochs or 1.0) + 1e-9)
        return max(0, self._top - passed * self._spec.blocks)

    def thaw(self) -> None:
        """Lets everything train, as before the first update: for saving and loading all that the method trains."""
        for held in self._parameters:
            held.parameter.requires_grad_(True)
