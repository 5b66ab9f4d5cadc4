"""The contract of a tuning method: it knows parameters, nothing of data.

A method is one file in this folder (or a plug-in) with one subclass of `Method`. Nothing here imports torch:
`ftkit validate`, `ftkit methods` and `ftkit schema` read methods without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a method comes from."""

    title: str
    authors: str
    year: int
    url: str


@dataclass(frozen=True, kw_only=True)
class Default:
    """A value for a recipe key left at `auto`, and where it comes from (a paper, a measurement)."""

    value: Any
    source: str


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What can be done with what the method trains. `validate` refuses recipes that ask for more.

    adapter: the trained part can be saved apart from the model, as a PEFT adapter.
    merge: the trained part can be folded into a plain model.
    quantized: the base may be quantized.
    checkpointing: gradient checkpointing works.
    """

    adapter: bool
    merge: bool
    quantized: bool = False
    checkpointing: bool = True


class NoOptions(Strict):
    """A method without options."""


class Method(ABC):
    """One tuning method.

    name: as written in recipes; equals the file name with `-` for `_`.
    summary: one line for tables.
    update_rule: what is trained and how it enters the forward pass, one line of mathematics.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    update_rule: ClassVar[str]
    paper: ClassVar[Paper | None] = None
    capabilities: ClassVar[Capabilities]
    Options: ClassVar[type[Strict]] = NoOptions

    def __init__(self, options: Strict) -> None:
        self.options: Any = options

    @abstractmethod
    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        """Values for `auto`, by recipe key (`train.learning_rate`, `method.alpha` ...), for this kind and size of model.

        Must give `train.learning_rate`; may give `train.epochs`, `train.weight_decay`, `train.warmup_ratio` and own options.
        """

    def refusal(self, facts: ModelFacts) -> str:
        """Why this method cannot tune this model ('' if it can), as far as the model's config tells."""
        return ""

    @abstractmethod
    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        """The model with exactly this method's parameters trainable.

        Returns the same model (whole-model methods) or a `peft.PeftModel` around it.
        Raises ModelError if nothing in the model fits.
        """

    @abstractmethod
    def declares(self, name: str, layout: ModelLayout) -> bool:
        """Whether the parameter `name` (as in `named_parameters()` of what `apply` returned) is one that this method trains."""

    def parameter_count(self, layout: ModelLayout) -> int | None:
        """How many parameters train, by the method's formula; None where there is no closed form."""
        return None

    def extra_loss(self, model: nn.Module) -> Tensor | None:
        """A scalar added to the mean training loss of each optimizer step, or None."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after backward and the optimizer's update, before gradients are cleared. `step` counts from 1."""
