"""All cells of the compatibility matrix: which there are, what was found for each, which of them a quick check takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ftkit
from ftkit.registry import METHODS, TASKS
from tests.matrix.architectures import ARCHITECTURES
from tests.matrix.cell import SETTINGS, WORKS, Cell

PUBLISHED = Path(ftkit.__file__).parent.parent / "docs" / "matrix.json"

Outcomes = dict[Cell, str]
"""What `outcome` said of each cell."""

HOME = ("text-classification", "bert")
"""Where settings are tried, if the method works there; else where it works first."""


def plain_cells(methods: Iterable[str]) -> list[Cell]:
    """Every task and architecture for these methods."""
    return [Cell(task, method, name) for method in methods for task in TASKS.names() for name in ARCHITECTURES]


def setting_cells(method: str, found: Outcomes) -> list[Cell]:
    """Every setting for a method, on one cell of those found to work; none if there is none."""
    usual = Cell(HOME[0], method, HOME[1])
    working = [cell for cell in (usual, *plain_cells([method])) if found.get(cell) == WORKS]
    return [replace(cell, setting=setting) for cell in working[:1] for setting in SETTINGS]


def find(methods: Sequence[str], outcome: Callable[[Cell], str]) -> Outcomes:
    """Outcomes of all cells of these methods."""
    found: Outcomes = {}
    for method in methods:
        found |= {cell: outcome(cell) for cell in plain_cells([method])}
        found |= {cell: outcome(cell) for cell in setting_cells(method, found)}
    return found


def to_json(found: Outcomes) -> dict[str, Any]:
    """{task: {method: {architecture: outcome}}}, and under `settings` {method: {task, architecture, setting: outcome}}."""
    tables: dict[str, Any] = {task: {} for task in TASKS.names()} | {"settings": {}}
    for cell, text in sorted(found.items(), key=lambda entry: METHODS.names().index(entry[0].method)):
        if cell.setting:
            row = tables["settings"].setdefault(cell.method, {"task": cell.task, "architecture": cell.architecture})
            row[cell.setting] = text
        else:
            tables[cell.task].setdefault(cell.method, {})[cell.architecture] = text
    return tables


def from_json(tables: Mapping[str, Any]) -> Outcomes:
    """The inverse of `to_json`."""
    rows = dict(tables)
    settings = rows.pop("settings")
    found = {
        Cell(task, method, name): text
        for task, methods in rows.items()
        for method, outcomes in methods.items()
        for name, text in outcomes.items()
    }
    for method, row in settings.items():
        rest = dict(row)
        task, name = rest.pop("task"), rest.pop("architecture")
        found |= {Cell(task, method, name, setting): text for setting, text in rest.items()}
    return found


def published() -> Outcomes:
    """What docs/matrix.json says."""
    return from_json(json.loads(PUBLISHED.read_text(encoding="utf-8"))["outcomes"])


def covering(cells: Iterable[Cell]) -> list[Cell]:
    """Few of these cells that hold every pair of method and task, method and architecture, task and architecture among them.

    Of cells with a setting, as many that each method and each setting occurs. Greedy: the cell with the most pairs that are new.
    """
    open_pairs = {cell: _pairs(cell) for cell in cells}
    chosen: list[Cell] = []
    while open_pairs:
        best = max(open_pairs, key=lambda cell: len(open_pairs[cell]))
        done = open_pairs[best]
        chosen.append(best)
        open_pairs = {cell: pairs - done for cell, pairs in open_pairs.items() if pairs - done}
    return chosen


def _pairs(cell: Cell) -> frozenset[tuple[str, str]]:
    if cell.setting:
        return frozenset({("a setting", cell.method), ("a setting", cell.setting)})
    return frozenset({(cell.method, cell.task), (cell.method, cell.architecture), (cell.task, cell.architecture)})
