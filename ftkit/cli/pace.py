"""How fast rows go by, and how long the rest will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from ftkit.cli.output import shown_seconds

WINDOW = 30.0
"""Seconds that the speed is taken over."""

BETWEEN_MARKS = 0.5
"""Seconds between two times that are kept."""


class Pace:
    """Speed of a part of a run over the recent past. clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int, float]] = deque([(clock(), 0, 0.0)])

    def figures(self, done: int, total: int | None, share: float | None = None) -> str:
        """`1,200,000/10,000,000  45,120 rows/s  3 min 15 s left`; what is not known is left out. See `Observer.progress`."""
        if total:
            share = done / total
        now = self._clock()
        while len(self._marks) > 1 and now - self._marks[1][0] > WINDOW:
            self._marks.popleft()
        then, before, share_before = self._marks[0]
        if now - self._marks[-1][0] >= BETWEEN_MARKS:
            self._marks.append((now, done, share or 0.0))
        seconds = now - then
        parts = [f"{done:,}/{total:,}" if total is not None else f"{done:,} rows"]
        if seconds > 0:
            parts.append(f"{(done - before) / seconds:,.0f} rows/s")
        if seconds > 0 and share is not None and share_before < share < 1:
            parts.append(f"{shown_seconds(seconds * (1 - share) / (share - share_before))} left")
        return "  ".join(parts)
