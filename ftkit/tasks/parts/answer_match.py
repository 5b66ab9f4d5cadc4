"""Whether a generated answer comes to the same result as the reference, whatever stands around it: `#### 42` at the end of a proof."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from ftkit.metrics.base import MetricSpec
from ftkit.patterns import check_pattern, last_group

if TYPE_CHECKING:
    from numpy import ndarray


def one_group(pattern: str) -> str:
    """The pattern itself. Raises ValueError if it is no regular expression with one group."""
    import regex

    if (groups := regex.compile(check_pattern(pattern)).groups) != 1:
        raise ValueError(f"{pattern!r} has {groups} groups; put one pair of parentheses around what is compared")
    return pattern


class AnswerMatch:
    """The metric `answer_match` for a pattern with one group (None: there is none, and the metric cannot be computed)."""

    name = "answer_match"

    def __init__(self, pattern: str | None) -> None:
        self._pattern = pattern

    def spec(self) -> MetricSpec:
        """What is reported of it."""
        summary = "Share of answers in which `answer_pattern` finds what it finds in the reference."
        return MetricSpec(name=self.name, summary=summary, direction="max", headline=True, compute=self.compute)

    def compute(self, references: ndarray, predictions: ndarray) -> float | None:
        """References: (n,) lists of texts, of which the first counts; predictions: (n,) texts. None where nothing counts."""
        import numpy as np

        return self.resampled(references, predictions)(np.arange(len(references)))

    def resampled(self, references: ndarray, predictions: ndarray) -> Callable[[ndarray], float | None]:
        """A fast function of example indices. Examples in whose reference the pattern finds nothing do not count."""
        import numpy as np

        expected = [self._result(texts[0]) for texts in references]
        counts = np.array([value is not None for value in expected], bool)
        same = np.array([value == self._result(text) for value, text in zip(expected, predictions, strict=True)], bool)

        def compute(indices: ndarray) -> float | None:
            drawn = indices[counts[indices]]
            return float(same[drawn].mean()) if len(drawn) else None

        return compute

    def _result(self, text: str) -> str | None:
        """Raises RecipeError if the pattern takes too long."""
        match = last_group(self._pattern or "", text, key="task.answer_pattern")
        return None if match is None else normalized(match)


def normalized(text: str) -> str:
    """A result to compare: `1,234.` and `1234.00` are 1234."""
    plain = text.strip().rstrip(".").replace(",", "")
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return text.strip()
    # Exponents of millions would be written out in full.
    return format(number.normalize(), "f") if number.is_finite() and abs(number.adjusted()) < 100 else plain
