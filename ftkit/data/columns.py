"""Which column of the data is which column of the task, and whether each row fits the task."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from ftkit.data.file_contents import load_contents
from ftkit.data.problems import Problems
from ftkit.data.progress import UNWATCHED, CountedRows, Watcher
from ftkit.data.table import Table
from ftkit.errors import Problem
from ftkit.tasks.base import Column, RowError, Task

DataColumns = Mapping[str, str | Sequence[str]]
"""{task column: data column, or data columns whose values become a list}."""


def wanted_columns(task: Task, columns: DataColumns, others: Sequence[str | None] = ()) -> frozenset[str]:
    """Names of data columns that may be needed, for readers that can leave out the rest."""
    names = {name for name in others if name}
    for task_column, column in task.columns().items():
        if task_column in columns:
            names.update(_as_list(columns[task_column]))
        else:
            names.update((task_column, *column.names))
    return frozenset(names)


def check_mapping(task: Task, columns: DataColumns) -> None:
    """Raises DataError if `data.columns` names a column that the task does not have."""
    known = list(task.columns())
    problems = Problems()
    for name in columns:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            message = f"the task {task.name} has no column {name!r}"
            problems.add(Problem(message=message, key=f"data.columns.{name}", hint=f"{hint}Its columns: {', '.join(known)}."))
    problems.raise_if_any()


def find_columns(table: Table, task: Task, columns: DataColumns, *, need_targets: bool = True) -> dict[str, str | list[str]]:
    """The data column of each task column: as `columns` says, else of the same name, else of one of its usual names.

    Raises DataError naming every required column that is missing, with the columns that the data has.
    """
    declared = task.columns()
    found: dict[str, str | list[str]] = {}
    problems = Problems()
    for name, source in columns.items():
        lacking = [part for part in _as_list(source) if part not in table.source_columns]
        if not lacking:
            found[name] = source if isinstance(source, str) else list(source)
        elif need_targets or not declared[name].target:
            problems.add(_not_there(table, name, lacking[0]))
    taken = {part for source in found.values() for part in _as_list(source)}
    unnamed = [name for name in declared if name not in columns]
    for name in (name for name in unnamed if name in table.source_columns and name not in taken):
        found[name] = name
    taken |= set(unnamed) & set(found)
    for name in sorted((name for name in unnamed if name not in found), key=lambda name: not declared[name].required):
        column = declared[name]
        usual = next((other for other in column.names if other in table.source_columns and other not in taken), None)
        if usual is not None:
            found[name] = usual
            taken.add(usual)
        elif column.required and (need_targets or not column.target):
            problems.add(_missing(table, name, column, taken))
    if not found and not len(problems):
        names = ", ".join(name for name, column in declared.items() if need_targets or not column.target)
        hint = f"Columns: {_listed(table)}. Say which is which under `data.columns`."
        problems.add(Problem(message=f"no column of {task.name} is there ({names})", place=_file_of(table), key="data", hint=hint))
    problems.raise_if_any()
    return {name: found[name] for name in declared if name in found}


def apply_columns(table: Table, found: DataColumns, task: Task) -> Table:
    """The table under the task's column names, with the content of files in place of their paths.

    Raises DataError if the values of a column it needs do not fit together, or a file cannot be read.
    """
    problems = Problems()
    for source in found.values():
        for part in _as_list(source):
            if part in table.conflicts:
                problems.add(table.conflicts[part])
    problems.raise_if_any()
    return load_files(table, found, task).project(found)


def load_files(table: Table, found: DataColumns, task: Task, *, lenient: bool = False) -> Table:
    """The table with the content of files in place of their paths, in the columns where the task wants it.

    Raises DataError for files that cannot be read; lenient: these stay paths.
    """
    for name in (name for name, column in task.columns().items() if column.file and name in found):
        for part in _as_list(found[name]):
            table = load_contents(table, part, lenient=lenient)
    return table


def check_rows(
    table: Table,
    check: Callable[[dict[str, Any]], None],
    columns: DataColumns,
    problems: Problems,
    watch: Watcher = UNWATCHED,
) -> None:
    """Calls `check` on every row; a RowError becomes a problem with the place of the row and the data column's name."""
    for index, row in enumerate(CountedRows(table, watch)):
        try:
            check(row)
        except RowError as error:
            source = columns.get(error.column, error.column)
            key = ", ".join(_as_list(source))
            problems.add(Problem(message=error.message, place=table.place(index), key=key, hint=error.hint))


def _as_list(source: str | Sequence[str]) -> list[str]:
    return [source] if isinstance(source, str) else list(source)


def _not_there(table: Table, name: str, source: str) -> Problem:
    near = get_close_matches(source, table.source_columns, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return Problem(
        message=f"there is no column {source!r}",
        place=_file_of(table),
        key=f"data.columns.{name}",
        hint=f"{hint}Columns: {_listed(table)}.",
    )


def _missing(table: Table, name: str, column: Column, taken: Collection[str]) -> Problem:
    free = [other for other in table.source_columns if other not in taken]
    near = get_close_matches(name, free, n=1, cutoff=0.4)
    # Names with blanks at their ends or with signs of YAML only count as such in quotes.
    example = (near[0] if re.fullmatch(r"\w[\w .-]*(?<! )", near[0]) else json.dumps(near[0])) if near else "<one of them>"
    hint = f"Columns: {_listed(table)}. Say which one it is: `data: {{columns: {{{name}: {example}}}}}`."
    if not free:
        hint = f"The data has no other column than {_listed(table)}; add it, or give another file."
    only = table.source_columns[0] if len(table.source_columns) == 1 else ""
    if other := next((mark for mark in ";\t|," if mark in only), ""):
        hint = f"The header has one column, {only!r}. If the separator is {other!r}, set `delimiter: {other!r}` for the source."
    usual = f" (usual names: {', '.join(column.names)})" if column.names else ""
    summary = column.summary.rstrip(".")
    return Problem(message=f"no column {name!r}: {summary}{usual}", place=_file_of(table), key=f"data.columns.{name}", hint=hint)


def _listed(table: Table) -> str:
    return ", ".join(table.source_columns) or "none"


def _file_of(table: Table) -> str:
    return table.origin_label(0)
