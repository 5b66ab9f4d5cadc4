"""What `ftkit init` proposes for given data: the task, its columns and options, and what to hold back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ftkit.cli.output import one_line
from ftkit.cli.sniffing import SAMPLE_ROWS, fitting_options, indicator_columns
from ftkit.data.sources import is_plain_text, read_source
from ftkit.errors import DataError, Problem
from ftkit.recipe.schema import SourceSpec
from ftkit.registry import TASKS
from ftkit.tasks.parts.profiles import Profile, Recognized, guess_columns, profile

if TYPE_CHECKING:
    from ftkit.data.table import Table
    from ftkit.tasks.base import Task

HELD_BACK = 0.1
FEWEST_ROWS = 10
"""Of a file out of which splits are made; of fewer, a tenth may be none."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What the recipe is to say of the task and its data.

    columns: {task column: (data column or columns, what it looks like)}. held_back: shares by split. group: the data column whose
    rows stay in one split, '' if there is none. format: of plain text, '' for the task's usual one. reason: columns that speak for the
    task, '' if it was given. remarks: what a person should know.
    """

    task: type[Task]
    columns: dict[str, tuple[Any, str]]
    options: dict[str, Any]
    held_back: dict[str, float]
    group: str = ""
    format: str = ""
    reason: str = ""
    remarks: list[str] = field(default_factory=list)


def propose(paths: Mapping[str, str], task: type[Task] | None, encoding: str | None = None) -> Proposal:
    """paths: data files by split. task: None to go by the columns. encoding: of the files, None for the usual one.

    Raises DataError where files or columns do not do.
    """
    train = paths["train"]
    table = _read(train, encoding)
    # Rows from the whole file: files sorted by label would else show one label only.
    rows = table.rows(np.unique(np.linspace(0, len(table) - 1, num=min(SAMPLE_ROWS, len(table)), dtype=np.int64)))
    profiles = {name: profile(name, [row[name] for row in rows]) for name in table.column_names}
    reason = ""
    if task is None:
        task, found = _recognized(profiles, train)
        reason = found.reason
    else:
        found = _recognize(task, profiles, train) or Recognized(strength=0, reason="", columns={})
    columns = _columns(task, found, profiles, train)
    others = [_read(path, encoding) for name, path in paths.items() if name != "train"]
    columns = _without_rare(task(task.Options()), columns, others)
    flags = indicator_columns(task(task.Options()), columns, profiles)
    labels = {"problem_type": "multi_label", "labels": flags} if flags else fitting_options(task, columns, rows)
    options = {**found.options, **labels}
    held_back, form, remarks = _held_back(task, paths, len(table), encoding)
    group = columns.get(task.group_column or "", "")
    return Proposal(
        task=task,
        columns=_described(columns, flags, options, rows, profiles),
        options=options,
        held_back=held_back,
        group=group if group and held_back and profiles[group].distinct >= FEWEST_ROWS else "",
        format=form,
        reason=reason,
        remarks=remarks,
    )


def _read(path: str, encoding: str | None, plain_text: str = "text") -> Table:
    source = SourceSpec.model_validate({"path": path} if encoding is None else {"path": path, "encoding": encoding})
    try:
        table = read_source(source, base=Path.cwd(), plain_text=plain_text)
    except DataError as error:
        raise DataError([_for_init(problem) for problem in error.problems]) from error
    if not len(table):
        raise DataError(Problem(message="holds no rows", place=path))
    return table


def _for_init(problem: Problem) -> Problem:
    """With the option of `ftkit init` where the way out is a key of a recipe, of which there is none yet."""
    return replace(problem, hint=problem.hint.replace("`encoding: ", "`--encoding ")) if problem.hint else problem


def _recognize(task: type[Task], profiles: Mapping[str, Profile], path: str) -> Recognized | None:
    try:
        return task.recognize(profiles)
    except DataError as error:
        raise DataError([replace(problem, place=path) for problem in error.problems]) from error


def _recognized(profiles: Mapping[str, Profile], path: str) -> tuple[type[Task], Recognized]:
    """The task for which most speaks. Raises DataError if that is none, or more than one."""
    asked = [(task, _recognize(task, profiles, path)) for task in map(TASKS.get, TASKS.names())]
    found = [(task, evidence) for task, evidence in asked if evidence is not None]
    most = max((evidence.strength for _, evidence in found), default=0)
    best = [(task, evidence) for task, evidence in found if evidence.strength == most]
    if len(best) == 1:
        return best[0]
    if best:
        likely = [f"{task.name} ({one_line(evidence.reason, 100)})" for task, evidence in best]
        message = f"the columns may be for several tasks: {', '.join(likely)}"
        hint = f"Say which: {' or '.join(f'--task {task.name}' for task, _ in best)}"
    else:
        message = f"the columns do not tell the task: {_seen(profiles)}"
        hint = f"Name it, and rename columns if need be: --task NAME, one of {', '.join(TASKS.names())} (see `ftkit tasks`)"
    raise DataError(Problem(message=message, place=path, hint=hint))


def _columns(task: type[Task], found: Recognized, profiles: Mapping[str, Profile], path: str) -> dict[str, str]:
    example = task(task.Options.model_validate(found.options))
    columns, lacking = guess_columns(example, profiles, found.columns)
    if not columns:
        lacking = list(example.columns())[:1]
    if lacking:
        advice = (
            f"Rename one, write `data.columns` by hand, or name another task: --task (columns of this one: ftkit tasks {task.name})"
        )
        problems = [
            Problem(
                message=f"no column looks like {name!r}: {example.columns()[name].summary}",
                place=path,
                hint=f"Columns: {_seen(profiles)}. {advice}",
            )
            for name in lacking
        ]
        raise DataError(problems)
    return columns


def _seen(profiles: Mapping[str, Profile]) -> str:
    return one_line(", ".join(f"{entry.name} ({entry.describe()})" for entry in profiles.values()), 600)


def _without_rare(task: Task, columns: dict[str, str], others: Sequence[Table]) -> dict[str, str]:
    """Without optional columns that a split lacks: `data.columns` says what every source has."""
    declared = task.columns()
    return {
        name: source
        for name, source in columns.items()
        if (name in declared and declared[name].required) or all(source in table.source_columns for table in others)
    }


def _described(
    columns: Mapping[str, str],
    flags: list[str],
    options: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    profiles: Mapping[str, Profile],
) -> dict[str, tuple[Any, str]]:
    """{task column: (data column or columns, what it looks like)}."""
    described: dict[str, tuple[Any, str]] = {name: (source, profiles[source].describe()) for name, source in columns.items()}
    if flags:
        described["label"] = (flags, "0 or 1 for each label")
    elif separator := options.get("label_separator"):
        parts = [[part.strip() for part in str(row[columns["label"]]).split(separator)] for row in rows if row[columns["label"]]]
        described["label"] = (columns["label"], profile("label", parts).describe())
    return described


def _held_back(
    task: type[Task], paths: Mapping[str, str], rows: int, encoding: str | None
) -> tuple[dict[str, float], str, list[str]]:
    """Shares by split, the format of plain text ('': the task's usual one), and what to say of it."""
    shares = {name: HELD_BACK for name in ("validation", "test") if name not in paths}
    if not shares:
        return {}, "", []
    form = ""
    remarks: list[str] = []
    if task.plain_text != "text" and is_plain_text(paths["train"]):
        texts = len(_read(paths["train"], encoding, task.plain_text))
        if texts < FEWEST_ROWS and "validation" not in paths and rows >= FEWEST_ROWS:
            form = "text"
            counted = "one running text" if texts == 1 else f"{texts} running texts"
            remarks.append(
                f"{paths['train']} is {counted}, too few to hold any back, so each line is taken for a text of its own (format: text). "
                "To learn whole files, give others with --validation FILE"
            )
        else:
            rows = texts
    if rows < FEWEST_ROWS:
        lacking = " and ".join(shares)
        remarks.append(
            f"{rows} row{'s are' if rows > 1 else ' is'} too few to hold any back for {lacking}: give files of their own"
        )
        return {}, form, remarks
    return shares, form, remarks
