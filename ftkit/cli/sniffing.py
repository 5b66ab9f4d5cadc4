"""Guesses which column of a data file is which column of a task: by name, else by what the values look like."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.cli.output import one_line

if TYPE_CHECKING:
    from ftkit.tasks.base import Column, Task

SAMPLE_ROWS = 2000
MOST_LABELS = 100
LONGEST_LABEL = 60
SEPARATORS = ("|", ";", ",")
SHARE_SEPARATED = 0.1
"""Of the labels: fewer with a separator in them are taken for names that happen to have one."""
SHORTEST_TEXT = 12
"""Mean characters: labels are shorter than one, texts longer than the other."""


@dataclass(frozen=True)
class Profile:
    """What the values of a data column look like.

    distinct: number of different values; mean_length: characters of texts, 0.0 where no value is text; fractional: whether there
    are numbers that are not whole; numeric: whether all values are numbers or texts of numbers; binary: whether all are 0 or 1;
    common: the most frequent values.
    """

    name: str
    rows: int
    distinct: int
    mean_length: float
    fractional: bool
    common: tuple[Any, ...]
    numeric: bool = False
    binary: bool = False

    @property
    def like_text(self) -> bool:
        """Long texts, most of them different."""
        return self.mean_length >= SHORTEST_TEXT and self.distinct > self.rows / 2

    @property
    def like_label(self) -> bool:
        """A few short values that repeat."""
        few = 2 <= self.distinct <= max(2, min(MOST_LABELS, self.rows // 2))
        return few and not self.fractional and self.mean_length <= LONGEST_LABEL

    def describe(self) -> str:
        """A line for a comment in the recipe."""
        if self.like_label:
            shown = ", ".join(one_line(value, 24) for value in self.common[:8])
            more = ", ..." if self.distinct > len(self.common[:8]) else ""
            return f"{self.distinct} different values: {shown}{more}"
        if self.mean_length:
            return f"texts of {self.mean_length:.0f} characters on average"
        return f"{'numbers' if self.fractional else 'values'}, {self.distinct} different"


def profile(name: str, values: Sequence[Any]) -> Profile:
    """The profile of a column from a sample of its values."""
    present = [value for value in values if value is not None]
    texts = [value for value in present if isinstance(value, str)]
    counts = Counter(_hashable(value) for value in present)
    numbers = [_number(value) for value in present]
    return Profile(
        name=name,
        rows=len(present),
        distinct=len(counts),
        mean_length=sum(map(len, texts)) / len(texts) if texts else 0.0,
        fractional=any(number is not None and not number.is_integer() for number in numbers),
        common=tuple(value for value, _ in counts.most_common(8)),
        numeric=bool(present) and None not in numbers,
        binary=bool(present) and set(numbers) <= {0.0, 1.0},
    )


def _number(value: Any) -> float | None:
    """The finite number that a value is or spells, if it is one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _hashable(value: Any) -> Any:
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value) if isinstance(value, dict) else value


def guess_columns(task: Task, profiles: Mapping[str, Profile]) -> tuple[dict[str, str], list[str]]:
    """({task column: data column}, the required task columns for which nothing fits)."""
    declared = task.columns()
    found: dict[str, str] = {}
    for name, column in declared.items():
        if (named := _by_name(name, column, profiles, set(found.values()))) is not None:
            found[name] = named
    for name, column in sorted(declared.items(), key=lambda item: not item[1].target):
        if column.required and name not in found and (like := _by_content(column, profiles, set(found.values()))) is not None:
            found[name] = like
    lacking = [name for name, column in declared.items() if column.required and name not in found]
    return {name: found[name] for name in declared if name in found}, lacking


def _by_name(name: str, column: Column, profiles: Mapping[str, Profile], taken: set[str]) -> str | None:
    plain = {known.lower().replace(" ", "_").replace("-", "_"): known for known in reversed(list(profiles)) if known not in taken}
    return next((plain[usual] for usual in (name, *column.names) if usual in plain), None)


def _by_content(column: Column, profiles: Mapping[str, Profile], taken: set[str]) -> str | None:
    free = [entry for entry in profiles.values() if entry.name not in taken]
    if column.target:
        labels = sorted((entry for entry in free if entry.like_label), key=lambda entry: entry.distinct)
        numbers = [entry for entry in free if entry.fractional]
        return next((entry.name for entry in [*labels, *numbers]), None)
    texts = sorted(
        (entry for entry in free if entry.mean_length and not entry.numeric), key=lambda entry: (entry.like_text, entry.mean_length)
    )
    return texts[-1].name if texts else None


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
