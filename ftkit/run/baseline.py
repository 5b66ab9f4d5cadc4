"""The baseline file: what a run reached, small enough to be kept under version control, for later runs to be held against.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit import __version__
from ftkit.errors import Problem, RecipeError, RunFolderError
from ftkit.files import read_json
from ftkit.recipe.expectations import FILE, VERSUS, Gate, parse_gates
from ftkit.recipe.schema import Recipe
from ftkit.run.folder import FINISHED, LOCK, RESULTS, finished_results, read_run, readable
from ftkit.run.measurements import gated_split, resources_of

SCHEMA_VERSION = 1
KIND = "ftkit baseline"
LARGEST_FILE = 2**20
"""Bytes; a baseline has a few thousand."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A baseline file as read. split: the name of the split that its metrics are of. data: `rows` and `sha256` of each split."""

    path: str
    task: str
    split: str
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, Sequence[float]]
    resources: Mapping[str, float | None]
    data: Mapping[str, Mapping[str, Any]]
    model_files: Mapping[str, str]
    machine: Mapping[str, Any]

    def value(self, name: str) -> float | None:
        """A metric or a resource."""
        return self.resources[name] if name in self.resources else self.metrics.get(name)


def make_baseline(run: Path) -> dict[str, Any]:
    """What the baseline file of a finished run holds. Raises RunFolderError for a run that is not finished, or that measured nothing."""
    folder = read_run(run)
    results = finished_results(folder)
    with readable(folder / RESULTS):
        name = gated_split(results["splits"])
        found = results["splits"].get(name) or {}
        status, metrics = results["status"], found.get("metrics")
        if status not in FINISHED or not metrics:
            message = "has measured no test or validation split" if status in FINISHED else f"is not finished (status: {status})"
            raise RunFolderError(Problem(message=f"the run {message}", place=str(folder), hint="Give one that is evaluated"))
        about = {key: results[key] for key in ("recipe", "task", "method", "model", "seed", "started")}
        # The file is kept under version control, where the path of a machine has no place.
        about["model"] = Path(about["model"]).name if Path(about["model"]).is_absolute() else about["model"]
        resources = resources_of(results)
    with readable(folder / LOCK):
        lock = read_json(folder / LOCK)
        data, model_files = lock["training"]["data"], lock["model_files"]
        machine = {key: lock["machine"][key] for key in ("processor", "cores", "gpus")}
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "ftkit_version": __version__,
        **about,
        "split": name,
        "metrics": metrics,
        "intervals": found.get("intervals") or {},
        "resources": resources,
        "data": data,
        "model_files": model_files,
        "machine": machine,
    }


# --- reading -----------------------------------------------------------------------------------------------------------


def read_baseline(path: Path) -> Baseline:
    """A baseline file. Raises ValueError, with a message fit for the user, for what is none, and OSError."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError("it is too large for a baseline")
    value = read_json(path)
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise ValueError("it is no baseline")
    if value.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"its schema_version is {value.get('schema_version')!r}, and this ftkit reads {SCHEMA_VERSION}")
    return Baseline(
        path=str(path),
        task=_typed(value, "task", str),
        split=_typed(value, "split", str),
        metrics=_numbers(value, "metrics"),
        intervals={name: _interval(name, pair) for name, pair in _typed(value, "intervals", dict).items()},
        resources=_numbers(value, "resources"),
        data=_rows(value),
        model_files=_typed(value, "model_files", dict),
        machine=_typed(value, "machine", dict),
    )


def _typed(value: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(value.get(key), kind):
        raise ValueError(f"its {key!r} is missing or malformed")
    return value[key]


def _numbers(value: Mapping[str, Any], key: str) -> dict[str, float | None]:
    found: dict[str, float | None] = _typed(value, key, dict)
    for name, number in found.items():
        if number is not None and not _is_number(number):
            raise ValueError(f"its {key}.{name} is no number")
    return found


def _interval(name: str, pair: Any) -> tuple[float, float]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
        raise ValueError(f"its intervals.{name} is no pair of numbers")
    return pair[0], pair[1]


def _rows(value: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = _typed(value, "data", dict)
    for name, rows in found.items():
        if not isinstance(rows, dict) or not isinstance(rows.get("sha256"), str):
            raise ValueError(f"its data.{name} has no sha256")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# --- comparing ---------------------------------------------------------------------------------------------------------

MAKE_ONE = "Write one with `ftkit baseline RUN`"


def read_baseline_of(recipe: Recipe) -> Baseline | None:
    """The baseline that gates of a recipe are held against, None if there are no such gates.

    Raises RecipeError, with the place of the key, if the file cannot be read, is of another task or lacks what is compared.
    """
    compared = [gate for gate in parse_gates(recipe.expect) if gate.versus]
    if not compared:
        return None
    path = Path(compared[0].versus)
    try:
        baseline = read_baseline(path if path.exists() else recipe.origin.base / path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error}"
        raise RecipeError(_problem(recipe, FILE, f"{path} cannot be read: {reason}", MAKE_ONE)) from error
    if baseline.task != recipe.task.name:
        message = f"{path} is of the task {baseline.task}, and this is {recipe.task.name}"
        raise RecipeError(_problem(recipe, FILE, message, MAKE_ONE))
    if problems := [problem for gate in compared for problem in _lacking(recipe, baseline, gate)]:
        raise RecipeError(problems)
    return baseline


def _lacking(recipe: Recipe, baseline: Baseline, gate: Gate) -> list[Problem]:
    if baseline.value(gate.name) is None:
        known = [name for name, value in {**baseline.metrics, **baseline.resources}.items() if value is not None]
        return [_problem(recipe, gate.name, f"{baseline.path} has no {gate.name}", f"It has: {', '.join(known)}")]
    if gate.confident and gate.name not in baseline.intervals:
        known = list(baseline.intervals)
        message = f"{baseline.path} has no interval of {gate.name}, which `confident` needs"
        return [_problem(recipe, gate.name, message, f"It has intervals of: {', '.join(known) or 'nothing'}")]
    return []


def refuse_other_rows(baseline: Baseline, recipe: Recipe, split: str, sha256: str | None) -> None:
    """Raises RecipeError if metrics are compared that were measured on other rows. sha256: of the rows of the gated split."""
    compares = any(gate.versus and not gate.is_resource for gate in parse_gates(recipe.expect))
    if compares and (baseline.data.get(baseline.split) or {}).get("sha256") != sha256:
        message = f"{baseline.path} was measured on other rows ({baseline.split}) than those of {split}"
        raise RecipeError(_problem(recipe, FILE, message, "Compare on the same rows: write the baseline anew, or restore them"))


def comparison_notes(baseline: Baseline, recipe: Recipe, lock: Mapping[str, Any]) -> list[str]:
    """In what a run differs from its baseline beside what the comparison is about. lock: that of the run."""
    rows, files = lock["training"]["data"].get("train") or {}, lock["model_files"]
    found = []
    if rows.get("sha256") != (baseline.data.get("train") or {}).get("sha256"):
        found.append("it was trained on other rows")
    if files != baseline.model_files:
        found.append("it has another base model")
    measures = any(gate.versus and gate.is_resource for gate in parse_gates(recipe.expect))
    if measures and any(lock["machine"].get(key) != value for key, value in baseline.machine.items()):
        found.append("its time and memory were measured on another machine")
    return [f"the baseline {baseline.path} differs: {'; '.join(found)}"] if found else []


def _problem(recipe: Recipe, name: str, message: str, hint: str) -> Problem:
    key = f"{VERSUS}.{name}"
    return Problem(message=message, place=recipe.origin.gate_places.get(key, ""), key=f"expect.{key}", hint=hint)
