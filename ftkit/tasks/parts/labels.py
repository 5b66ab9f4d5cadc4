"""What a row's label means: one name, several names, or a number."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ftkit.errors import DataError, Problem
from ftkit.tasks.base import Row, RowError

Target = list[str] | float
"""The label names of a row, or its number."""

_INDICATORS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}

_MANY_NUMBERS = 50
"""More labels than this that are numbers with fractions are taken for the targets of a regression."""


class Labels:
    """Reads labels and knows their ids.

    problem_type: `single_label`, `multi_label` or `regression`.
    given: all names in the order of their ids, where the user gave them; else `learn` finds them.
    separator: what separates names written as one text.
    """

    def __init__(self, problem_type: str, given: Sequence[str] | None = None, separator: str | None = None) -> None:
        self.problem_type, self.given, self.separator = problem_type, list(given or []), separator
        self.names: list[str] = []
        self._ids: dict[str, int] = {}
        self.fix(self.given)

    def fix(self, names: Sequence[str]) -> None:
        """Freezes the names; their places are their ids."""
        self.names = list(names)
        self._ids = {name: index for index, name in enumerate(self.names)}

    def read(self, row: Row) -> Target:
        """The row's target. Raises RowError if it is missing or not what `problem_type` says."""
        value = row.get("label")
        if value is None:
            raise RowError("label", "the label is missing", "Fill it in, or remove the row")
        if self.problem_type == "regression":
            return read_number(value)
        return self._read_several(value) if self.problem_type == "multi_label" else [read_name(value)]

    def _read_several(self, value: Any) -> list[str]:
        if isinstance(value, str) and self.separator:
            value = [part.strip() for part in value.split(self.separator) if part.strip()]
        if not isinstance(value, (list, tuple)):
            wanted = "Give a list of names, or map `label` to a list of 0/1 columns"
            hint = "Set task.label_separator to split one text into labels" if isinstance(value, str) else wanted
            raise RowError("label", f"label {shown(value)} is not a list of labels", hint)
        flags = self._flags(value)
        if flags is not None:
            return [name for name, flag in zip(self.given, flags, strict=True) if flag]
        names = [_name_among(value, number) for number in range(len(value))]
        if repeated := duplicates(names):
            raise RowError(
                "label", f"label {listed(repeated)} occurs twice in {shown(value)}", "Give 0/1 columns names in task.labels"
            )
        return names

    def _flags(self, value: Sequence[Any]) -> list[bool] | None:
        """The list as a 0/1 for each given name, None if it is not that. Names `0` and `1` would make it ambiguous."""
        if not self.given or len(value) != len(self.given) or {"0", "1"} & set(self.given):
            return None
        flags = [_INDICATORS.get(str(item).strip().lower()) for item in value]
        for name, item, flag in zip(self.given, value, flags, strict=True):
            if flag is None and item not in self.given and set(flags) != {None}:
                raise RowError(
                    "label", f"{name!r} is {shown(item)} in {shown(value)}, expected 0 or 1", "Correct or remove the row"
                )
        return [flag for flag in flags if flag is not None] if None not in flags else None

    def check_known(self, target: Target) -> None:
        """Raises RowError for a name that has no id."""
        for name in target if isinstance(target, list) else ():
            if name in self._ids:
                continue
            if self.given:
                raise RowError("label", f"label {name!r} is not in task.labels: {listed(self.names)}", "Add it, or correct the row")
            message = f"label {name!r} does not occur in the training rows, which have {listed(self.names)}"
            raise RowError("label", message, "Correct the row, or name all labels in task.labels")

    def encode(self, row: Row) -> int | float | list[float]:
        """The target as tensors hold it: an id, a number, or 0.0/1.0 for each name. Raises RowError."""
        target = self.read(row)
        if isinstance(target, float):
            return target
        self.check_known(target)
        if self.problem_type == "single_label":
            return self._ids[target[0]]
        present = {self._ids[name] for name in target}
        return [float(index in present) for index in range(len(self.names))]

    def learn(self, counts: Mapping[str, int]) -> None:
        """Freezes the names from those of the training rows (name: how often).

        Raises DataError if there are too few, or if they look like the numbers of a regression.
        """
        needed = 2 if self.problem_type == "single_label" else 1
        if len(counts) < needed:
            only = f"only the label {next(iter(counts))!r}" if counts else "no label"
            hint = f"{self.problem_type} needs at least {needed}; is `label` mapped to the right column under data.columns?"
            raise DataError(Problem(message=f"the training rows have {only}", key="label", hint=hint))
        if len(counts) > _MANY_NUMBERS and not self.given and all(map(_is_number, counts)) and not all(map(_is_whole, counts)):
            message = f"the training rows have {len(counts)} labels and all are numbers, such as {min(counts)}"
            hint = "Set task.problem_type to regression; if they are classes, name them in task.labels"
            raise DataError(Problem(message=message, key="label", hint=hint))
        self.fix(self.given or sorted(counts, key=name_order(counts)))


def name_order(names: Collection[str]) -> Callable[[str], Any]:
    """Sort key of label names: as numbers if all are whole numbers, else as text."""
    return (lambda name: (int(name), name)) if all(map(_is_whole, names)) else str


def read_name(value: Any) -> str:
    """The name of a label given as text, whole number or boolean. Raises RowError."""
    if isinstance(value, float) and math.isnan(value):
        raise RowError("label", "the label is NaN, not a label", "Fill it in, or remove the row")
    if isinstance(value, float):
        hint = "Set task.problem_type to regression; if it is a class, write it as text or a whole number"
        raise RowError("label", f"label {value!r} is a number with a point", hint)
    if not isinstance(value, (str, int)):
        hint = "Set task.problem_type to multi_label" if isinstance(value, (list, tuple)) else "Write it as text"
        raise RowError("label", f"label {shown(value)} is not text, a whole number or true/false", hint)
    if not str(value).strip():
        raise RowError("label", "the label is empty", "Fill it in, or remove the row")
    return str(value)


def read_number(value: Any) -> float:
    """A finite number, given as such or as text. Raises RowError."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool) and _is_number(value):
        return float(value)
    raise RowError("label", f"label {shown(value)} is not a finite number", _number_hint(value))


def _number_hint(value: Any) -> str:
    if isinstance(value, str) and not value.strip():
        return "Fill it in, or remove the row"
    if isinstance(value, str) and any(character.isdigit() for character in value):
        return "Write it with a point and nothing else, such as 2.5"
    if isinstance(value, (str, bool)) and value != "nan":
        return "Set task.problem_type to single_label if labels are names"
    return "Correct or remove the row"


def _name_among(values: Sequence[Any], number: int) -> str:
    """The name of one of a row's labels. Raises RowError."""
    item = values[number]
    if isinstance(item, (str, int)) and str(item).strip():
        return str(item)
    message = f"label {number + 1} of {shown(values)} is not text, a whole number or true/false"
    raise RowError("label", f"{message}, or is empty" if item == "" else message, "Correct or remove the row")


def _is_number(value: str | float) -> bool:
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d+", text) is not None


def duplicates(names: Sequence[str]) -> list[str]:
    """Names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def shown(value: Any) -> str:
    """A value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Sequence[str]) -> str:
    """Names for a message, 20 at most."""
    text = ", ".join(repr(name) for name in names[:20])
    return f"{text} and {len(names) - 20} more" if len(names) > 20 else text
