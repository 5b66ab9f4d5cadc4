"""What the training loop tells its caller."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """One optimizer step is done.

    step counts from 1; epoch is the share of the data seen so far (1.5: in the middle of the second pass); loss is the mean per
    target over the whole accumulation window and all processes; learning_rate is the peak group's rate used for this step;
    grad_norm is the norm before clipping; tokens counts those fed in this step (padding left out), examples likewise.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    examples: int


@dataclass(frozen=True, kw_only=True)
class EvaluationEvent:
    """The validation split was evaluated after step `step`."""

    step: int
    epoch: float
    metrics: dict[str, Any]
    is_best: bool
    stop: bool
    seconds: float = field(compare=False, default=0.0)


@dataclass(frozen=True, kw_only=True)
class BoundaryEvent:
    """Everything due at step `step` is done: a checkpoint may be written here, and must be where `checkpoint_due`.

    The caller writes it before asking for the next event.
    """

    step: int
    checkpoint_due: bool


Event = StepEvent | EvaluationEvent | BoundaryEvent
