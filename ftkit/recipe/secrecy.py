"""Refuses recipes that hold secrets: a recipe is copied into run folders, reports and repositories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ftkit.errors import Problem
from ftkit.recipe.reading import Document, KeyPath, dotted
from ftkit.secrets import redacted

LONGEST_SHOWN = 120
_HINT = (
    "Take it out and give out a new one. Tokens of the hub and of trackers belong into the environment (HF_TOKEN, WANDB_API_KEY); "
    "data behind a login are downloaded first"
)


def secret_values(document: Document) -> Iterator[Problem]:
    """A problem for each key or value of a recipe that holds credentials or a token. The secret itself is left out of it."""
    for path, text in _texts(document.value, ()):
        if (found := redacted(text)) != text:
            shown = found if len(found) <= LONGEST_SHOWN else f"{found[: LONGEST_SHOWN - 3]}..."
            place = document.place(path)
            yield Problem(message=f"holds a password or a token: {shown!r}", place=place, key=dotted(path), hint=_HINT)


def _texts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield path, str(key)
            yield from _texts(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*path, index))
    elif isinstance(value, str):
        yield path, value
