"""Equal inputs: within a split, with another answer, and in two splits."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ftkit.data.splits import Splits
from ftkit.data.table import Table, canonical
from ftkit.diagnostics.findings import Finding, Hits, Severity, about_rows, share
from ftkit.diagnostics.roles import Roles

DUPLICATE_SHARE = 0.01
"""From this share on copies are a warning: they weigh their rows anew, which is rarely meant, and count twice in metrics."""

LEAK_SHARE = 0.1
"""From this share on a split measures memory: a model that is right on all leaked rows and on 80 % of the others is shown as 82 %,
a difference as large as those that runs are compared by."""

CONTRADICTED_SHARE = 0.1
"""From this share on training rows that no model can get right, because equal rows have another answer, are more than the error
that training is to reduce."""


def digests(table: Table, names: Sequence[str], files: frozenset[str] = frozenset()) -> list[bytes]:
    """A digest (16 bytes) of each row's values in some columns. Files count by content, not by path."""
    found: list[bytes] = []
    for columns in table.project({name: name for name in names}).chunks():
        values = ([_content(value) for value in columns[name]] if name in files else columns[name] for name in names)
        found += [hashlib.blake2b(canonical(row), digest_size=16).digest() for row in zip(*values, strict=True)]
    return found


def _content(value: Any) -> Any:
    return value.get("bytes") or value.get("path") if isinstance(value, dict) else value


def duplicate_findings(name: str, table: Table, inputs: Sequence[bytes], roles: Roles, *, closed: bool) -> list[Finding]:
    """Rows of a split with the input of an earlier one: plain copies, and those that have another answer.

    inputs: digest of each row's input. closed: whether answers are drawn from a fixed set, so that two of them contradict each other.
    """
    first: dict[bytes, int] = {}
    repeated = [(row, other) for row, digest in enumerate(inputs) if (other := first.setdefault(digest, row)) != row]
    if not repeated:
        return []
    answers = digests(table, roles.targets, roles.files) if roles.targets and roles.targets != roles.inputs else [b""] * len(table)
    groups: dict[int, list[int]] = defaultdict(list)
    for row, other in repeated:
        groups[other].append(row)
    copies, contradicting = Hits(), Hits()
    unwinnable = 0
    for earliest, rows in groups.items():
        counts = Counter(answers[row] for row in (earliest, *rows))
        unwinnable += counts.total() - max(counts.values())
        for row in rows:
            one_answer = answers[row] == answers[earliest]
            (copies if one_answer else contradicting).add(row, f"= {table.place(earliest)}")
    return [
        *_contradictions(name, table, contradicting, unwinnable, closed),
        *_copies(name, table, copies),
    ]


def _copies(name: str, table: Table, hits: Hits) -> list[Finding]:
    if not hits.count:
        return []
    many = hits.count >= DUPLICATE_SHARE * len(table)
    message = f"{name}: {share(hits.count, len(table))} are copies of an earlier row"
    hint = "Remove them, or weigh sources by `weight` instead" if name == "train" else "Remove them: they count twice in metrics"
    return [about_rows("duplicates", "warning" if many else "note", message, table, hits, hint)]


def _contradictions(name: str, table: Table, hits: Hits, unwinnable: int, closed: bool) -> list[Finding]:
    if not hits.count:
        return []
    severity: Severity = "warning" if closed else "note"
    if closed and name == "train" and unwinnable >= CONTRADICTED_SHARE * len(table):
        severity = "error"
    message = f"{name}: {share(hits.count, len(table))} have the input of an earlier row and another answer"
    hint = f"No model can be right on all of them ({unwinnable:,} at least are lost): decide on one answer for each input"
    return [about_rows("contradictions", severity, message, table, hits, hint if closed else "Keep them if both answers are right")]


def leak_findings(splits: Splits, inputs: Mapping[str, Sequence[bytes]], mode: str) -> list[Finding]:
    """Inputs that are in two splits. inputs: digests by split. mode: what the recipe says under `data.leaks`."""
    names = [name for name, _ in splits.items()]
    found = []
    for number, name in enumerate(names):
        for other in names[:number]:
            known: dict[bytes, int] = {}
            for row, digest in enumerate(inputs[other]):
                known.setdefault(digest, row)
            hits, other_table = Hits(), getattr(splits, other)
            for row, digest in enumerate(inputs[name]):
                if digest in known:
                    hits.add(row, f"= {other_table.place(known[digest])}")
            if hits.count:
                found.append(_leak(name, other, getattr(splits, name), hits, mode))
    return found


def _leak(name: str, other: str, table: Table, hits: Hits, mode: str) -> Finding:
    severity: Severity = "error" if hits.count >= LEAK_SHARE * len(table) else "warning"
    hint = f"Remove them from {other}"
    if other == "train":
        hint += ", or set `data.leaks: drop` to leave them out of training"
        if mode in ("drop", "off"):
            severity = "note"
            hint = (
                "`data.leaks: drop` leaves them out of training" if mode == "drop" else "`data.leaks: off` keeps them in training"
            )
        elif mode == "error":
            severity = "error"
    return about_rows("leaks", severity, f"{name}: {share(hits.count, len(table))} are also {other} rows", table, hits, hint)
