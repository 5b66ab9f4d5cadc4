"""Labels: how many rows each has, names that look like one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ftkit.data.table import Table
from ftkit.diagnostics.findings import SHOWN_ROWS, Finding, Hits, Severity, listed
from ftkit.recipe.schema import Strict

SKEW_NOTED = 10.0
SKEW_WARNED = 100.0
"""Largest to smallest number of rows of a label. A tenth and a hundredth are near to where Google's guide to imbalanced data sets
calls it moderate and extreme (https://developers.google.com/machine-learning/crash-course/overfitting/imbalanced-datasets)."""

RARE_ROWS = 8
"""Training rows below which a label is hardly learned, and a tenth of its rows held back is none."""

Counts = Mapping[str, Hits]
"""Rows of each label."""


def label_reader(options: Strict) -> Callable[[Any], list[str]]:
    """Label names in a value: one name, a list of names, names in one text, or a 0/1 for each name, as the task's options say."""
    separator, given = getattr(options, "label_separator", None), getattr(options, "labels", None) or []
    several = getattr(options, "problem_type", "") == "multi_label"

    def names_of(value: Any) -> list[str]:
        if isinstance(value, str) and several and separator:
            return [part.strip() for part in value.split(separator) if part.strip()]
        if not isinstance(value, list):
            return [] if value is None else [str(value)]
        flags = [str(item).lower() for item in value]
        if (
            given
            and len(value) == len(given)
            and set(flags) <= {"0", "1", "0.0", "1.0", "false", "true"}
            and not {"0", "1"} & set(given)
        ):
            return [name for name, flag in zip(given, flags, strict=True) if flag in ("1", "1.0", "true")]
        return [str(item) for item in value]

    return names_of


def rows_by_label(table: Table, column: str, names_of: Callable[[Any], list[str]]) -> Counts:
    """Rows of each label of a split."""
    found: dict[str, Hits] = defaultdict(Hits)
    row = 0
    for chunk in table.project({column: column}).chunks():
        for value in chunk[column]:
            for name in names_of(value):
                found[name].add(row)
            row += 1
    return dict(found)


def label_findings(tables: Mapping[str, Table], counts: Mapping[str, Counts], known: Sequence[str]) -> list[Finding]:
    """What is odd about the numbers of rows and the names. Both by split; known: all labels of the task."""
    train = counts["train"]
    if len(train) == 1 and len(tables["train"]) > 1:
        return [_single(next(iter(train)), tables["train"])]
    return [*_skew(train), *_rare(tables["train"], train), *_absent(tables, counts, known), *_variants(tables, counts)]


def _single(name: str, table: Table) -> Finding:
    message = f"train: all rows have the label {name!r}: there is nothing to tell apart"
    hint = "Is `label` mapped to the right column under data.columns?"
    return Finding(check="single-label", severity="error", message=message, rows=len(table), hint=hint)


def _skew(train: Counts) -> list[Finding]:
    if not train:
        return []
    sizes = sorted((hits.count, name) for name, hits in train.items())
    (fewest, smallest), (most, largest) = sizes[0], sizes[-1]
    ratio = most / fewest
    if ratio < SKEW_NOTED:
        return []
    severity: Severity = "warning" if ratio >= SKEW_WARNED else "note"
    message = f"train: {largest!r} has {most:,} rows, {smallest!r} {fewest:,}: {ratio:,.0f} times as many"
    hint = "Accuracy hides the small labels: watch f1_macro, and weigh labels in the loss (`class_weights`) if they matter"
    return [Finding(check="skewed-labels", severity=severity, message=message, hint=hint)]


def _rare(table: Table, train: Counts) -> list[Finding]:
    rare = sorted((hits.count, name) for name, hits in train.items() if hits.count < RARE_ROWS)
    if not rare:
        return []
    message = f"train: fewer than {RARE_ROWS} rows: {listed(f'{name!r} ({count})' for count, name in rare)}"
    rows = sorted((row, name) for _, name in rare for row in train[name].rows)[:SHOWN_ROWS]
    return [
        Finding(
            check="rare-labels",
            severity="warning",
            message=message,
            rows=sum(count for count, _ in rare),
            places=tuple(table.place(row) for row, _ in rows),
            details=tuple(repr(name) for _, name in rows),
            hint="Collect more rows, or join these labels with others",
        )
    ]


def _absent(tables: Mapping[str, Table], counts: Mapping[str, Counts], known: Sequence[str]) -> list[Finding]:
    found = []
    for name in tables:
        missing = [label for label in known if label not in counts[name]]
        if missing and (name == "train" or counts["train"]):
            severity: Severity = "warning" if name == "train" else "note"
            message = f"{name}: {len(missing):,} of {len(known):,} labels have no row: {listed(map(repr, missing))}"
            hint = (
                "They cannot be learned: add rows, or take them out of task.labels"
                if name == "train"
                else "Nothing is measured for them"
            )
            found.append(Finding(check="absent-labels", severity=severity, message=message, hint=hint))
    return found


def _variants(tables: Mapping[str, Table], counts: Mapping[str, Counts]) -> list[Finding]:
    alike: dict[str, set[str]] = defaultdict(set)
    for found in counts.values():
        for name in found:
            alike["".join(name.casefold().split())].add(name)
    groups = [sorted(names) for names in alike.values() if len(names) > 1]
    if not groups:
        return []
    total = {name: sum(found[name].count for found in counts.values() if name in found) for names in groups for name in names}
    rarer = {name for names in groups for name in names if name != max(names, key=lambda name: total[name])}
    rows = [(split, row, name) for split, found in counts.items() for name in found if name in rarer for row in found[name].rows]
    message = f"labels that differ only in case or blanks: {listed(' and '.join(map(repr, names)) for names in groups)}"
    return [
        Finding(
            check="label-variants",
            severity="warning",
            message=message,
            rows=sum(total[name] for name in rarer),
            places=tuple(tables[split].place(row) for split, row, _ in rows[:SHOWN_ROWS]),
            details=tuple(repr(name) for *_, name in rows[:SHOWN_ROWS]),
            hint="Write each label one way",
        )
    ]
