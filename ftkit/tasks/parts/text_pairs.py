"""Rows that hold a text to read and a text, or several references, to write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ftkit.errors import DataError, Problem
from ftkit.tasks.base import Row, RowError, Task
from ftkit.tasks.parts.labels import shown
from ftkit.tasks.parts.profiles import CERTAIN, LIKELY, Profile, Recognized, listed, named_columns, plain_name
from ftkit.tasks.parts.texts import check_text

_SUMMARIES = {"summary", "summaries", "highlights", "abstract"}
_USUAL_PAIRS = {("source", "target"), ("source_text", "target_text"), ("src", "tgt")}
_LANGUAGE = re.compile(r"[a-z]{2,3}([_-][a-z]{2,4})*")
"""Codes of languages as columns and keys have them: `en`, `en_XX`, `deu_Latn`; compared in small letters."""


def recognize_pairs(task: Task, data: Mapping[str, Profile]) -> Recognized | None:
    """A mapping of two languages, a text and its summary, texts of two languages, else a source and a target by their names."""
    for name, column in data.items():
        if column.kind == "mapping" and len(column.keys) == 2 and all(map(_is_language, column.keys)):
            options = {"goal": "translation", "translation_keys": list(column.keys)}
            columns = {"source": name, "target": name}
            return Recognized(strength=CERTAIN, reason=f"{name} of {listed(column.keys)}", columns=columns, options=options)
    columns = named_columns(task.columns(), data)
    if not {"source", "target"} <= columns.keys():
        return None
    source, target = columns["source"], columns["target"]
    if not data[source].is_text or not (data[target].is_text or data[target].kind == "list") or data[target].like_label:
        return None
    strength, options = _certainty(plain_name(source), plain_name(target))
    return Recognized(strength=strength, reason=listed([source, target]), columns=columns, options=options)


def _certainty(source: str, target: str) -> tuple[int, dict[str, Any]]:
    """By the columns' names: how sure it is, and the options that follow."""
    if target in _SUMMARIES:
        return CERTAIN, {"goal": "summarization"}
    if _is_language(source) and _is_language(target) and len(source) == len(target) == 2:
        return CERTAIN, {"goal": "translation"}
    return CERTAIN if (source, target) in _USUAL_PAIRS else LIKELY, {}


def _is_language(name: str) -> bool:
    return _LANGUAGE.fullmatch(name.lower()) is not None


class TextPairs:
    """Reads `source` and `target` of rows.

    keys: of the source and the target text where both columns hold a mapping of both (`{"en": ..., "de": ...}`).
    """

    def __init__(self, keys: Sequence[str] | None) -> None:
        self._keys = dict(zip(("source", "target"), keys, strict=True)) if keys else {}
        self._found: set[str] = set()

    def check(self, row: Row) -> None:
        """Raises RowError for an empty source, and for a target (rows to predict have none) that is neither text nor a list of texts."""
        check_text({"source": self._side(row, "source")}, "source")
        if "target" not in row:
            return
        value = self._side(row, "target")
        if not isinstance(value, (list, tuple)):
            check_text({"target": value}, "target")
            return
        if not value:
            raise RowError("target", "the list of references is empty", "Fill it in, or remove the row")
        for number, text in enumerate(value, start=1):
            if not isinstance(text, str) or not text.strip():
                raise RowError("target", f"reference {number} is {shown(text)}; expected a text", "Correct or remove the row")

    def source(self, row: Row) -> str:
        """The text to read."""
        return self._side(row, "source")

    def references(self, row: Row) -> list[str]:
        """The texts to write, at least one; none for a row to predict."""
        target = self._side(row, "target")
        return [] if target is None else [target] if isinstance(target, str) else list(target)

    def _side(self, row: Row, column: str) -> Any:
        value = row.get(column)
        if not isinstance(value, Mapping):
            return value
        if not self._keys:
            hint = f"Set task.translation_keys to the keys of source and target; this row has {', '.join(map(str, value))}"
            raise RowError(column, "the row holds a mapping, not a text", hint)
        key = self._keys[column]
        if key not in value and key not in self._found:
            # The first row at once: the option is wrong, not the rows.
            message = f"there is no {key!r} in the mappings of the data, which have {', '.join(map(str, value)) or 'no keys'}"
            hint = "Name the keys of source and target, as the data writes them: `translation_keys: [en, de]`"
            raise DataError(Problem(message=message, key="task.translation_keys", hint=hint))
        if key not in value:
            raise RowError(column, f"there is no {key!r} in {shown(dict(value))}", "Correct the row, or task.translation_keys")
        self._found.add(key)
        return value[key]
