"""Command line overrides (`train.epochs=1`) and references (`${train.seed}`) in recipe values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ftkit.errors import Problem, RecipeError
from ftkit.recipe.reading import MAX_BYTES, MAX_DEPTH, MAX_NODES, Document, KeyPath, dotted, read_value

SHORTHANDS = {"model": "name", "task": "name", "method": "name", "train": "path", "validation": "path", "test": "path"}
"""The key that a scalar under this name stands for, so that `method: lora` can be extended by `method.rank=4`."""

MOST_PROBLEMS = 20

_REFERENCE = re.compile(r"\$\$\{|\$\{([^${}]*)\}")


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Sets `key.path=value` (a YAML scalar, list or mapping) or removes `~key.path`, in the order given.

    List items are addressed by number: `data.train.0.path=...`. Raises RecipeError for all malformed ones at once.
    """
    if document.value is None and overrides:
        document.value = {}
    problems = []
    for text in overrides:
        try:
            _apply_one(document, text)
        except RecipeError as error:
            problems.extend(error.problems)
    if problems:
        raise RecipeError(problems)


def _apply_one(document: Document, text: str) -> None:
    place = f"command line: {text}"
    removing = text.startswith("~")
    key, equals, value = text.removeprefix("~").partition("=")
    path = _parse_path(key)
    if not path or removing == bool(equals):
        hint = "Write key.path=value to set a key, ~key.path to remove one"
        raise RecipeError(Problem(message="not an override", place=place, hint=hint))
    holder = _holder(document, path, place)
    last = path[-1]
    if removing:
        if isinstance(holder, dict) and last in holder:
            del holder[last]
            return
        raise RecipeError(Problem(message="there is no such key to remove", place=place, key=dotted(path)))
    parsed = read_value(value, place)
    if isinstance(holder, list):
        if not isinstance(last, int) or not 0 <= last < len(holder):
            raise RecipeError(Problem(message=f"the list has {len(holder)} items, counted from 0", place=place, key=dotted(path)))
        holder[last] = parsed
    else:
        holder[str(last)] = parsed
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
    document.places[path] = place


def _parse_path(key: str) -> KeyPath:
    parts = [part for part in re.split(r"\.|\[([0-9]+)\]", key.strip()) if part]
    if len(parts) > MAX_DEPTH or not re.fullmatch(r"[A-Za-z_][\w-]*(?:\.[\w-]+|\[[0-9]{1,9}\])*", key.strip()):
        return ()
    return tuple(int(part) if re.fullmatch(r"[0-9]{1,9}", part) else part for part in parts)


def _holder(document: Document, path: KeyPath, place: str) -> Any:
    """The mapping or list that holds the last part of `path`, made where it is missing."""
    holder, named = document.value, ""
    for depth, part in enumerate(path[:-1]):
        if isinstance(holder, list):
            if not isinstance(part, int) or not 0 <= part < len(holder):
                raise RecipeError(
                    Problem(message=f"the list has {len(holder)} items, counted from 0", place=place, key=dotted(path))
                )
        elif not isinstance(holder, dict):
            raise RecipeError(Problem(message="is a single value and holds no keys", place=place, key=dotted(path[:depth])))
        elif holder.get(str(part)) is None:
            holder[str(part)] = {}
        if not isinstance(holder, list):
            part = named = str(part)
        if isinstance(holder[part], str) and (name := SHORTHANDS.get(named)):
            holder[part] = {name: holder[part]}
        holder = holder[part]
    if not isinstance(holder, (dict, list)):
        raise RecipeError(Problem(message="is a single value and holds no keys", place=place, key=dotted(path[:-1])))
    return holder


def resolve_references(document: Document) -> None:
    """Replaces `${key.path}` by the value at that path; `$${` stands for a literal `${`.

    A value that is one reference keeps the type of what it refers to; inside a longer text the value is written out.
    Raises RecipeError for unknown paths, references to a mapping or list inside text, and circles.
    """
    resolver = _Resolver(document)
    document.value = resolver.walk(document.value, ())
    if resolver.problems:
        raise RecipeError(resolver.problems)


class _Resolver:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self._visited = self._written = 0

    def walk(self, value: Any, path: KeyPath, trail: tuple[str, ...] = ()) -> Any:
        self._visited += 1
        if self._visited > MAX_NODES or self._written > MAX_BYTES:
            raise RecipeError(Problem(message="references make the recipe grow without measure", place=self.document.place(path)))
        if isinstance(value, dict):
            return {key: self.walk(item, (*path, key), trail) for key, item in value.items()}
        if isinstance(value, list):
            return [self.walk(item, (*path, index), trail) for index, item in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            return self._text(value, path, trail)
        return value

    def _text(self, text: str, path: KeyPath, trail: tuple[str, ...]) -> Any:
        whole = _REFERENCE.fullmatch(text)
        if whole and whole.group(1) is not None:
            return self._look_up(whole.group(1), path, trail)

        def written(match: re.Match[str]) -> str:
            if match.group(1) is None:
                return "${"
            value = self._look_up(match.group(1), path, trail)
            if isinstance(value, (dict, list)):
                self._complain(
                    path,
                    f"${{{match.group(1)}}} is a {'mapping' if isinstance(value, dict) else 'list'} and cannot stand inside text",
                )
            return str(value)

        found = _REFERENCE.sub(written, text)
        self._written += len(found)
        return found

    def _look_up(self, reference: str, path: KeyPath, trail: tuple[str, ...]) -> Any:
        target = _parse_path(reference)
        if reference in trail or len(trail) > 20:
            self._complain(path, f"${{{reference}}} refers to itself through {' -> '.join([*trail, reference])}")
            return None
        value = self.document.value
        for part in target:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                value, target = None, ()
                break
        if not target:
            self._complain(
                path,
                f"${{{reference}}} refers to no key of this recipe",
                "References name other keys, as in ${train.batch_size}; $${ is a literal ${",
            )
            return None
        return self.walk(value, path, (*trail, reference))

    def _complain(self, path: KeyPath, message: str, hint: str = "") -> None:
        self.problems.append(Problem(message=message, place=self.document.place(path), key=dotted(path), hint=hint))
        if len(self.problems) >= MOST_PROBLEMS:
            raise RecipeError(self.problems)
