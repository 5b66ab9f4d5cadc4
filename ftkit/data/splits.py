"""Reads, checks and divides the data of a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ftkit.data.building import table_from_rows
from ftkit.data.columns import DataColumns, apply_columns, check_mapping, check_rows, find_columns, wanted_columns
from ftkit.data.fractions import TRAIN, divide
from ftkit.data.problems import Problems
from ftkit.data.sources import read_source, read_sources
from ftkit.data.table import Table, canonical
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


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """Rows of one split under the task's column names, with the values that a division of them needs."""

    table: Table
    columns: DataColumns
    strata: list[Any] | None = None
    groups: list[Any] | None = None


def load_splits(spec: DataSpec, task: Task, base: Path) -> Splits:
    """The splits that a recipe describes, every row checked, with the task's `learn` done on the training rows.

    base: the recipe's folder, for relative paths. Raises DataError with up to 20 problems.
    """
    check_mapping(task, spec.columns)
    _refuse_two_origins(spec)
    loaded = {TRAIN: _load(spec, task, base, TRAIN)}
    loaded |= {name: _load(spec, task, base, name) for name in ("validation", "test") if getattr(spec, name)}
    problems = Problems()
    for part in loaded.values():
        check_rows(part.table, task.check_row, part.columns, problems)
    problems.raise_if_any()
    splits = Splits(train=loaded[TRAIN].table)
    for name, part in loaded.items():
        setattr(splits, name, part.table)
    if spec.split is not None:
        _hold_back(splits, spec.split, loaded[TRAIN], task)
    # Held-back rows cannot be training rows: equal inputs stay together.
    _handle_leaks(splits, [name for name in loaded if name != TRAIN], spec.leaks, task)
    task.learn(splits.train)
    for name, table in splits.items():
        check_rows(table, task.check_learned, loaded.get(name, loaded[TRAIN]).columns, problems)
    problems.raise_if_any()
    return splits


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


def input_digests(table: Table, task: Task) -> list[bytes]:
    """A digest (16 bytes) of each row's input: all columns but targets and identifiers."""
    declared = task.columns()
    names = [name for name in table.column_names if not declared[name].target and name not in IDENTIFIERS]
    names = names or table.column_names
    digests: list[bytes] = []
    for columns in table.project({name: name for name in names}).chunks():
        rows = zip(*(columns[name] for name in names), strict=True)
        digests += [hashlib.blake2b(canonical(row), digest_size=16).digest() for row in rows]
    return digests


def _refuse_two_origins(spec: DataSpec) -> None:
    for name in ("validation", "test"):
        share = getattr(spec.split, name) if spec.split else 0
        if share and getattr(spec, name):
            message = f"{name} rows come from `data.{name}` and from `data.split.{name}: {share}`"
            raise DataError(Problem(message=message, key="data.split", hint="Keep one of the two."))
    if spec.split and spec.split.validation + spec.split.test >= 1:
        message = f"validation {spec.split.validation} and test {spec.split.test} leave nothing to train on"
        raise DataError(Problem(message=message, key="data.split", hint="Their sum must be below 1."))


def _load(spec: DataSpec, task: Task, base: Path, name: str) -> _Loaded:
    divided = spec.split if name == TRAIN and spec.split and (spec.split.validation or spec.split.test) else None
    stratify = divided.stratify if divided and divided.stratify not in ("auto", "none") else None
    group = divided.group if divided else None
    wanted = wanted_columns(task, spec.columns, (stratify, group))
    seed = spec.split.seed if spec.split else 0
    raw = read_sources(getattr(spec, name), split=name, base=base, columns=wanted, seed=seed, plain_text=task.plain_text)
    found = [find_columns(table, task, spec.columns) for table in raw]
    table = Table.concatenate([apply_columns(table, columns, task) for table, columns in zip(raw, found, strict=True)])
    strata = None
    if divided is not None and divided.stratify == "auto":
        auto = task.stratify_column()
        strata = table.column(auto) if auto in table.column_names else None
    elif stratify:
        strata = _extra(raw, stratify, "data.split.stratify", table)
    groups = _extra(raw, group, "data.split.group", table) if group else None
    return _Loaded(table=table, columns=_merged(found), strata=strata, groups=groups)


def _merged(found: list[dict[str, str | list[str]]]) -> DataColumns:
    """The first source's name for each column; messages about the row's column use it."""
    return {name: source for columns in reversed(found) for name, source in columns.items()}


def _extra(raw: list[Table], name: str, key: str, table: Table) -> list[Any]:
    """Values of a column that divides the rows: a data column, or a column of the task."""
    if all(name in part.column_names for part in raw):
        return [value for part in raw for value in part.column(name)]
    if name in table.column_names:
        return table.column(name)
    part = next(part for part in raw if name not in part.column_names)
    if name in part.conflicts:
        raise DataError(part.conflicts[name])
    message = f"there is no column {name!r} to divide the rows by"
    raise DataError(
        Problem(message=message, place=part.origin_label(0), key=key, hint=f"Columns: {', '.join(part.source_columns)}.")
    )


def _hold_back(splits: Splits, spec: SplitSpec, loaded: _Loaded, task: Task) -> None:
    shares = {name: share for name, share in (("test", spec.test), ("validation", spec.validation)) if share}
    if not shares:
        return
    parts = divide(
        input_digests(loaded.table, task),
        shares,
        seed=spec.seed,
        strata=_hashable(loaded.strata),
        groups=None if loaded.groups is None else [_group_key(value) for value in loaded.groups],
    )
    for name, rows in parts.items():
        if not len(rows):
            share = f"a share of {shares[name]}" if name in shares else "what is left"
            message = f"the {name} split is empty: {share} of {len(loaded.table)} rows, with equal inputs"
            message += " and groups kept together" if spec.group else " kept together"
            hint = "Use more rows or another share, set `stratify: none`, or name a file of its own for the split."
            raise DataError(Problem(message=message, key=f"data.split.{name}" if name in shares else "data.split", hint=hint))
        setattr(splits, name, loaded.table.select(rows))


def _hashable(values: list[Any] | None) -> list[Hashable] | None:
    """None (stratify on nothing) for list values: sets of labels have too many combinations to keep in proportion."""
    return None if values is None or any(isinstance(value, list | dict) for value in values) else values


def _group_key(value: Any) -> Hashable:
    return canonical(value) if isinstance(value, list | dict) else value


def _handle_leaks(splits: Splits, names: list[str], mode: str, task: Task) -> None:
    """Compares the named splits, which came from sources of their own, with the training rows."""
    held_out = [(name, table) for name, table in splits.items() if name in names]
    if mode == "off" or not held_out:
        return
    trained: dict[bytes, int] = {}
    train_digests = input_digests(splits.train, task)
    for row, digest in enumerate(train_digests):
        trained.setdefault(digest, row)
    leaked: set[bytes] = set()
    found: list[str] = []
    for name, table in held_out:
        digests = input_digests(table, task)
        rows = [row for row, digest in enumerate(digests) if digest in trained]
        if rows:
            leaked.update(digests[row] for row in rows)
            example = f"{table.place(rows[0])} = {splits.train.place(trained[digests[rows[0]]])}"
            found.append(f"{len(rows)} of {len(table)} {name} rows are also training rows (e.g. {example})")
    if mode == "error" and found:
        hint = "Remove them, or let `data.leaks: drop` leave them out of training."
        raise DataError([Problem(message=message, key="data.leaks", hint=hint) for message in found])
    splits.notes += found
    if mode == "drop" and found:
        _drop(splits, train_digests, leaked)


def _drop(splits: Splits, digests: list[bytes], leaked: set[bytes]) -> None:
    kept = np.array([row for row, digest in enumerate(digests) if digest not in leaked], dtype=np.int64)
    if not len(kept):
        raise DataError(
            Problem(message="every training row is also an evaluation row; dropping them leaves none", key="data.leaks")
        )
    splits.notes.append(f"{len(digests) - len(kept)} of {len(digests)} training rows were left out because of that")
    splits.train = splits.train.select(kept)
