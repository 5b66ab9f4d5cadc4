"""`ftkit adapters list`: the runs and adapters in folders. Reads JSON and file headers only, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftkit.adapters.sources import RUN, BaseCheck, Trained, find_folders, plan_recipe, read_trained, stored_parameters
from ftkit.errors import FtkitError, Problem, RunFolderError
from ftkit.run.folder import PLAN

PREFERRED = ("test", "validation")
"""Splits whose best metric is shown, in this order."""


def list_adapters(folders: Sequence[Path], base: str | None = None) -> list[dict[str, Any]]:
    """One entry for each run or adapter at or below the folders, see `entry_of`.

    base: a model that each is compared with. What cannot be used has a `problem`. Raises RunFolderError if a folder does not exist,
    ModelError if there is no such base.
    """
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise RunFolderError([Problem(message="there is no such folder", place=str(folder)) for folder in missing])
    check = BaseCheck(base) if base else None
    paths = dict.fromkeys(path for folder in folders for path in find_folders(folder))
    return [_entry(path, check) for path in paths]


def _entry(path: Path, check: BaseCheck | None) -> dict[str, Any]:
    try:
        return entry_of(read_trained(path), check)
    except FtkitError as error:
        problem = error.problems[0]
        return {**_blank(path), **_known_of_unfinished(path), "problem": problem.message, "hint": problem.hint}


def entry_of(found: Trained, check: BaseCheck | None = None) -> dict[str, Any]:
    """What there is to say of one: `path`, `kind` (run, adapter), `method`, `base`, `base_matches`, `parameters`, `bytes`, `task`,
    `metric` ({name, split, value}), `trained` (when), `made_by` (merge, extract), `problem` and a way out of it (`hint`)."""
    entry = {**_blank(found.path), "kind": found.kind, "method": found.method, "base": found.base}
    try:
        entry |= {"parameters": _parameters(found), "bytes": found.weights.stat().st_size}
    except (OSError, ValueError, KeyError, TypeError) as error:
        entry["problem"] = f"{found.weights.name} cannot be read ({type(error).__name__})"
    if check is not None:
        entry["base_matches"] = check.matches(found)
    if found.kind == RUN and found.recipe is not None:
        entry |= {"task": found.recipe.task.name, "metric": _metric(found), "trained": found.results.get("started")}
        entry["made_by"] = (found.results.get("derived") or {}).get("by")
    return entry


def _blank(path: Path) -> dict[str, Any]:
    names = (
        "kind",
        "method",
        "base",
        "base_matches",
        "parameters",
        "bytes",
        "task",
        "metric",
        "trained",
        "made_by",
        "problem",
        "hint",
    )
    return {"path": str(path), **dict.fromkeys(names)}


def _known_of_unfinished(path: Path) -> dict[str, Any]:
    """What the plan of a run says that did not end."""
    if not (path / PLAN).is_file():
        return {}
    try:
        recipe = plan_recipe(path)
    except FtkitError:
        return {"kind": RUN}
    return {"kind": RUN, "method": recipe.method.name, "base": recipe.model.name, "task": recipe.task.name}


def _parameters(found: Trained) -> int:
    if found.kind == RUN and "parameters" in found.results:
        return int(found.results["parameters"]["trainable"])
    return stored_parameters(found.weights)


def _metric(found: Trained) -> dict[str, Any] | None:
    name = found.recipe.train.best_metric if found.recipe else ""
    splits = found.results.get("splits") or {}
    for split in PREFERRED:
        if (value := (splits.get(split, {}).get("metrics") or {}).get(name)) is not None:
            return {"name": name, "split": split, "value": value}
    return None
