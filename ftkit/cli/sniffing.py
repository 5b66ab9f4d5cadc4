"""Guesses options of a task from sampled rows: what the labels are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftkit.tasks.parts.profiles import LONGEST_LABEL, Profile, profile

if TYPE_CHECKING:
    from ftkit.tasks.base import Task

SAMPLE_ROWS = 2000
SEPARATORS = ("|", ";", ",")
SHARE_SEPARATED = 0.1
"""Of the labels: fewer with a separator in them are taken for names that happen to have one."""


def indicator_columns(task: Task, columns: Mapping[str, str], profiles: Mapping[str, Profile]) -> list[str]:
    """Columns of 0 and 1, one for each label, where the task reads `label` and the data has several of these and no other labels."""
    taken = {source for name, source in columns.items() if name != "label"}
    found = [entry.name for entry in profiles.values() if entry.binary and entry.name not in taken]
    unsure = columns.get("label") is None or profiles[columns["label"]].binary
    return found if "label" in task.columns() and unsure and len(found) > 1 else []


def fitting_options(task: type[Task], columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Options under which the task accepts these rows, where it has a `problem_type` whose default does not fit; else {}."""
    problem_types = _choices(task, "problem_type")
    mapped = [{name: row.get(source) for name, source in columns.items()} for row in rows]
    labels = [row["label"] for row in mapped if row.get("label") is not None] if "label" in columns else []
    if "regression" in problem_types and labels and profile("label", labels).numeric and profile("label", labels).fractional:
        return {"problem_type": "regression"}
    if "multi_label" in problem_types and (separator := _separator(labels)):
        return {"problem_type": "multi_label", "label_separator": separator}
    for number, choice in enumerate(problem_types):
        if _accepts(task(task.Options.model_validate({"problem_type": choice})), mapped):
            return {"problem_type": choice} if number else {}
    return {}


def _separator(labels: Sequence[Any]) -> str:
    """What separates several labels written as one text, '' if they are single labels: the parts recur more than the texts do."""
    texts = [label for label in labels if isinstance(label, str)]
    for separator in SEPARATORS:
        if sum(separator in text for text in texts) < SHARE_SEPARATED * max(1, len(labels)):
            continue
        parts = {part.strip() for text in texts for part in text.split(separator)}
        whole = set(texts)
        if "" not in parts and len(parts) < len(whole) and max(map(len, parts)) <= LONGEST_LABEL:
            return separator
    return ""


def _choices(task: type[Task], option: str) -> list[str]:
    """The values of an option that has a few, its default first."""
    form = task.Options.model_json_schema().get("properties", {}).get(option, {})
    default = form.get("default")
    return sorted(form.get("enum", []), key=lambda choice: choice != default)


def _accepts(task: Task, rows: Sequence[Mapping[str, Any]]) -> bool:
    from ftkit.tasks.base import RowError

    try:
        for row in rows:
            task.check_row(row)
    except RowError:
        return False
    return True
