"""Reads, checks and divides the data of a recipe."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ftkit.data.building import table_from_rows
from ftkit.data.canonical import canonical
from ftkit.data.columns import DataColumns, apply_columns, check_mapping, check_rows, find_columns, wanted_columns
from ftkit.data.digests import Codes, KnownDigests, codes_of, digest_chunks, row_digests
from ftkit.data.fractions import TRAIN, divide
from ftkit.data.problems import Problems
from ftkit.data.progress import UNWATCHED, CountedRows, Watcher
from ftkit.data.sources import read_source, read_sources
from ftkit.data.table import Table
from ftkit.errors import DataError, Problem
from ftkit.recipe.schema import DataSpec, SourceSpec, SplitSpec
from ftkit.tasks.base import Task

__all__ = ["Splits", "load_rows", "load_splits", "table_from_rows"]

IDENTIFIERS = {"id"}
"""Columns that tell rows apart without being part of the input: rows that differ in nothing else are the same example."""


@dataclass(kw_only=True)
class Splits:
    """The rows of a run. `notes`: what a user should know about them, one sentence each."""

    train: Table
    validation: Table | None = None
    test: Table | None = None
    notes: list[str] = field(default_factory=list)

    def items(self) -> Iterator[tuple[str, Table]]:
        """(name, table) of each split there is."""
        for name in (TRAIN, "validation", "test"):
            if (table := getattr(self, name)) is not None:
                yield name, table

    def fingerprints(self, watch: Watcher = UNWATCHED) -> dict[str, str]:
        """`Table.fingerprint` of each split."""
        watch.part("hashing rows")
        return {name: table.fingerprint(watch) for name, table in self.items()}


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """Rows of one split under the task's column names, with the values that a division of them needs."""

    table: Table
    columns: DataColumns
    strata: Codes | None = None
    groups: Codes | None = None


def load_splits(spec: DataSpec, task: Task, base: Path, watch: Watcher = UNWATCHED) -> Splits:
    """The splits that a recipe describes, every row checked, with the task's `learn` done on the training rows.

    base: the recipe's folder, for relative paths. watch: is told how far it is. Raises DataError with up to 20 problems.
    """
    check_mapping(task, spec.columns)
    _refuse_two_origins(spec)
    names = [TRAIN, *(name for name in ("validation", "test") if getattr(spec, name))]
    loaded = {name: _load(spec, task, base, name, watch) for name in names}
    problems = Problems()
    for name, part in loaded.items():
        watch.part(f"checking {name}")
        check_rows(part.table, task.check_row, part.columns, problems, watch)
    problems.raise_if_any()
    splits = Splits(train=loaded[TRAIN].table)
    for name, part in loaded.items():
        setattr(splits, name, part.table)
    if spec.split is not None:
        _hold_back(splits, spec.split, loaded[TRAIN], task, watch)
    # Held-back rows cannot be training rows: equal inputs stay together.
    _handle_leaks(splits, [name for name in loaded if name != TRAIN], spec.leaks, task, watch)
    _learn(task, splits.train, watch)
    for name, table in splits.items():
        watch.part(f"checking {name} again")
        check_rows(table, task.check_learned, loaded.get(name, loaded[TRAIN]).columns, problems, watch)
    problems.raise_if_any()
    return splits


def _learn(task: Task, rows: Table, watch: Watcher) -> None:
    """`task.learn`, whose errors are told with the files that the training rows come from."""
    watch.part("learning from train")
    try:
        task.learn(CountedRows(rows, watch))
    except DataError as error:
        place = " ... ".join(dict.fromkeys((rows.origin_label(0), rows.origin_label(-1))))
        raise DataError([replace(problem, place=problem.place or place) for problem in error.problems]) from error


def load_rows(
    source: SourceSpec | str | Table, task: Task, columns: DataColumns, base: Path, *, need_targets: bool, split: str = "test"
) -> Table:
    """Rows from outside the recipe (`evaluate --data`, `predict --input`), under the task's column names, checked.

    source: what a recipe may name, or rows given in memory (`table_from_rows`). split: of a hub data set that names none.
    need_targets=False: target columns are left out, whether or not the rows have them.
    The task must have learned or been restored. Raises DataError with up to 20 problems.
    """
    check_mapping(task, columns)
    if isinstance(source, str):
        source = SourceSpec.model_validate(source)
    if isinstance(source, SourceSpec):
        source = read_source(source, split=split, base=base, columns=wanted_columns(task, columns), plain_text=task.plain_text)
    found = find_columns(source, task, columns, need_targets=need_targets)
    if not need_targets:
        found = {name: column for name, column in found.items() if not task.columns()[name].target}
    table = apply_columns(source, found, task)
    problems = Problems()
    for check in (task.check_row, task.check_learned):
        check_rows(table, check, found, problems)
        problems.raise_if_any()
    return table


def input_columns(table: Table, task: Task) -> list[str]:
    """The columns that make up a row's input: all but targets and identifiers."""
    declared = task.columns()
    names = [name for name in table.column_names if not declared[name].target and name not in IDENTIFIERS]
    return names or table.column_names


def file_columns(task: Task) -> frozenset[str]:
    """The columns that hold files: two rows with the same content are equal, whatever the files are called."""
    return frozenset(name for name, column in task.columns().items() if column.file)


def _refuse_two_origins(spec: DataSpec) -> None:
    for name in ("validation", "test"):
        share = getattr(spec.split, name) if spec.split else 0
        if share and getattr(spec, name):
            message = f"{name} rows come from `data.{name}` and from `data.split.{name}: {share}`"
            raise DataError(Problem(message=message, key="data.split", hint="Keep one of the two."))
    if spec.split and spec.split.validation + spec.split.test >= 1:
        message = f"validation {spec.split.validation} and test {spec.split.test} leave nothing to train on"
        raise DataError(Problem(message=message, key="data.split", hint="Their sum must be below 1."))


def _load(spec: DataSpec, task: Task, base: Path, name: str, watch: Watcher) -> _Loaded:
    divided = spec.split if name == TRAIN and spec.split and (spec.split.validation or spec.split.test) else None
    stratify = divided.stratify if divided and divided.stratify not in ("auto", "none") else None
    group = divided.group if divided else None
    wanted = wanted_columns(task, spec.columns, (stratify, group))
    seed = spec.split.seed if spec.split else 0
    watch.part(f"reading {name}")
    raw = read_sources(
        getattr(spec, name), split=name, base=base, columns=wanted, seed=seed, plain_text=task.plain_text, watch=watch
    )
    found = [find_columns(table, task, spec.columns) for table in raw]
    table = Table.concatenate([apply_columns(table, columns, task) for table, columns in zip(raw, found, strict=True)])
    strata = groups = None
    if divided is not None and divided.stratify == "auto":
        auto = task.stratify_column()
        strata = _strata(table.values(auto), len(table)) if auto in table.column_names else None
    elif stratify:
        strata = _strata(_extra(raw, stratify, "data.split.stratify", table), len(table))
    if group:
        groups = codes_of(map(_group_key, _extra(raw, group, "data.split.group", table)), len(table))
    return _Loaded(table=table, columns=_merged(found), strata=strata, groups=groups)


def _merged(found: list[dict[str, str | list[str]]]) -> DataColumns:
    """The first source's name for each column; messages about the row's column use it."""
    return {name: source for columns in reversed(found) for name, source in columns.items()}


def _extra(raw: list[Table], name: str, key: str, table: Table) -> Iterator[Any]:
    """Values of a column that divides the rows: a data column, or a column of the task."""
    if all(name in part.column_names for part in raw):
        return chain.from_iterable(part.values(name) for part in raw)
    if name in table.column_names:
        return table.values(name)
    part = next(part for part in raw if name not in part.column_names)
    if name in part.conflicts:
        raise DataError(part.conflicts[name])
    message = f"there is no column {name!r} to divide the rows by"
    raise DataError(
        Problem(message=message, place=part.origin_label(0), key=key, hint=f"Columns: {', '.join(part.source_columns)}.")
    )


def _hold_back(splits: Splits, spec: SplitSpec, loaded: _Loaded, task: Task, watch: Watcher) -> None:
    shares = {name: share for name, share in (("test", spec.test), ("validation", spec.validation)) if share}
    if not shares:
        return
    watch.part("dividing rows")
    inputs = row_digests(loaded.table, input_columns(loaded.table, task), file_columns(task), watch)
    parts = divide(inputs, shares, seed=spec.seed, strata=loaded.strata, groups=loaded.groups)
    for name, rows in parts.items():
        if not len(rows):
            share = f"a share of {shares[name]}" if name in shares else "what is left"
            message = f"the {name} split is empty: {share} of {len(loaded.table)} rows, with equal inputs"
            message += " and groups kept together" if spec.group else " kept together"
            hint = "Use more rows or another share, set `stratify: none`, or name a file of its own for the split."
            raise DataError(Problem(message=message, key=f"data.split.{name}" if name in shares else "data.split", hint=hint))
        setattr(splits, name, loaded.table.select(rows))


def _strata(values: Iterator[Any], count: int) -> Codes | None:
    """None (stratify on nothing) for list values: sets of labels have too many combinations to keep in proportion."""
    try:
        return codes_of(values, count)
    except TypeError:
        return None


def _group_key(value: Any) -> Hashable:
    return canonical(value) if isinstance(value, list | dict) else value


def _handle_leaks(splits: Splits, names: list[str], mode: str, task: Task, watch: Watcher) -> None:
    """Compares the named splits, which came from sources of their own, with the training rows."""
    held_out = {name: table for name, table in splits.items() if name in names}
    if mode == "off" or not held_out:
        return
    watch.part("comparing splits")
    files = file_columns(task)
    known = {name: KnownDigests(row_digests(table, input_columns(table, task), files, watch)) for name, table in held_out.items()}
    first = {name: np.full(len(digests), -1, dtype=np.int64) for name, digests in known.items()}
    leaked = np.zeros(len(splits.train), dtype=bool)
    start = 0
    for chunk in digest_chunks(splits.train, input_columns(splits.train, task), files, watch):
        for name, digests in known.items():
            numbers = digests.find(chunk)
            rows = np.flatnonzero(numbers >= 0)
            leaked[start + rows] = True
            rows = rows[first[name][numbers[rows]] < 0][::-1]
            # The last assignment counts: that of the first row.
            first[name][numbers[rows]] = start + rows
        start += len(chunk)
    found = [_leak(splits, name, first[name][digests.group_of_row]) for name, digests in known.items() if first[name].max() >= 0]
    if mode == "error" and found:
        hint = "Remove them, or let `data.leaks: drop` leave them out of training."
        raise DataError([Problem(message=message, key="data.leaks", hint=hint) for message in found])
    splits.notes += found
    if mode == "drop" and found:
        _drop(splits, leaked)


def _leak(splits: Splits, name: str, found: np.ndarray) -> str:
    """found: for each row of the split the first training row with its input, -1 where there is none (rows,)."""
    table, rows = getattr(splits, name), np.flatnonzero(found >= 0)
    example = f"{table.place(int(rows[0]))} = {splits.train.place(int(found[rows[0]]))}"
    return f"{len(rows)} of {len(table)} {name} rows are also training rows (e.g. {example})"


def _drop(splits: Splits, leaked: np.ndarray) -> None:
    kept = np.flatnonzero(~leaked)
    if not len(kept):
        raise DataError(
            Problem(message="every training row is also an evaluation row; dropping them leaves none", key="data.leaks")
        )
    splits.notes.append(f"{len(leaked) - len(kept)} of {len(leaked)} training rows were left out because of that")
    splits.train = splits.train.select(kept)
