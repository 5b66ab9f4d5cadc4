"""What the columns of given data look like, and which column of a task each may be: what `ftkit init` goes by."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftkit.tasks.base import Column, Task

MOST_LABELS = 100
LONGEST_LABEL = 60
SHORTEST_TEXT = 12
"""Mean characters: labels are shorter than one, texts longer than the other."""
SHOWN_LABELS = 8

CERTAIN, LIKELY, POSSIBLE = 3, 2, 1
"""How much speaks for a task: names and kinds of values that no other task has, the usual names, what the values look like."""

_IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """What speaks for a task in given data.

    strength: CERTAIN, LIKELY or POSSIBLE. reason: the columns that say so, as a phrase: `question and context`.
    columns: {task column: data column}, of which required ones may be lacking. options: of the task, where the default does not fit.
    """

    strength: int
    reason: str
    columns: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """What the values of a data column look like.

    distinct: number of different values; mean_length: characters of texts, 0.0 where no value is text; fractional: whether there
    are numbers that are not whole; numeric: whether all values are numbers or texts of numbers; binary: whether all are 0 or 1;
    common: the most frequent values. kind: of all values: `text`, `image` (a file, or its path), `list`, `records` (a list of
    mappings), `mapping`, else `other`; keys: that all mappings have, in order; items: mean number of a list's elements; labels: the
    different elements of lists, most frequent first.
    """

    name: str
    rows: int
    distinct: int
    mean_length: float
    fractional: bool
    common: tuple[Any, ...]
    numeric: bool = False
    binary: bool = False
    kind: str = "other"
    keys: tuple[str, ...] = ()
    items: float = 0.0
    labels: tuple[str, ...] = ()

    @property
    def like_text(self) -> bool:
        """Long texts, most of them different."""
        return self.mean_length >= SHORTEST_TEXT and self.distinct > self.rows / 2

    @property
    def like_label(self) -> bool:
        """A few short values that repeat."""
        few = 2 <= self.distinct <= max(2, min(MOST_LABELS, self.rows // 2))
        return few and not self.fractional and self.mean_length <= LONGEST_LABEL

    @property
    def is_text(self) -> bool:
        """Texts that are no numbers and no paths of images."""
        return self.kind == "text" and not self.numeric

    def describe(self) -> str:
        """A line for a comment in the recipe."""
        if self.kind == "list":
            return self._describe_lists()
        if self.kind == "records":
            return f"lists of {self.items:.1f} mappings on average, with {', '.join(self.keys) or 'no key in common'}"
        if self.kind == "mapping":
            return f"mappings with {', '.join(self.keys) or 'no key in common'}"
        if self.kind == "image":
            return "images"
        if self.like_label:
            return f"{self.distinct} different values: {_first(list(map(str, self.common)), self.distinct)}"
        if self.mean_length and not self.numeric:
            return f"texts of {self.mean_length:.0f} characters on average"
        return f"{'numbers' if self.numeric else 'values'}, {self.distinct} different"

    def _describe_lists(self) -> str:
        length = f"lists of {self.items:.1f} values on average"
        few = 0 < len(self.labels) <= MOST_LABELS
        return f"{length}, {len(self.labels)} different: {_first(self.labels, len(self.labels))}" if few else length


def _first(names: Sequence[str], count: int) -> str:
    shown = [name if len(name) <= 24 else f"{name[:23]}…" for name in names[:SHOWN_LABELS]]
    return ", ".join(shown) + (", ..." if count > len(shown) else "")


def profile(name: str, values: Sequence[Any]) -> Profile:
    """The profile of a column from a sample of its values."""
    present = [value for value in values if value is not None]
    texts = [value for value in present if isinstance(value, str)]
    lists = [value for value in present if isinstance(value, list)]
    counts = Counter(_hashable(value) for value in present)
    numbers = [_number(value) for value in present]
    kind = _kind(present)
    return Profile(
        name=name,
        rows=len(present),
        distinct=len(counts),
        mean_length=sum(map(len, texts)) / len(texts) if texts else 0.0,
        fractional=any(number is not None and not number.is_integer() for number in numbers),
        common=tuple(value for value, _ in counts.most_common(SHOWN_LABELS)),
        numeric=bool(present) and None not in numbers,
        binary=bool(present) and set(numbers) <= {0.0, 1.0},
        kind=kind,
        keys=_keys(present) if kind in ("mapping", "records") else (),
        items=sum(map(len, lists)) / len(lists) if lists else 0.0,
        labels=tuple(item for item, _ in Counter(str(item) for value in lists for item in value).most_common())
        if kind == "list"
        else (),
    )


def _kind(values: Sequence[Any]) -> str:
    if not values:
        return "other"
    if all(isinstance(value, Mapping) for value in values):
        return "image" if all(set(value) == {"bytes", "path"} for value in values) else "mapping"
    if all(isinstance(value, list) for value in values):
        return "records" if all(isinstance(item, Mapping) for value in values for item in value) and any(values) else "list"
    if all(isinstance(value, bytes) for value in values):
        return "image"
    if all(isinstance(value, str) for value in values):
        return "image" if all(value.lower().endswith(_IMAGE_ENDINGS) for value in values) else "text"
    return "other"


def _keys(values: Sequence[Any]) -> tuple[str, ...]:
    """Those that all mappings have, or all mappings in the lists."""
    mappings = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return tuple(str(key) for key in mappings[0] if all(key in mapping for mapping in mappings)) if mappings else ()


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


def guess_columns(
    task: Task, profiles: Mapping[str, Profile], given: Mapping[str, str] | None = None
) -> tuple[dict[str, str], list[str]]:
    """({task column: data column}, the required task columns for which nothing fits).

    given: those that are known.
    """
    declared = task.columns()
    found = {**named_columns(declared, profiles, given)}
    for name, column in sorted(declared.items(), key=lambda item: not item[1].target):
        if column.required and name not in found and (like := _by_content(column, profiles, set(found.values()))) is not None:
            found[name] = like
    lacking = [name for name, column in declared.items() if column.required and name not in found]
    return {name: found[name] for name in declared if name in found}, lacking


def named_columns(
    declared: Mapping[str, Column], profiles: Mapping[str, Profile], given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """{task column: data column} of the columns that have the task's name or one of the usual ones, whatever their case."""
    found = dict(given or {})
    for name, column in declared.items():
        if name not in found and (named := _by_name(name, column, profiles, set(found.values()))) is not None:
            found[name] = named
    return found


def plain_name(name: str) -> str:
    """A column's name as names are compared: `Source Text` is `source_text`."""
    return name.lower().replace(" ", "_").replace("-", "_")


def _by_name(name: str, column: Column, profiles: Mapping[str, Profile], taken: Collection[str]) -> str | None:
    plain = {plain_name(known): known for known in reversed(list(profiles)) if known not in taken}
    return next((plain[usual] for usual in (name, *column.names) if usual in plain), None)


def _by_content(column: Column, profiles: Mapping[str, Profile], taken: Collection[str]) -> str | None:
    free = [entry for entry in profiles.values() if entry.name not in taken]
    if column.target:
        labels = sorted((entry for entry in free if entry.like_label), key=lambda entry: entry.distinct)
        numbers = [entry for entry in free if entry.fractional]
        return next((entry.name for entry in [*labels, *numbers]), None)
    if column.file:
        return next((entry.name for entry in free if entry.kind == "image"), None)
    texts = sorted(
        (entry for entry in free if entry.mean_length and not entry.numeric), key=lambda entry: (entry.like_text, entry.mean_length)
    )
    return texts[-1].name if texts else None


def by_names(
    task: Task, profiles: Mapping[str, Profile], kinds: Mapping[str, Collection[str]], *, strength: int, **options: Any
) -> Recognized | None:
    """The task, where columns with the usual names hold values of its kinds; None otherwise.

    kinds: {task column: kinds that its values may have}. options: those that the task then needs.
    """
    declared = task.columns()
    found = named_columns(declared, profiles)
    for name, fitting in kinds.items():
        column = profiles[found[name]] if name in found else None
        if column is None or column.kind not in fitting or (column.numeric and not declared[name].target):
            return None
    columns = {name: found[name] for name in declared if name in found}
    return Recognized(strength=strength, reason=listed([columns[name] for name in kinds]), columns=columns, options=options)


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
