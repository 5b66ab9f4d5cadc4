"""Reads the splits of a recipe and goes on past rows that cannot be used, so that everything wrong with them is found in one go."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from ftkit.data.sources import locate
from ftkit.data.splits import Splits, load_splits
from ftkit.data.table import Table
from ftkit.diagnostics.findings import Finding, Hits, about_rows, share
from ftkit.errors import DataError, Problem
from ftkit.recipe.schema import DataSpec
from ftkit.tasks.base import Row, RowError, Task

CHECK_UNREADABLE = "unreadable-data"
CHECK_UNUSABLE = "unusable-rows"

KINDS_SHOWN = 20
"""Kinds of defects of the rows of a split that are told apart."""

_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")


@dataclass
class Reading:
    """What could be read.

    splits: the rows that can be used; None if there is nothing to train on. learned: whether the task's `learn` took the training rows.
    """

    splits: Splits | None = None
    findings: list[Finding] = field(default_factory=list)
    learned: bool = False


class _Lenient:
    """A task that takes every row and learns from those that fit.

    unlearned: another object of the same task. `check_row` may ask for less once something is learned.
    """

    def __init__(self, task: Task, unlearned: Task) -> None:
        self._task, self._unlearned = task, unlearned
        self.problems: list[Problem] = []
        self.learned = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def check_row(self, row: Row) -> None:
        pass

    def check_learned(self, row: Row) -> None:
        pass

    def learn(self, rows: Iterable[Row]) -> None:
        try:
            self._task.learn(_Fitting(rows, self._unlearned))
            self.learned = True
        except DataError as error:
            self.problems = error.problems


class _Unlearning(_Lenient):
    """A task that takes every row and learns nothing."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, task)

    def learn(self, rows: Iterable[Row]) -> None:
        pass


class _Fitting:
    """Those of some rows that the task can use; may be read more than once."""

    def __init__(self, rows: Iterable[Row], task: Task) -> None:
        self._rows, self._task = rows, task

    def __iter__(self) -> Iterator[Row]:
        return (row for row in self._rows if _refused(row, self._task.check_row) is None)


def read(spec: DataSpec, task: Task, unlearned: Task, base: Path) -> Reading:
    """The splits of a recipe, with findings about sources and rows that cannot be used. `task` has learned if `learned` says so.

    unlearned: another object of the same task, to check rows with. base: the recipe's folder, for relative paths.
    Rows that leak into training are kept, whatever `data.leaks` says.
    """
    lenient = _Lenient(task, unlearned)
    try:
        splits = load_splits(spec.model_copy(update={"leaks": "off"}), cast("Task", lenient), base)
    except DataError as error:
        return Reading(findings=_unreadable(error, spec, unlearned, base))
    found = [_of_problem(problem) for problem in lenient.problems]
    checks = [unlearned.check_row, *([task.check_learned] if lenient.learned else [])]
    for name, table in list(splits.items()):
        usable, defects = _usable(name, table, checks)
        found += defects
        if usable is None and name == "train":
            return Reading(findings=found)
        setattr(splits, name, usable)
    return Reading(splits, found, lenient.learned)


def _unreadable(error: DataError, spec: DataSpec, task: Task, base: Path) -> list[Finding]:
    """What keeps the sources from being read: of each split by itself, or else of all of them together."""
    problems = {problem: None for name in ("train", "validation", "test") for problem in _problems_of(name, spec, task, base)}
    return [_of_problem(problem) for problem in problems or error.problems]


def _problems_of(name: str, spec: DataSpec, task: Task, base: Path) -> Sequence[Problem]:
    """Problems of the sources of one split. Those on the hub are left out: another split of them would be read."""
    sources = getattr(spec, name) or []
    try:
        local = [source for source in sources if not locate(source, base).hub_id]
        if local:
            load_splits(DataSpec(train=local, columns=spec.columns, leaks="off"), cast("Task", _Unlearning(task)), base)
    except DataError as error:
        return error.problems
    return ()


def _of_problem(problem: Problem) -> Finding:
    message = ": ".join(part for part in (problem.key, problem.message) if part)
    places = (problem.place,) if problem.place else ()
    return Finding(check=CHECK_UNREADABLE, severity="error", message=message, places=places, hint=problem.hint)


def _usable(name: str, table: Table, checks: Sequence[Callable[[Row], None]]) -> tuple[Table | None, list[Finding]]:
    """The rows that the task can use, and a finding for each kind of defect of the others."""
    kinds: dict[tuple[str, str], tuple[RowError, Hits]] = {}
    bad: list[int] = []
    for index, row in enumerate(table):
        reason = next(filter(None, (_refused(row, check) for check in checks)), None)
        if reason is None:
            continue
        kind = (reason.column, _VALUES.sub("…", reason.message))
        key = kind if kind in kinds or len(kinds) < KINDS_SHOWN else (reason.column, "")
        kinds.setdefault(key, (reason, Hits()))[1].add(index, reason.message)
        bad.append(index)
    found = [_of_kind(name, table, error, hits) for error, hits in kinds.values()]
    if not bad:
        return table, found
    good = np.setdiff1d(np.arange(len(table)), bad)
    return (table.select(good) if len(good) else None), found


def _of_kind(name: str, table: Table, error: RowError, hits: Hits) -> Finding:
    message = f"{name}: {share(hits.count, len(table))} cannot be used: {error.column}: {error.message}"
    return about_rows(CHECK_UNUSABLE, "error", message, table, hits, error.hint)


def _refused(row: Row, check: Callable[[Row], None]) -> RowError | None:
    """Why a check refuses a row, None if it does not."""
    try:
        check(row)
    except RowError as error:
        return error
    return None
