"""The public Python API. The command line only calls these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.models.quiet import quiet_libraries
from ftkit.recipe import load as recipe_load
from ftkit.recipe.schema import Recipe
from ftkit.run.observer import Observer

if TYPE_CHECKING:
    from ftkit.run.predictor import Predictor
    from ftkit.run.train import RunResult


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A checked recipe. `overrides` are `key.path=value` texts, as on the command line. Raises RecipeError."""
    return recipe_load.load_recipe(Path(path), overrides)


def validate(recipe: Recipe, *, observer: Observer | None = None) -> dict[str, Any]:
    """Checks recipe, model folder, method and every data row without torch; returns the resolved recipe and split sizes.

    Raises RecipeError, ModelError or DataError with all problems found.
    """
    from ftkit.run.planning import validation_report

    return validation_report(recipe, observer)


def plan(recipe: Recipe, *, observer: Observer | None = None, allow_code: bool = False) -> dict[str, Any]:
    """The complete resolved recipe with the source of each default, sizes, parameters, steps, memory (MiB) and disk (MiB)."""
    from ftkit.run.planning import plan_report

    return plan_report(recipe, observer=observer, allow_code=allow_code)


def doctor(recipe: Recipe, *, observer: Observer | None = None, allow_code: bool = False) -> dict[str, Any]:
    """Defects of the data: `findings`, worst first (see `ftkit.diagnostics.findings.Finding`), and `rows`, usable ones by split.

    Data that cannot be read or used is a finding too. allow_code: see `train`. Raises RecipeError or ModelError if the recipe itself
    does not hold.
    """
    quiet_libraries()
    from ftkit.diagnostics.examine import examine
    from ftkit.run.planning import make_plan_here

    watching = observer or Observer()
    return examine(make_plan_here(recipe), stage=watching.stage, allow_code=allow_code).to_json()


def inspect(recipe: Recipe, *, split: str = "train", rows: int = 3) -> list[dict[str, Any]]:
    """The first rows of a split, token by token with labels and masks, as the model will see them."""
    from ftkit.run.planning import inspect_rows

    return inspect_rows(recipe, split=split, rows=rows)


def train(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
    allow_code: bool = False,
) -> RunResult:
    """Trains, evaluates and exports what the recipe says.

    output: the run folder (default: the recipe's). resume: continue an interrupted run exactly where its last checkpoint stands.
    overwrite: move an existing folder aside. allow_code: the consent that `model.trust_remote_code` and `evaluate:` metrics need
    beside the recipe. Raises FtkitError subclasses; the result's exit code is 4 where a gate of `expect:` was not met.
    """
    quiet_libraries()
    from ftkit.run.train import train as run_train

    folder = Path(output) if output is not None else None
    return run_train(recipe, output=folder, resume=resume, overwrite=overwrite, observer=observer, allow_code=allow_code)


def load(run: str | Path, overrides: Sequence[str] = (), *, allow_code: bool = False) -> Predictor:
    """The model of a finished run: `.predict(rows)`, `.session()` and `.evaluate(split)`.

    overrides: options that concern nothing but prediction, as `task.generation.max_new_tokens=64`. Raises RecipeError for others.
    """
    quiet_libraries()
    from ftkit.run.predictor import load_predictor

    return load_predictor(Path(run), overrides, allow_code=allow_code)


def export(
    run: str | Path, format: str, *, to: str | Path | None = None, allow_code: bool = False, observer: Observer | None = None
) -> dict[str, Any]:
    """Exports a finished run as `adapter` or `merged` and proves the export in a new process.

    to: the folder to write (default: `export/<format>` in the run). Raises RecipeError if the method has no such form,
    ExportError if the export does not compute what the run computed.
    """
    quiet_libraries()
    from ftkit.run.exporting import export_run

    return export_run(Path(run), format, to=Path(to) if to else None, allow_code=allow_code, observer=observer or Observer())
