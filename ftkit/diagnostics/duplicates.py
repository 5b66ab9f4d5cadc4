"""Equal inputs: within a split, with another answer, and in two splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ftkit.data.digests import EqualRows, KnownDigests, group_starts, row_digests
from ftkit.data.splits import Splits
from ftkit.data.table import Table
from ftkit.diagnostics.findings import SHOWN_ROWS, Finding, Hits, Severity, about_rows, share
from ftkit.diagnostics.roles import Roles

DUPLICATE_SHARE = 0.01
"""From this share on copies are a warning: they weigh their rows anew, which is rarely meant, and count twice in metrics."""

LEAK_SHARE = 0.1
"""From this share on a split measures memory: a model that is right on all leaked rows and on 80 % of the others is shown as 82 %,
a difference as large as those that runs are compared by."""

CONTRADICTED_SHARE = 0.1
"""From this share on training rows that no model can get right, because equal rows have another answer, are more than the error
that training is to reduce."""


def digests(table: Table, names: Sequence[str], files: frozenset[str] = frozenset()) -> np.ndarray:
    """A digest of each row's values in some columns, see `ftkit.data.digests`. Files count by content, not by path."""
    return row_digests(table, names, files)


def duplicate_findings(name: str, table: Table, inputs: np.ndarray, roles: Roles, *, closed: bool) -> list[Finding]:
    """Rows of a split with the input of an earlier one: plain copies, and those that have another answer.

    inputs: digest of each row's input. closed: whether answers are drawn from a fixed set, so that two of them contradict each other.
    """
    equal = EqualRows(inputs)
    sizes = np.diff(equal.starts)
    several = sizes > 1
    if not several.any():
        return []
    rows, sizes = equal.order[np.repeat(several, sizes)].astype(np.int64), sizes[several]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    answers = _answers(table, roles, rows)
    first = np.repeat(np.cumsum(sizes, dtype=np.int64) - sizes, sizes)
    repeated = first != np.arange(len(rows))
    # Groups in the order in which they show to be more than one row, as a reader comes across them.
    shown = np.lexsort((rows, rows[first + 1]))
    shown = shown[repeated[shown]]
    agree = (answers == answers[first]).all(axis=1)
    unwinnable = len(rows) - _largest_shares(groups, answers)
    return [
        *_contradictions(name, table, _hits(table, rows, first, shown[~agree[shown]]), unwinnable, closed),
        *_copies(name, table, _hits(table, rows, first, shown[agree[shown]])),
    ]


def _answers(table: Table, roles: Roles, rows: np.ndarray) -> np.ndarray:
    """A digest of each of these rows' answer (rows, 2); all alike where there are none."""
    found = np.zeros((len(rows), 2), dtype=np.uint64)
    if roles.targets and roles.targets != roles.inputs:
        order = np.argsort(rows)
        found[order] = row_digests(table.select(rows[order]), roles.targets, roles.files)
    return found


def _largest_shares(groups: np.ndarray, answers: np.ndarray) -> int:
    """Rows that a model gets right at most: in each group those with the commonest answer. groups: ascending."""
    order = np.lexsort((answers[:, 1], answers[:, 0], groups))
    starts = group_starts((groups, answers[:, 0], answers[:, 1]), order)
    owners = groups[order[starts[:-1]]]
    return int(np.maximum.reduceat(np.diff(starts), group_starts((owners,), np.arange(len(owners)))[:-1]).sum())


def _hits(table: Table, rows: np.ndarray, first: np.ndarray, places: np.ndarray) -> Hits:
    hits = Hits()
    for place in places[:SHOWN_ROWS].tolist():
        hits.add(int(rows[place]), f"= {table.place(int(rows[first[place]]))}")
    hits.count = len(places)
    return hits


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


def leak_findings(splits: Splits, inputs: Mapping[str, np.ndarray], mode: str) -> list[Finding]:
    """Inputs that are in two splits. inputs: digests by split. mode: what the recipe says under `data.leaks`."""
    names = [name for name, _ in splits.items()]
    known = {name: KnownDigests(inputs[name]) for name in names[:-1]}
    found = []
    for number, name in enumerate(names):
        for other in names[:number]:
            numbers = known[other].find(inputs[name])
            rows, other_table, hits = np.flatnonzero(numbers >= 0), getattr(splits, other), Hits()
            for row in rows[:SHOWN_ROWS].tolist():
                hits.add(row, f"= {other_table.place(int(known[other].first[numbers[row]]))}")
            hits.count = len(rows)
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
