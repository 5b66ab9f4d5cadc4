"""Collects what is wrong with data, so that a user sees all of it at once."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ftkit.errors import DataError, Problem

SHOWN = 20
SHOWN_ALIKE = 3


class Problems:
    """Problems found so far: the first 20 different ones are kept, the rest are counted.

    Problems are alike that have the same column and way out: of these the first 3 are kept, so that one misunderstanding about all
    rows does not hide what else is wrong.
    """

    def __init__(self) -> None:
        self._kept: list[Problem] = []
        self._alike: Counter[tuple[str, str]] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, problem: Problem) -> None:
        """Notes one problem."""
        self._count += 1
        kind = (problem.key, problem.hint or problem.message)
        self._alike[kind] += 1
        if len(self._kept) < SHOWN and self._alike[kind] <= SHOWN_ALIKE:
            self._kept.append(problem)

    def raise_if_any(self) -> None:
        """Raises DataError with what was collected, if anything was."""
        if not self._kept:
            return
        rest = self._count - len(self._kept)
        raise DataError([*self._kept, Problem(message=f"and {rest:,} more")] if rest else self._kept)


def shorten(value: Any, limit: int = 60) -> str:
    """The value as messages show it: `repr`, cut to about `limit` characters."""
    text = repr(value[: limit + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
