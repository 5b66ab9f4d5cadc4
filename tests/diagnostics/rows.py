"""Rows without a defect, to plant defects in."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ftkit.data.splits import Splits, table_from_rows
from ftkit.data.table import Table
from ftkit.recipe.schema import TrainSpec
from ftkit.registry import TASKS
from ftkit.tasks.base import Task

Row = dict[str, Any]

TOPICS = {"cold": range(100), "warm": range(100, 200), "wet": range(200, 300)}


def clean_rows(count: int, seed: int = 0) -> list[Row]:
    """Texts of 8 to 20 words, half of which tell the label."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = list(TOPICS)[number % len(TOPICS)]
        size = draw.randrange(4, 11)
        words = [f"w{draw.choice(TOPICS[label])}" for _ in range(size)] + [f"w{draw.randrange(300, 900)}" for _ in range(size)]
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "label": label})
    return rows


def table(rows: list[Row], name: str = "train.jsonl") -> Table:
    return table_from_rows(rows, name)


def clean_splits() -> dict[str, list[Row]]:
    """Rows of three splits, 300 and twice 150."""
    rows = clean_rows(600)
    return {"train": rows[:300], "validation": rows[300:450], "test": rows[450:]}


def splits_of(rows: dict[str, list[Row]]) -> Splits:
    return Splits(**{name: table(found, f"{name}.jsonl") for name, found in rows.items()})


def make_task(name: str = "text-classification", **options: Any) -> Task:
    cls = TASKS.get(name)
    return cls(cls.Options(**options))


Find = Callable[..., Any]


def train_spec(**keys: Any) -> TrainSpec:
    return TrainSpec.model_validate(keys)
