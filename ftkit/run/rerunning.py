"""Trains a finished run again from its plan and lock, and says whether it comes out the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftkit.errors import Problem, RunFolderError
from ftkit.files import read_json
from ftkit.recipe.load import parse_recipe
from ftkit.recipe.schema import Recipe
from ftkit.run.comparing import diff_runs
from ftkit.run.folder import FINISHED, LOCK, PLAN, check_run_folder, finished_results, read_run, readable
from ftkit.run.observer import Observer

CHANGED = 4
"""Exit code of a rerun that came out otherwise."""


def rerun(run: Path, *, output: Path | None = None, observer: Observer | None = None, allow_code: bool = False) -> dict[str, Any]:
    """Trains a run's plan again, without its gates, in a new folder (default: `RUN-rerun` beside it), and compares the two.

    Returns {folder, same, metrics (those that differ), weights (files that differ), versions and environment (what is not the same),
    exit_code: 0 or 4}. Raises RunFolderError where the rows, the tokenizer or the files of the base model are others, or for what is no
    run that `ftkit train` finished.
    """
    folder = read_run(run)
    recipe, lock = _recipe_of(folder)
    target = (output or folder.absolute().with_name(f"{folder.absolute().name}-rerun")).absolute()
    check_run_folder(target, resume=False, overwrite=False)
    from ftkit.run.train import train

    result = train(recipe, output=target, observer=observer, allow_code=allow_code, same_as=(folder, lock))
    found = diff_runs(folder, result.folder)
    metrics = [entry for entry in found["metrics"] if entry["a"] != entry["b"]]
    weights = [entry for entry in found["weights"] if entry["a"] != entry["b"]]
    same = not metrics and not weights
    return {
        "run": str(folder.absolute()),
        "folder": str(result.folder),
        "same": same,
        "metrics": metrics,
        "weights": weights,
        "versions": found["versions"],
        "environment": found["environment"],
        "exit_code": 0 if same else CHANGED,
    }


def _recipe_of(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that a run's plan is, without gates, and the run's lock."""
    results = finished_results(folder)
    if results["status"] not in FINISHED or "derived" in results:
        what = "was made of other runs, not trained" if "derived" in results else f"is not finished (status: {results['status']})"
        raise RunFolderError(Problem(message=f"the run {what}", place=str(folder), hint="Give one that `ftkit train` finished"))
    return planned_recipe(folder, str(results["recipe"]))


def planned_recipe(folder: Path, name: str, overrides: Sequence[str] = ()) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that a run's plan is, without gates, and the run's lock. name: of the recipe. Raises RunFolderError, RecipeError."""
    with readable(folder / LOCK):
        lock = dict(read_json(folder / LOCK))
        base = Path(lock["training"]["folder"])
    with readable(folder / PLAN):
        text = (folder / PLAN).read_text(encoding="utf-8")
    recipe = parse_recipe(text, str(folder / PLAN), ["expect={}", *overrides], base=base)
    return recipe.model_copy(update={"origin": replace(recipe.origin, name=name)}), lock
