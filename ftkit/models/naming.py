"""Module and parameter names: out of PEFT's wrapping, and into PEFT's `target_modules`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

MAX_SUFFIX_SEGMENTS = 3

_WRAPPER_SEGMENTS = frozenset(
    {"base_layer", "original_module", "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
_OUTER_PREFIXES = ("", "base_model.", "base_model.model.")


def unwrapped_names(name: str) -> Iterator[str]:
    """What a wrapped name can be in the plain model.

    Several, because PEFT puts `base_model.model.` in front for tuners and only `base_model.` for prompts, and the plain
    model may itself have a module called `model`.
    """
    segments = name.split(".")
    while segments and segments[0] in ("module", "_orig_mod"):
        segments = segments[1:]
    cleaned: list[str] = []
    index = 0
    while index < len(segments):
        if segments[index] == "modules_to_save":
            index += 2
            continue
        if segments[index] not in _WRAPPER_SEGMENTS:
            cleaned.append(segments[index])
        index += 1
    plain = ".".join(cleaned)
    for prefix in _OUTER_PREFIXES:
        if plain.startswith(prefix):
            yield plain.removeprefix(prefix)


def known_prefix(name: str, known: Collection[str]) -> str:
    """The longest leading part of a dotted name that is among `known`, '' if there is none."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def matches(target: list[str] | str, name: str) -> bool:
    """PEFT's rule for `target_modules`: a list matches by suffix, a string is a regular expression for the whole name."""
    if isinstance(target, str):
        return re.fullmatch(target, name) is not None
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in target)


def find_suffixes(paths: Sequence[str], all_names: Sequence[str]) -> list[str] | str:
    """The shortest suffixes (of up to three segments) that match exactly `paths` among `all_names`, else a regular expression."""
    wanted = set(paths)
    by_suffix: dict[str, set[str]] = {}
    for name in all_names:
        for suffix in _suffixes(name):
            by_suffix.setdefault(suffix, set()).add(name)
    chosen: dict[str, None] = {}
    for path in dict.fromkeys(paths):
        exact = next((suffix for suffix in _suffixes(path) if by_suffix[suffix] <= wanted), None)
        if exact is None:
            return _expression(wanted)
        chosen[exact] = None
    return list(chosen)


def unusual_backbone(model: Any) -> str:
    """The attribute that holds the backbone of a model with a head, where checkpoints call it by another name; '' elsewhere.

    transformers' question answering on Llama and kin says `transformer`, for which every other class, and so every checkpoint, has
    `model`: from_pretrained then takes none of the backbone's weights, and only warns.
    """
    own = getattr(model, "base_model_prefix", "")
    usual = getattr(getattr(model, own, None), "base_model_prefix", "") if own else ""
    return own if usual not in ("", own) else ""


def _suffixes(name: str) -> list[str]:
    segments = name.split(".")
    return [".".join(segments[-count:]) for count in range(1, min(MAX_SUFFIX_SEGMENTS, len(segments)) + 1)]


def _expression(paths: set[str]) -> str:
    """A regular expression for exactly these names; names that differ only in their first number share one branch."""
    numbers: dict[tuple[str, str], list[int]] = {}
    single: list[str] = []
    for path in sorted(paths):
        found = re.fullmatch(r"(.*?\.|)(\d+)(\..*|)", path)
        if found is None:
            single.append(re.escape(path))
        else:
            numbers.setdefault((found[1], found[3]), []).append(int(found[2]))
    endings: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (start, end), indices in numbers.items():
        endings.setdefault((start, tuple(sorted(indices))), []).append(end)
    branches = [
        f"{re.escape(start)}{_any_of([str(index) for index in indices])}{_any_of([re.escape(end) for end in ends])}"
        for (start, indices), ends in endings.items()
    ]
    return "|".join([*branches, *single])


def _any_of(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"
