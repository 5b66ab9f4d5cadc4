"""Whether held-back splits are there, and large enough to tell anything."""

from __future__ import annotations

import math

from ftkit.data.splits import Splits
from ftkit.diagnostics.findings import Finding, Severity
from ftkit.recipe.schema import TrainSpec

TYPICAL_ACCURACY = 0.9
"""At which the precision of a split is stated; at 0.7 the half-width is half as large again."""

FINE = 0.05
COARSE = 0.1
"""Half-widths of a 95 % interval of accuracy: runs rarely differ by more than FINE, so that a coarser split cannot tell them apart;
beyond COARSE it can hardly tell a good run from a bad one."""

QUANTILE = 1.96
"""Of the normal distribution, for intervals of 95 %."""


def half_width(rows: int) -> float:
    """Of the 95 % interval of an accuracy of 0.9 on so many rows (normal approximation of the binomial distribution)."""
    return QUANTILE * math.sqrt(TYPICAL_ACCURACY * (1 - TYPICAL_ACCURACY) / rows)


def rows_for(width: float) -> int:
    """Rows that make the half-width so small."""
    return math.ceil(TYPICAL_ACCURACY * (1 - TYPICAL_ACCURACY) * (QUANTILE / width) ** 2)


def size_findings(splits: Splits, train: TrainSpec, *, answered: bool) -> list[Finding]:
    """Splits that are too small, or missing where the recipe relies on them.

    answered: whether rows have answers that are right or wrong as a whole; others are measured by their tokens.
    """
    held_back = [(name, len(table)) for name, table in splits.items() if answered and name != "train"]
    found = [_small(name, rows) for name, rows in held_back if half_width(rows) > FINE]
    if splits.validation is None and train.early_stopping is not None:
        message = "train.early_stopping is set, but there are no validation rows: training never stops early"
        hint = "Set data.split.validation: 0.1, or name a file under data.validation"
        found.append(Finding(check="missing-validation", severity="warning", message=message, hint=hint))
    return found


def _small(name: str, rows: int) -> Finding:
    width = half_width(rows)
    severity: Severity = "warning" if width > COARSE else "note"
    message = f"{name}: {rows:,} rows place an accuracy of {TYPICAL_ACCURACY} only within ± {100 * width:.0f} points"
    hint = f"Differences between runs below that mean nothing; {rows_for(FINE):,} rows give ± {100 * FINE:.0f} points"
    return Finding(check="small-split", severity=severity, message=message, hint=hint)
