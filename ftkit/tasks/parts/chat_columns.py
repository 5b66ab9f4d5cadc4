"""Which layout of conversations the columns of given data are, for `ftkit init`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ftkit.errors import DataError, Problem
from ftkit.tasks.base import Task
from ftkit.tasks.parts.chat import Layout
from ftkit.tasks.parts.profiles import CERTAIN, LIKELY, Profile, Recognized, by_names, plain_name

_KINDS: dict[Layout, dict[str, tuple[str, ...]]] = {
    "messages": {"messages": ("records",)},
    "sharegpt": {"conversations": ("records",)},
    "alpaca": {"instruction": ("text",), "output": ("text",)},
    "prompt_completion": {"prompt": ("text",), "completion": ("text",)},
}
_TURN_KEYS = {"messages": {"role", "content"}, "sharegpt": {"from", "value"}}
_OWN_NAMES = {"messages", "conversations", "instruction", "prompt", "completion"}
"""Columns by these names are conversations; `question` or `input` may be another task's."""


def recognize_chat(data: Mapping[str, Profile], task_of: Callable[[Layout], Task]) -> Recognized | None:
    """The layout that the columns have. Raises DataError for preference data: pairs of a chosen and a rejected answer."""
    names = {plain_name(name) for name in data}
    if {"chosen", "rejected"} <= names:
        message = "has the columns chosen and rejected: preference data, which no task of ftkit learns from (DPO, reward models)"
        hint = "For fine-tuning on the preferred answers alone, write rows of prompt and completion with `chosen` as the completion"
        raise DataError(Problem(message=message, hint=hint))
    if not names & _OWN_NAMES and not {"question", "query", "problem"} & names:
        return None
    for layout, kinds in _KINDS.items():
        found = by_names(task_of(layout), data, kinds, strength=CERTAIN)
        if found is None or not _TURN_KEYS.get(layout, set()) <= _keys(data, found):
            continue
        sure = {plain_name(found.columns[name]) for name in kinds} & _OWN_NAMES
        # Rows show their layout only by the task's own names.
        options: dict[str, Any] = {} if all(found.columns[name] == name for name in kinds) else {"layout": layout}
        return Recognized(strength=CERTAIN if sure else LIKELY, reason=found.reason, columns=found.columns, options=options)
    return None


def _keys(data: Mapping[str, Profile], found: Recognized) -> set[str]:
    return {key for name in found.columns.values() for key in data[name].keys}
