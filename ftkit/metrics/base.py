"""What a metric is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """A metric by name.

    name: as written in recipes (`train.best_metric`, `expect`) and in results.
    direction: which way is better.
    headline: its 95 % bootstrap interval is reported for final evaluations.
    compute: plain function of arrays, declared by the metric's family file; None where the task computes it itself (`loss`).
    """

    name: str
    summary: str
    direction: Literal["max", "min"]
    headline: bool = False
    compute: Callable[..., float | None] | None = None


LOSS = MetricSpec(name="loss", summary="Mean loss per target, without label smoothing.", direction="min")
"""Every task reports it."""
