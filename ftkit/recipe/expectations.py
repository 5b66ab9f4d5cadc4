"""The bounds of `expect:`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_BOUND = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Bound:
    """A comparison with a number."""

    sign: str
    value: float

    def holds(self, measured: float | None) -> bool:
        """Whether a measured value satisfies it; an undefined value never does."""
        return measured is not None and _COMPARISONS[self.sign](measured, self.value)


def parse_bound(text: str) -> tuple[Bound | None, str]:
    """The bound that `text` states, and what is wrong with it ('' if nothing)."""
    match = _BOUND.fullmatch(text)
    if match is None:
        return None, f"{text!r} is not a comparison with a number"
    return Bound(match.group(1), float(match.group(2))), ""
