"""Holds what a run found against the gates of `expect:`. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftkit.errors import GateError, Problem, RecipeError, RunFolderError
from ftkit.files import read_json
from ftkit.recipe.expectations import Gate, parse_gates
from ftkit.recipe.load import parse_recipe
from ftkit.run.baseline import Baseline, comparison_notes, read_baseline_of, refuse_other_rows
from ftkit.run.folder import FINISHED, LOCK, PLAN, RESULTS, finished_results, read_run, readable
from ftkit.run.measurements import gated_split, resources_of

MISSED = GateError.exit_code
"""Exit code of a run that missed a gate."""

MEASURED = ("rows", "metrics", "intervals")
"""What is shown of each split."""


def gates(expect: Mapping[str, Any], results: Mapping[str, Any], baseline: Baseline | None = None) -> list[dict[str, Any]]:
    """Each gate with what was measured, whether it is met, and by how much it is missed.

    baseline: what gates under `vs` are compared with; needed where there are some.
    """
    split = gated_split(results["splits"])
    found = results["splits"].get(split) or {}
    return [_judged(gate, split, found, resources_of(results), baseline) for gate in parse_gates(expect)]


def _judged(
    gate: Gate, split: str, found: Mapping[str, Any], resources: Mapping[str, float | None], baseline: Baseline | None
) -> dict[str, Any]:
    value = resources.get(gate.name) if gate.is_resource else (found.get("metrics") or {}).get(gate.name)
    interval = None if gate.is_resource else (found.get("intervals") or {}).get(gate.name)
    before = baseline if gate.versus else None
    if before is None:
        compared = _end(interval, gate) if gate.confident else value
    elif gate.confident:
        compared = _end(difference_interval((value, interval), (before.value(gate.name), before.intervals.get(gate.name))), gate)
    else:
        compared = _difference(value, before.value(gate.name))
    compared = compared if compared is not None and math.isfinite(compared) else None
    against = None if before is None else {"file": before.path, "value": before.value(gate.name)}
    return {
        "gate": gate.key,
        "metric": gate.name,
        "split": None if gate.is_resource else split,
        "expected": gate.expected,
        "confident": gate.confident,
        "value": value,
        "interval": interval,
        "baseline": against,
        "compared": compared,
        "passed": gate.bound.holds(compared),
        "missed_by": gate.bound.missed_by(compared),
    }


def _end(interval: Sequence[float] | None, gate: Gate) -> float | None:
    """The end of an interval that speaks against a gate."""
    return None if interval is None else interval[0 if gate.bound.wants_more else 1]


def _difference(value: float | None, before: float | None) -> float | None:
    return None if value is None or before is None else value - before


Estimate = tuple[float | None, Sequence[float] | None]
"""A value and its interval (low, high)."""


def difference_interval(now: Estimate, before: Estimate) -> tuple[float, float] | None:
    """An interval of the difference of two values out of those of each (Zou & Donner 2008, Statistics in Medicine 27:1693).

    For values from independent draws; for two models on the same rows, which err together, it is wider than needed.
    None where a value or interval is missing.
    """
    value, interval = now
    other, other_interval = before
    if value is None or other is None or interval is None or other_interval is None:
        return None
    difference = value - other
    down = math.hypot(value - interval[0], other_interval[1] - other)
    up = math.hypot(interval[1] - value, other - other_interval[0])
    return difference - down, difference + up


def missed(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The gates that are not met."""
    return [gate for gate in found if not gate["passed"]]


# --- a run that is finished --------------------------------------------------------------------------------------------


def gate_run(run: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Gates a finished run anew, by its own `expect:` or by another that `overrides` make; nothing is written.

    Returns {folder, recipe, splits, gates, notes, exit_code: 0 or 4}. Raises RecipeError for gates that cannot be, and for overrides of
    anything else, RunFolderError for what is no finished run.
    """
    folder = read_run(run)
    results = finished_results(folder)
    if results["status"] not in FINISHED:
        message = f"the run is not finished (status: {results['status']})"
        raise RunFolderError(Problem(message=message, place=str(folder), hint="Continue it with `ftkit train ... --resume`"))
    recipe = _with_other_gates(folder, overrides)
    if not recipe.expect:
        hint = "Name some, as in: ftkit gate RUN 'expect={accuracy: \">= 0.9\"}'"
        raise RecipeError(Problem(message="the run has no gates", place=str(folder / PLAN), key="expect", hint=hint))
    baseline = read_baseline_of(recipe)
    with readable(folder / LOCK):
        lock = read_json(folder / LOCK)
        data, notes = lock["training"]["data"], []
        if baseline is not None:
            split = gated_split(results["splits"])
            refuse_other_rows(baseline, recipe, split, data.get(split, {}).get("sha256"))
            notes = comparison_notes(baseline, recipe, lock)
    with readable(folder / RESULTS):
        found = gates(recipe.expect, results, baseline)
        splits = {name: {key: part[key] for key in MEASURED if key in part} for name, part in results["splits"].items()}
    return {
        "folder": str(folder.absolute()),
        "recipe": results.get("recipe"),
        "splits": splits,
        "gates": found,
        "notes": notes,
        "exit_code": MISSED if missed(found) else 0,
    }


def _with_other_gates(folder: Path, overrides: Sequence[str]) -> Any:
    others = [text for text in overrides if text.removeprefix("~").partition("=")[0].strip().split(".")[0] != "expect"]
    if others:
        hint = "Only gates can change: 'expect.accuracy=\">= 0.9\"'"
        message = "a finished run was trained with what this would change"
        raise RecipeError([Problem(message=message, place=f"command line: {text}", hint=hint) for text in others])
    with readable(folder / PLAN):
        text = (folder / PLAN).read_text(encoding="utf-8")
    return parse_recipe(text, str(folder / PLAN), overrides, base=folder)
