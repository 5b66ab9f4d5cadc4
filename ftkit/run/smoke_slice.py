"""What a smoke test makes of a recipe: the same, but four steps of few rows, so that its whole life fits into a minute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ftkit.data.canonical import canonical
from ftkit.data.splits import Splits
from ftkit.data.table import Table
from ftkit.recipe.plan import Plan, recipe_values
from ftkit.recipe.schema import Component, Every, Recipe
from ftkit.tasks.base import Task

STEPS, CHECKPOINT = 4, 2
"""Optimizer steps of each phase, and of which there is a checkpoint that the run is resumed from."""

MOST_IN_A_BATCH, MOST_BATCHES = 4, 2
"""Rows of a forward pass, and passes of a step: padding and accumulation are at work with these."""

EVALUATED = 8
"""Rows of a validation or test split."""

LONGEST_EVALUATED = 2**16
"""Bytes of text in them all, for rows that are whole books."""

MOST_TOKENS_WRITTEN = 16
"""Generation of text costs more than all else."""

MOST_LABELS = 1000
"""A target with more values is a text, not a label."""


def smaller_plan(plan: Plan) -> Plan:
    """The plan, all phases included, as the smoke test trains it. plan: complete, nothing left at `auto`."""
    return replace(plan, recipe=_smaller(plan.recipe), earlier=tuple(smaller_plan(phase) for phase in plan.earlier))


def _smaller(recipe: Recipe) -> Recipe:
    every = Every(steps=CHECKPOINT)
    train: dict[str, Any] = {
        "max_steps": STEPS,
        "batch_size": min(recipe.train.batch_size, MOST_IN_A_BATCH),
        "eval_batch_size": min(int(recipe.train.eval_batch_size), EVALUATED),
        "gradient_accumulation_steps": min(recipe.train.gradient_accumulation_steps, MOST_BATCHES),
        "evaluate_every": every,
        "checkpoint_every": every,
        "early_stopping": None,
        "num_processes": None,
        "sharding": "none",
    }
    if recipe.train.gradual_unfreezing is not None:
        # So that blocks thaw within the few steps, too.
        sooner = recipe.train.gradual_unfreezing.model_copy(update={"every": Every(steps=1)})
        train["gradual_unfreezing"] = sooner
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update=train),
            "data": recipe.data.model_copy(update={"cache": False, "num_workers": 1}),
            "task": _writing_less(recipe.task),
            "expect": {},
            "trackers": [],
        }
    )


def _writing_less(task: Component) -> Component:
    generation: Any = getattr(task.options, "generation", None)
    if generation is None:
        return task
    limit = max(MOST_TOKENS_WRITTEN, generation.min_new_tokens or 0)
    if generation.max_new_tokens != "auto":
        limit = min(limit, generation.max_new_tokens)
    shorter = generation.model_copy(update={"max_new_tokens": limit})
    return task.model_copy(update={"options": task.options.model_copy(update={"generation": shorter})})


def changes(plan: Plan, smaller: Plan) -> dict[str, dict[str, Any]]:
    """Both values of each key that the smoke test has otherwise, by dotted key: `recipe` and `smoke`. Of phases, those of the last."""
    before, after = (dict(_flat(recipe_values(part.recipe), "")) for part in (plan, smaller))
    keys = dict.fromkeys([*before, *after])
    return {key: {"recipe": before.get(key), "smoke": after.get(key)} for key in keys if before.get(key) != after.get(key)}


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def slice_of(splits: Splits, task: Task, *, plan: Plan) -> Splits:
    """Few rows of each split: of training what the steps of `plan`, a smaller one, take. Depends on nothing but the rows.

    The task has learned from all rows, so that its labels are those of a run; as many of them as possible are among the few.
    """
    train = plan.recipe.train
    few = partial(_few, task=task)
    return Splits(
        train=few(splits.train, STEPS * train.batch_size * train.gradient_accumulation_steps),
        validation=None if splits.validation is None else _short(few(splits.validation, EVALUATED)),
        test=None if splits.test is None else _short(few(splits.test, EVALUATED)),
        notes=splits.notes,
    )


def _few(table: Table, count: int, task: Task) -> Table:
    """At most `count` rows: first those that bring a label not seen before, then some from all over the table."""
    if len(table) <= count:
        return table
    chosen = dict.fromkeys(_first_of_each(table, task)[:count])
    rest = count - len(chosen)
    others = np.setdiff1d(np.arange(len(table)), np.fromiter(chosen, dtype=np.int64))
    spread = others[np.linspace(0, len(others) - 1, num=rest).astype(np.int64)]
    return table.select(np.sort(np.concatenate([np.fromiter(chosen, dtype=np.int64), spread])))


def _first_of_each(table: Table, task: Task) -> list[int]:
    """The first row with each label (of several, each tag ...) and from each source, in the order of the rows."""
    columns = task.columns()
    names = [name for name in table.column_names if columns[name].target or name == task.source_column]
    found: dict[int, None] = {}
    for name in names:
        found |= dict.fromkeys(_first_rows(table.values(name)))
    return sorted(found)


def _first_rows(values: Iterator[Any]) -> list[int]:
    known: set[bytes] = set()
    rows = []
    for row, value in enumerate(values):
        fresh = {canonical(part) for part in (value if isinstance(value, list) else [value])} - known
        if fresh:
            rows.append(row)
            known |= fresh
        if len(known) > MOST_LABELS:
            return []
    return rows


def _short(table: Table) -> Table:
    """The first rows, one at least, that hold no more text than there is time for."""
    sizes = np.cumsum(table.text_bytes(0, len(table)))
    return table.select(np.arange(max(1, int(np.searchsorted(sizes, LONGEST_EVALUATED, side="right")))))
