"""What the columns of a task's rows are for, and the text in their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ftkit.data.splits import IDENTIFIERS, file_columns
from ftkit.data.table import Table
from ftkit.tasks.base import Task

LABEL_NAMES = ("label", "labels")


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Columns of a table by what they are for.

    inputs: what the model is given; targets: what it is to answer; files: those whose values are contents of files.
    text_targets: targets that are texts, not labels or tags. label: the column of label names, None if there is none.
    """

    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    files: frozenset[str]
    text_targets: tuple[str, ...]
    label: str | None

    @property
    def texts(self) -> tuple[str, ...]:
        """Inputs that may hold text."""
        return tuple(name for name in self.inputs if name not in self.files)


def roles_of(task: Task, table: Table) -> Roles:
    """The roles of the columns that a table has. Identifiers have none; where all columns are targets, they are inputs too."""
    declared = task.columns()
    present = [name for name in table.column_names if name not in IDENTIFIERS]
    targets = tuple(name for name in present if declared[name].target)
    inputs = tuple(name for name in present if name not in targets) or tuple(present)
    files = file_columns(task) & set(present)
    labels = {task.stratify_column(), *LABEL_NAMES, *(targets if has_closed_answers(task) else ())}
    text_targets = tuple(name for name in targets if name not in files and name not in labels)
    return Roles(inputs=inputs, targets=targets, files=files, text_targets=text_targets, label=_label_column(task, targets))


def has_closed_answers(task: Task) -> bool:
    """Whether a task that has learned answers out of a fixed set of labels or tags."""
    return bool(task.state().get("labels"))


def _label_column(task: Task, targets: tuple[str, ...]) -> str | None:
    if getattr(task.options, "problem_type", "") == "regression":
        return None
    wanted = (task.stratify_column(), *LABEL_NAMES)
    return next((name for name in wanted if name in targets), None)


def text_of(value: Any) -> str:
    """The text in a value: that of lists and objects joined by spaces; of a chat message only its content; '' where there is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(filter(None, map(text_of, value)))
    if isinstance(value, dict):
        return text_of(value["content"] if "content" in value else list(value.values()))
    return ""
