"""What the compatibility matrix needs to know of a task; found by file, one for each task."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """Tiny data for a task, and where the task makes sense.

    architectures: names out of `ARCHITECTURES`; on all others every method must be refused.
    row: the row of a number, 0 and up; texts are words of `tests.tiny.WORDS`.
    options: of the task, beside its name. files: what rows name, by file name.
    """

    architectures: tuple[str, ...]
    row: Callable[[int], Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


def case_of(task: str) -> Case:
    """The case of a task. Raises LookupError, with what to write, if there is none."""
    name = task.replace("-", "_")
    module = f"tests.matrix.tasks.{name}"
    if find_spec(module) is None:
        raise LookupError(
            f"the task {task!r} has no case for the compatibility matrix: write tests/matrix/tasks/{name}.py with "
            "`CASE = Case(...)` (see tests/matrix/case.py), then run scripts/make_matrix.py"
        )
    found: Case = importlib.import_module(module).CASE
    return found
