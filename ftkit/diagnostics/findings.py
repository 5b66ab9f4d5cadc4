"""What the doctor says, and how it remembers rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ftkit.data.table import Table

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Worst first."""

SHOWN_ROWS = 10
"""Rows whose places a finding tells."""

SHOWN_NAMES = 20
"""Names that a message lists."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with the data, or worth knowing.

    check: the name of the check, for scripts. severity: error: training refuses these rows, or its results mean nothing; warning: it
    costs quality or makes results look better than they are; note: worth knowing.
    rows: how many rows it is about, 0 if it is about none. places: where the first 10 of them stand. details: what there is to say
    about each place, as many as places or none. hint: what to do.
    """

    check: str
    severity: Severity
    message: str
    rows: int = 0
    places: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    hint: str = ""

    def __str__(self) -> str:
        places = f" ({', '.join(self.places[:3])})" if self.places else ""
        return f"{self.message}{places}. {self.hint}" if self.hint else f"{self.message}{places}"

    def to_json(self) -> dict[str, Any]:
        """The parts by name."""
        return {**asdict(self), "places": list(self.places), "details": list(self.details)}


class Hits:
    """Rows that a check found: all are counted, the first 10 are kept."""

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[int] = []
        self.details: list[str] = []

    def add(self, row: int, detail: str = "") -> None:
        """Notes one row, with what there is to say about it."""
        self.count += 1
        if len(self.rows) < SHOWN_ROWS:
            self.rows.append(row)
            self.details.append(detail)


def about_rows(check: str, severity: Severity, message: str, table: Table, hits: Hits, hint: str = "") -> Finding:
    """A finding about rows of a table."""
    places = tuple(table.place(row) for row in hits.rows)
    details = tuple(hits.details) if any(hits.details) else ()
    return Finding(check=check, severity=severity, message=message, rows=hits.count, places=places, details=details, hint=hint)


def share(part: int, whole: int) -> str:
    """`12 of 3,000 rows (0.4 %)`."""
    return f"{part:,} of {whole:,} rows ({percent(part / max(1, whole))})"


def percent(value: float) -> str:
    """A share from 0 to 1 in two digits, three near to 1: `0.4 %`, `23 %`, `99.9 %`."""
    number = 100 * value
    if number < 10:
        return f"{number:.2g} %"
    return f"{number:.1f} %" if 99 <= number < 100 else f"{number:.0f} %"


def listed(names: Iterable[str]) -> str:
    """Names for a message, 20 at most."""
    found = list(names)
    text = ", ".join(found[:SHOWN_NAMES])
    return f"{text} and {len(found) - SHOWN_NAMES:,} more" if len(found) > SHOWN_NAMES else text


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Worst first; otherwise in the order given."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
