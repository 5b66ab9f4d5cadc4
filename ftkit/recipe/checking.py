"""Checks plain values against the schema and words every mismatch for a person."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from ftkit.errors import Problem
from ftkit.recipe.reading import Document, KeyPath, dotted

M = TypeVar("M", bound=BaseModel)

ALIASES = {
    **dict.fromkeys(("lr", "peak_lr", "rate"), "learning_rate"),
    **dict.fromkeys(("bs", "batch", "per_device_train_batch_size", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_bs"), "eval_batch_size"),
    **dict.fromkeys(("wd", "decay"), "weight_decay"),
    **dict.fromkeys(("warmup", "warmup_proportion"), "warmup_ratio"),
    **dict.fromkeys(("num_epochs", "num_train_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("steps", "num_steps"), "max_steps"),
    **dict.fromkeys(("grad_accum", "accumulation", "accumulate_grad_batches"), "gradient_accumulation_steps"),
    **dict.fromkeys(("lr_scheduler", "scheduler", "lr_scheduler_type"), "schedule"),
    **dict.fromkeys(("grad_clip", "clip", "gradient_clip_val"), "max_grad_norm"),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "seq_length", "cutoff_len"), "max_length"),
    **dict.fromkeys(("r", "lora_r"), "rank"),
    **dict.fromkeys(("target_modules", "modules"), "targets"),
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
}
"""What other tools and people call keys of recipes. They are told apart, never read."""

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "none_required": "null",
    "finite_number": "a finite number",
}


def check(
    model: type[M], value: Any, document: Document, at: KeyPath, moved: dict[str, list[str]]
) -> tuple[M | None, list[Problem]]:
    """An instance of `model` made of `value`, or the problems, each with its place.

    at: path of `value` in the document. moved: where else in a recipe a key of that name belongs, for keys put in the wrong place.
    """
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        return None, list(_problems(error, model, value, document, at, moved))


def sound_part(model: type[M], value: Any) -> M | None:
    """An instance of `model` made of what is right in `value`, the rest left at its default; None if that is not enough.

    Lets rules across keys be checked, and reported, beside problems of single keys.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        wrong = {_real_path(detail["loc"], value, detail["type"]) for detail in error.errors(include_url=False)}
    kept = copy.deepcopy(value)
    for path in wrong:
        _remove(kept, path)
    try:
        return model.model_validate(kept)
    except ValidationError:
        return None


def _remove(value: Any, path: KeyPath) -> None:
    for part in path[:-1]:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return
    if path and isinstance(value, dict):
        value.pop(path[-1], None)


def _problems(
    error: ValidationError, model: type[BaseModel], value: Any, document: Document, at: KeyPath, moved: dict[str, list[str]]
) -> Iterable[Problem]:
    by_path: dict[KeyPath, list[dict[str, Any]]] = {}
    for detail in error.errors(include_url=False, include_context=True):
        by_path.setdefault(_real_path(detail["loc"], value, detail["type"]), []).append(dict(detail))
    for path, details in by_path.items():
        message, hint = _word(details, path, model, moved)
        whole = (*at, *path)
        yield Problem(message=message, place=document.place(whole), key=dotted(whole), hint=hint)


def _real_path(location: Sequence[str | int], value: Any, kind: str) -> KeyPath:
    """The path in the user's values; pydantic's has extra parts (union members, the index of a scalar made a list)."""
    path: list[str | int] = []
    for number, part in enumerate(location):
        last = number == len(location) - 1
        if isinstance(value, dict) and isinstance(part, str) and (part in value or (last and kind == "missing")):
            value = value.get(part)
            path.append(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
            path.append(part)
    return tuple(path)


def _word(details: list[dict[str, Any]], path: KeyPath, model: type[BaseModel], moved: dict[str, list[str]]) -> tuple[str, str]:
    first = details[0]
    if first["type"] == "extra_forbidden":
        return _unknown_key(str(path[-1]), _known_keys(model, path[:-1]), moved)
    if first["type"] == "missing":
        return "is required", f"Add `{path[-1]}:`"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"]), ""
    expected = list(dict.fromkeys(_expected(detail) for detail in details))
    return f"{_shown(first['input'])} is not {' or '.join(expected)}", ""


def _unknown_key(key: str, known: Sequence[str], moved: dict[str, list[str]]) -> tuple[str, str]:
    usual = ALIASES.get(key.lower(), "")
    if usual in known:
        return f"unknown key {key!r}", f"Did you mean {usual!r}?"
    if usual in moved and key not in moved:
        return f"unknown key {key!r}", f"Did you mean {usual!r}, under {' or '.join(_shallow_first(moved[usual]))}?"
    # A slip of the pen in a key from here is likelier than a key from elsewhere, and that likelier than a distant likeness.
    if near := get_close_matches(key.lower(), known, n=1, cutoff=0.75):
        return f"unknown key {key!r}", f"Did you mean {near[0]!r}?"
    if key in moved:
        return f"unknown key {key!r} here", f"It belongs under {' or '.join(_shallow_first(moved[key]))}"
    if near := get_close_matches(key.lower(), known, n=1, cutoff=0.6):
        return f"unknown key {key!r}", f"Did you mean {near[0]!r}?"
    if near := get_close_matches(key.lower(), list(moved), n=1, cutoff=0.7):
        return f"unknown key {key!r}", f"Did you mean {near[0]!r}, under {' or '.join(_shallow_first(moved[near[0]]))}?"
    return f"unknown key {key!r}", f"Known here: {', '.join(known)}" if known else "No keys are known here"


def _shallow_first(places: Sequence[str]) -> list[str]:
    return sorted(places, key=lambda place: (place.count("."), place))


def _expected(detail: dict[str, Any]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "literal_error":
        return f"one of {context['expected']}" if " or " in str(context["expected"]) else str(context["expected"])
    bounds = {
        "greater_than": ("gt", ">"),
        "greater_than_equal": ("ge", ">="),
        "less_than": ("lt", "<"),
        "less_than_equal": ("le", "<="),
    }
    if kind in bounds:
        name, sign = bounds[kind]
        return f"a number {sign} {context[name]:g}"
    if kind in ("string_too_short", "too_short"):
        return "a value that is not empty"
    if kind == "string_too_long":
        return f"text of at most {context['max_length']} characters"
    return _EXPECTED.get(kind, detail["msg"].removeprefix("Input should be "))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing (null)"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Field names of the model that sits at `path` below `model`."""
    current: list[type[BaseModel]] = [model]
    for part in path:
        if isinstance(part, int):
            continue
        fields = [cls.model_fields[part].annotation for cls in current if part in cls.model_fields]
        current = [found for annotation in fields for found in models_in(annotation)]
    return [name for cls in current for name in cls.model_fields]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in models_in(argument)]


def key_homes(model: type[BaseModel], prefix: str = "") -> dict[str, list[str]]:
    """For each key name, the dotted mappings in which it is known ('the top level' for the root)."""
    homes: dict[str, list[str]] = {}
    for name, field in model.model_fields.items():
        homes.setdefault(name, []).append(f"`{prefix}`" if prefix else "the top level")
        for inner in models_in(field.annotation):
            for key, places in key_homes(inner, f"{prefix}.{name}" if prefix else name).items():
                homes.setdefault(key, []).extend(place for place in places if place not in homes.get(key, []))
    return homes
