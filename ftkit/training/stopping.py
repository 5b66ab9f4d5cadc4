"""The rule that picks the best evaluation and says when to stop. Pure: no torch, no clock, no files."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Verdict:
    """What one evaluation means: is it the best so far, and should the run stop."""

    is_best: bool
    stop: bool


class StoppingRule:
    """Early stopping with patience.

    An evaluation is the best if its value beats the best before it, or equals it with a lower loss: on a small validation split many
    evaluations have the same accuracy, and the first of them may hardly know why. It resets the patience only if its value beats the
    value that last did so by more than `min_delta`. A value that is no finite number is never best and uses up patience.

    mode: whether larger (`max`) or smaller (`min`) is better. patience: evaluations without progress before `stop`; None: never.
    """

    def __init__(self, *, mode: Literal["min", "max"], patience: int | None, min_delta: float = 0.0) -> None:
        self._sign = 1.0 if mode == "max" else -1.0
        self._patience, self._min_delta = patience, min_delta
        self._state = _State()

    def update(self, value: float | None, step: int, loss: float | None = None) -> Verdict:
        """Takes the value of the evaluation after optimizer step `step`, and its loss, which decides between equal values."""
        state = self._state
        score = self._sign * value if value is not None and math.isfinite(value) else -math.inf
        tie_score = -loss if loss is not None and math.isfinite(loss) else -math.inf
        is_best = (score, tie_score) > (state.best_score, state.best_tie_score) and score > -math.inf
        if is_best:
            state.best_score, state.best_value, state.best_step, state.best_tie_score = score, value, step, tie_score
        if score > state.reference_score + (self._min_delta if state.reference_score > -math.inf else 0.0):
            state.reference_score, state.evaluations_without_progress = score, 0
        else:
            state.evaluations_without_progress += 1
        stop = self._patience is not None and state.evaluations_without_progress >= self._patience
        return Verdict(is_best=is_best, stop=stop)

    @property
    def best_step(self) -> int | None:
        """Optimizer step of the best evaluation, None before the first finite one."""
        return self._state.best_step

    @property
    def best_value(self) -> float | None:
        """Value of the best evaluation."""
        return self._state.best_value

    def state(self) -> dict[str, Any]:
        """Everything the rule remembers, as JSON (infinities as None)."""
        values = asdict(self._state)
        return {key: None if value == -math.inf else value for key, value in values.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        values: dict[str, Any] = {
            key: -math.inf if key.endswith("_score") and value is None else value for key, value in state.items()
        }
        self._state = _State(**values)


@dataclass
class _State:
    best_score: float = -math.inf
    best_value: float | None = None
    best_step: int | None = None
    best_tie_score: float = -math.inf
    reference_score: float = -math.inf
    evaluations_without_progress: int = 0
