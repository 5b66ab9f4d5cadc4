"""JSON without leniency: keys that come twice are refused, and errors show what stands at their place and a way out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ftkit.data.problems import shorten

MAX_DEPTH = 100
"""Levels of lists and objects; Python's own limit is met at different depths by reading, changing and writing."""

_SHOWN = 20
"""Characters of the text that an error shows."""


class DuplicateKeyError(ValueError):
    """An object with a key that comes twice; the JSON module would keep the last value without a word."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key
        self.message = f"the key {shorten(key)} comes twice in one object"
        self.hint = "Keep one of the two."


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def check_depth(value: Any, text: str, start: int = 0, end: int | None = None) -> None:
    """Raises RecursionError for what is nested deeper than MAX_DEPTH. `value` was read from `text[start:end]`."""
    if text.count("[", start, end) + text.count("{", start, end) <= MAX_DEPTH:
        return
    level, depth = [value], 0
    while level := [part for item in level for part in _parts(item)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise RecursionError


def _parts(item: Any) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()


def reason(text: str, error: json.JSONDecodeError) -> str:
    """What is wrong, and the beginning of the text where it is."""
    message = error.msg.removesuffix(" at").removesuffix(" starting")
    rest = text[error.pos :].split("\n", 1)[0].rstrip("\r")
    return f"invalid JSON: {message}: {shorten(rest[:_SHOWN])}" if rest else f"invalid JSON: {message}: the text ends here"


def way_out(text: str, error: json.JSONDecodeError) -> str:
    """One way out, by what stands at the place of the error."""
    rest, before = text[error.pos :].lstrip(), text[: error.pos].rstrip()
    if error.msg.startswith("Unterminated") or not rest:
        return "Is the file whole? A line break inside a text is written \\n."
    if error.msg.startswith("Invalid control"):
        return "Tabs and line breaks inside a text are written \\t and \\n."
    if error.msg.startswith("Invalid \\"):
        return "A backslash inside a text is written twice: \\\\."
    if error.msg.startswith("Illegal trailing comma") or (rest[0] in "]}" and before.endswith(",")):
        return "Remove the comma before the bracket."
    if error.msg == "Extra data":
        return "Put what follows on a line of its own: a line holds one object."
    return _by_beginning(rest)


def _by_beginning(rest: str) -> str:
    if rest.startswith(("None", "True", "False")):
        return "JSON writes null, true and false."
    hints = {"'": "JSON writes keys and texts in double quotes.", "<": "This looks like a web page; download the file itself."}
    hints |= dict.fromkeys("/#", "JSON has no comments; remove the line.")
    return hints.get(rest[0], "Correct it, or write the file with a JSON library.")
