"""All checks in order: those of `ftkit doctor`, and the quick ones that every training run makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftkit.data.splits import Splits
from ftkit.diagnostics.duplicates import digests, duplicate_findings, leak_findings
from ftkit.diagnostics.encoding import encoding_findings
from ftkit.diagnostics.findings import Finding, by_severity
from ftkit.diagnostics.label_noise import noise_findings
from ftkit.diagnostics.labels import label_findings, label_reader, rows_by_label
from ftkit.diagnostics.near_duplicates import near_duplicate_findings
from ftkit.diagnostics.reading import read
from ftkit.diagnostics.roles import Roles, has_closed_answers, roles_of
from ftkit.diagnostics.sizes import size_findings
from ftkit.diagnostics.texts import text_findings
from ftkit.recipe.plan import Plan
from ftkit.recipe.schema import TrainSpec
from ftkit.tasks.base import Task


@dataclass(frozen=True)
class Report:
    """findings: worst first. rows: usable rows of each split."""

    findings: list[Finding]
    rows: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """`findings` and `rows`."""
        return {"findings": [finding.to_json() for finding in self.findings], "rows": self.rows}


class _Look:
    """Splits and what several checks need of them: the roles of their columns and a digest of each row's input."""

    def __init__(self, splits: Splits, task: Task, train: TrainSpec) -> None:
        self.splits, self.task, self._train = splits, task, train
        self.tables = dict(splits.items())
        self.roles: dict[str, Roles] = {name: roles_of(task, table) for name, table in splits.items()}
        self.inputs: dict[str, np.ndarray] = {}
        self.names_of = label_reader(task.options)

    def digest(self, names: Iterable[str]) -> None:
        """Makes the digests of the inputs of these splits."""
        self.inputs |= {name: digests(self.tables[name], self.roles[name].inputs, self.roles[name].files) for name in names}

    def quick(self, *, learned: bool = True) -> list[Finding]:
        """Everything that takes a pass or two over the rows of a split by itself."""
        closed = learned and has_closed_answers(self.task)
        found = size_findings(self.splits, self._train, answered=self.task.measures_share)
        for name, table in self.splits.items():
            if name in self.inputs:
                found += duplicate_findings(name, table, self.inputs[name], self.roles[name], closed=closed)
            found += text_findings(name, table, self.roles[name])
        if learned and (label := self.roles["train"].label):
            counts = {name: rows_by_label(table, label, self.names_of) for name, table in self.splits.items()}
            found += label_findings(self.tables, counts, self.task.state().get("labels") or ())
        return found

    def noise(self) -> list[Finding]:
        """Labels that are probably wrong."""
        roles, table = self.roles["train"], self.splits.train
        if roles.label is None or not roles.texts:
            return []
        return noise_findings(table, roles.texts, roles.label, self.inputs["train"], self.names_of)

    def near_duplicates(self) -> list[Finding]:
        """Rows that are nearly the same."""
        texts, answers = self._in_all_splits("texts"), self._in_all_splits("text_targets")
        label = self.roles["train"].label
        labels = {name: digests(table, [label]) for name, table in self.tables.items()} if label else None
        return near_duplicate_findings(self.splits, texts, self.inputs, answers, labels)

    def _in_all_splits(self, role: str) -> list[str]:
        """Columns that have this role in every split."""
        return [name for name in getattr(self.roles["train"], role) if all(name in getattr(r, role) for r in self.roles.values())]


def quick_findings(splits: Splits, task: Task, train: TrainSpec) -> list[Finding]:
    """What a training run should tell: warnings and errors that take about a second for 100,000 rows.

    The task has learned. Leaks are left out: `load_splits` compares the splits as the recipe says.
    """
    look = _Look(splits, task, train)
    look.digest(["train"])
    return [finding for finding in by_severity(look.quick()) if finding.severity != "note"]


def examine(plan: Plan, *, stage: Callable[[str], None] = lambda name: None, allow_code: bool = False) -> Report:
    """All findings about the data of a recipe. stage: called with what is done next.

    Raises RecipeError if code that the recipe names (a metric script) is not allowed.
    """
    task = plan.task()
    task.allow_code = allow_code
    spec = plan.recipe.data
    stage("reading data")
    reading = read(spec, task, plan.task(), plan.recipe.origin.base)
    if reading.splits is None:
        return Report(by_severity(reading.findings), {})
    look = _Look(reading.splits, task, plan.recipe.train)
    stage("looking at rows")
    look.digest(look.tables)
    found = [*reading.findings, *leak_findings(reading.splits, look.inputs, spec.leaks), *look.quick(learned=reading.learned)]
    stage("looking for near-duplicates")
    found += look.near_duplicates()
    if reading.learned:
        stage("looking for wrong labels")
        found += look.noise()
        stage("encoding")
        found += encoding_findings(plan, task, reading.splits, look.roles, cache=spec.cache and not reading.findings)
    return Report(by_severity(found), {name: len(table) for name, table in reading.splits.items()})
