"""The gates of `expect:`: what a run must reach, in itself or against a baseline.

expect:
  accuracy: ">= 0.95"
  f1_macro: {bound: ">= 0.9", confident: true}
  peak_memory_mib: "< 4000"
  vs: {file: baseline.json, accuracy: ">= -0.005"}
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_BOUND = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")

VERSUS, FILE, BOUND, CONFIDENT = "vs", "file", "bound", "confident"

RESOURCES = {
    "peak_memory_mib": "Largest memory in MiB: of the GPU where there is one, else resident memory.",
    "training_seconds": "Seconds of training, evaluations left out.",
    "evaluation_seconds": "Seconds of the evaluations.",
    "tokens_per_second": "Tokens (or images) that training went through in a second, padding left out.",
    "examples_per_second": "Examples that training went through in a second.",
    "trainable_parameters": "Numbers that were trained.",
    "adapter_bytes": "Size of the exported adapter.",
    "merged_bytes": "Size of the exported merged model.",
}
"""What gates may name beside metrics."""

EXPORTED = {"adapter_bytes": "adapter", "merged_bytes": "merged"}
"""Resources that only an export has, with its format."""

Path = tuple[str | int, ...]
Rule = tuple[Path, str, str]
"""A broken rule: path of the key, message, hint."""

EXAMPLE = 'Write a comparison, as in ">= 0.95"'
EXAMPLE_VERSUS = 'Write `vs: {file: baseline.json, accuracy: ">= -0.005"}`'


@dataclass(frozen=True)
class Bound:
    """A comparison with a number."""

    sign: str
    value: float

    @property
    def wants_more(self) -> bool:
        """Whether larger values are the better ones."""
        return self.sign.startswith(">")

    def holds(self, measured: float | None) -> bool:
        """Whether a measured value satisfies it; an undefined value never does."""
        return measured is not None and _COMPARISONS[self.sign](measured, self.value)

    def missed_by(self, measured: float | None) -> float | None:
        """The distance to the bound of a value that does not satisfy it; None for one that does, and for an undefined one."""
        return None if measured is None or self.holds(measured) else abs(measured - self.value)


def parse_bound(text: str) -> tuple[Bound | None, str]:
    """The bound that `text` states, and what is wrong with it ('' if nothing)."""
    match = _BOUND.fullmatch(text)
    if match is None:
        return None, f"{text!r} is not a comparison with a number"
    return Bound(match.group(1), float(match.group(2))), ""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One thing that a run must reach.

    name: a metric or a resource. expected: the bound as written. confident: it must hold for the unfavorable end of the 95 % interval,
    too. versus: the baseline file whose value is taken off before; '' for none.
    """

    name: str
    bound: Bound
    expected: str
    confident: bool = False
    versus: str = ""

    @property
    def key(self) -> str:
        """The key below `expect`: `accuracy`, or `vs.accuracy`."""
        return f"{VERSUS}.{self.name}" if self.versus else self.name

    @property
    def is_resource(self) -> bool:
        """Whether it is about time, memory or size."""
        return self.name in RESOURCES


def parse_gates(expect: Mapping[str, Any]) -> list[Gate]:
    """The gates of an `expect:` in which `wrong_gates` finds nothing, in their order; those against a baseline last."""
    versus = expect.get(VERSUS) or {}
    own = [_gate(name, value) for name, value in expect.items() if name != VERSUS]
    return own + [_gate(name, value, str(versus[FILE])) for name, value in versus.items() if name != FILE]


def _gate(name: str, value: Any, versus: str = "") -> Gate:
    settings = value if isinstance(value, Mapping) else {BOUND: value}
    bound, wrong = parse_bound(settings[BOUND])
    if bound is None:
        raise ValueError(wrong)
    confident = settings.get(CONFIDENT, False)
    return Gate(name=name, bound=bound, expected=settings[BOUND].strip(), confident=confident, versus=versus)


def gated_metrics(expect: Mapping[str, Any]) -> dict[str, str]:
    """The key below `expect` of each metric that gates name; the first, where a metric has several."""
    named = [(name, name) for name in expect if name != VERSUS]
    named += [(name, f"{VERSUS}.{name}") for name in expect.get(VERSUS) or {} if name != FILE]
    return {name: key for name, key in reversed(named) if name not in RESOURCES}


# --- checking ----------------------------------------------------------------------------------------------------------


def wrong_gates(expect: Mapping[str, Any]) -> list[Rule]:
    """What is wrong with how gates are written, whatever the task."""
    return [rule for path, value in _entries(expect) for rule in _wrong_entry(path, value)] + _wrong_versus(expect)


def wrong_names(expect: Mapping[str, Any], metrics: Mapping[str, bool], exports: Collection[str], task: str) -> list[Rule]:
    """Gates on what the run will not have.

    metrics: whether each metric of the task comes with an interval. exports: formats that the recipe exports.
    """
    found: list[Rule] = []
    for path, value in _entries(expect):
        name = str(path[-1])
        confident = isinstance(value, Mapping) and value.get(CONFIDENT) is True
        if name in EXPORTED and EXPORTED[name] not in exports:
            form = EXPORTED[name]
            found.append((path, f"the recipe exports no {form}, whose size this is", f"Add `export: [{form}]`, or remove it"))
        elif name not in metrics and name not in RESOURCES:
            found.append((path, f"unknown metric {name!r}", _known(name, metrics, task)))
        if confident and not metrics.get(name, name not in RESOURCES):
            sure = ", ".join(metric for metric, interval in metrics.items() if interval)
            found.append(((*path, CONFIDENT), f"{name} has no interval", f"Remove it. With an interval: {sure or 'none'}"))
    return found


def _known(name: str, metrics: Collection[str], task: str) -> str:
    known = f"The metrics of {task}: {', '.join(metrics)}; resources: {', '.join(RESOURCES)}"
    near = get_close_matches(name, [*metrics, *RESOURCES], n=1)
    return f"Did you mean {near[0]!r}? {known}" if near else known


def _entries(expect: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Path and value of each gate."""
    for name, value in expect.items():
        if name != VERSUS:
            yield ("expect", name), value
    versus = expect.get(VERSUS)
    if isinstance(versus, Mapping):
        for name, value in versus.items():
            if name != FILE:
                yield ("expect", VERSUS, str(name)), value


def _wrong_entry(path: Path, value: Any) -> Iterator[Rule]:
    if not isinstance(value, Mapping):
        yield from _wrong_bound(path, value)
        return
    for key in value:
        if key not in (BOUND, CONFIDENT):
            near = get_close_matches(str(key), (BOUND, CONFIDENT), n=1)
            yield (
                (*path, key),
                f"unknown key {key!r}",
                f"Did you mean {near[0]!r}?" if near else f"Known here: {BOUND}, {CONFIDENT}",
            )
    if BOUND not in value:
        yield path, f"has no `{BOUND}`", f'Write `{path[-1]}: {{bound: ">= 0.95", confident: true}}`'
    else:
        yield from _wrong_bound((*path, BOUND), value[BOUND])
    if not isinstance(value.get(CONFIDENT, False), bool):
        yield (*path, CONFIDENT), f"{value[CONFIDENT]!r} is not true or false", "Write true or false"


def _wrong_bound(path: Path, value: Any) -> Iterator[Rule]:
    if isinstance(value, str):
        if wrong := parse_bound(value)[1]:
            yield path, wrong, EXAMPLE
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, f"{value} is not a comparison", f'Write which way it is good, in quotes: `{path[-1]}: ">= {value}"`'
    else:
        shown = "nothing (null)" if value is None else "a list" if isinstance(value, list) else repr(value)
        yield path, f"{shown} is not a comparison", EXAMPLE


def _wrong_versus(expect: Mapping[str, Any]) -> list[Rule]:
    if VERSUS not in expect:
        return []
    versus, path = expect[VERSUS], ("expect", VERSUS)
    if not isinstance(versus, Mapping):
        return [(path, "is not a mapping with a `file` and gates", EXAMPLE_VERSUS)]
    if not isinstance(versus.get(FILE), str) or not versus[FILE].strip():
        return [((*path, FILE) if FILE in versus else path, "names no baseline file", EXAMPLE_VERSUS)]
    return [] if len(versus) > 1 else [(path, "compares nothing with the baseline", EXAMPLE_VERSUS)]
