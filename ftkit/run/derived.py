"""Run folders that no training made: the weights come out of other runs (a merge, a decomposition).

Such a folder is a run like any other: it predicts, is evaluated and exported. Its results say what it was `derived` from.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftkit.data.aside import written_whole
from ftkit.data.splits import load_splits
from ftkit.data.table import Table
from ftkit.errors import Problem, RecipeError
from ftkit.files import read_json, sha256_of, write_json, write_text
from ftkit.models.load import trainable_report
from ftkit.models.naming import unusual_backbone
from ftkit.recipe.plan import Plan
from ftkit.recipe.schema import Component, ModelSpec, Recipe
from ftkit.report.model_card import model_card
from ftkit.run.folder import CARD, LOCK, PLAN, PROBE, RECIPE, RESULTS, TASK, TASK_DIGEST, readable
from ftkit.run.lockfile import hash_model, training_values
from ftkit.run.machine import describe_machine, git_revision, versions
from ftkit.run.observer import Observer
from ftkit.run.planning import make_plan_here
from ftkit.run.predictor import Predictor, load_predictor
from ftkit.run.results import Clock, artifacts, opening, peak_memory_mib
from ftkit.run.wiring import Prepared, weights_of
from ftkit.training.checkpoint import BEST, save_checkpoint

EVALUATED = ("validation", "test")
"""In this order: what validation decides (thresholds) holds for the test."""

NO_SPLIT = "none"


@dataclass(frozen=True)
class Origin:
    """What a derived run was made of. by: the verb. facts: what it says of itself. before: metrics of the sources by name and split."""

    by: str
    sources: Sequence[Path]
    facts: Mapping[str, Any]
    before: Mapping[str, Mapping[str, Any]]


def derived_plan(plan: Plan, method: Component, *, model: ModelSpec | None = None) -> Plan:
    """The plan of a run with other weights: another method (and base), no exports, no gates. Raises RecipeError if they do not fit."""
    changes: dict[str, Any] = {"method": method, "model": model or plan.recipe.model, "export": [], "expect": {}}
    recipe: Recipe = plan.recipe.model_copy(update=changes)
    return make_plan_here(recipe, None if model else plan.facts)


def chosen_tables(plan: Plan, names: Sequence[str] | None, observer: Observer) -> dict[str, Table]:
    """The rows of the named splits of a run's recipe; None: of validation and test, where it has them; `none`: nothing.

    Raises RecipeError for a split that the run does not have, DataError if the rows cannot be read any more.
    """
    if names is not None and NO_SPLIT in names:
        if more := [name for name in names if name != NO_SPLIT]:
            hint = f"Leave out {NO_SPLIT!r} to measure {more[0]}"
            raise RecipeError(Problem(message=f"{NO_SPLIT!r} and {more[0]!r} exclude each other", place="--evaluate", hint=hint))
        return {}
    observer.stage("reading data")
    splits = load_splits(plan.recipe.data, plan.task(), plan.recipe.origin.base, observer)
    tables = {name: table for name, table in splits.items() if name in EVALUATED}
    if unknown := [name for name in names or () if name not in tables]:
        known = ", ".join([*tables, NO_SPLIT])
        raise RecipeError(Problem(message=f"the run has no {unknown[0]!r} split", place="--evaluate", hint=f"Choose of: {known}"))
    return {name: table for name, table in tables.items() if names is None or name in names}


def measured(predictor: Predictor, tables: Mapping[str, Table], observer: Observer, what: str) -> dict[str, Any]:
    """Metrics of a loaded run, by split."""
    found = {}
    for name, table in tables.items():
        observer.stage(f"evaluating {what} on {name}")
        found[name] = predictor.measure(table, cache=False)[0]["metrics"]
    return found


def write_derived(
    source: Predictor, prepared: Prepared, origin: Origin, output: Path, tables: Mapping[str, Table], observer: Observer
) -> dict[str, Any]:
    """Writes the run folder of a model, loads it again strictly, evaluates it there, and returns its results.

    source: the run whose data, task and probe it takes over. prepared: the new model, with its weights in place.
    """
    output = output.absolute()
    with written_whole(output, "--output") as folder:
        results = _write(source, prepared, origin, folder, output, observer)
        predictor = load_predictor(folder, allow_code=prepared.task.allow_code)
        results["splits"] |= _evaluated(predictor, origin, tables, observer)
        if predictor.task.calibration:
            results["calibration"] = predictor.task.calibration
        _finish(predictor, results, folder)
    return results


def _write(source: Predictor, prepared: Prepared, origin: Origin, folder: Path, output: Path, observer: Observer) -> dict[str, Any]:
    """All files of the run but what only its evaluation tells."""
    observer.stage("writing the run")
    plan = replace(prepared.plan, recipe=prepared.plan.recipe.model_copy(update={"output": str(output)}))
    text = plan.to_yaml()
    names = " ".join(str(path) for path in origin.sources)
    write_text(folder / RECIPE, f"# Not trained: made by `ftkit adapters {origin.by}` out of {names}\n{text}")
    for name in (TASK, PROBE):
        with readable(source.folder / name):
            shutil.copyfile(source.folder / name, folder / name)
    write_json(folder / LOCK, _lock(source.folder, plan))
    checkpoints = folder / "checkpoints"
    saved = save_checkpoint(checkpoints, BEST, 0, weights_of(prepared), {"derived": origin.by})
    results = _results(plan, prepared, origin, source.folder, output) | {"weights": f"checkpoints/{saved.path.name}"}
    write_json(folder / RESULTS, results)
    write_text(folder / PLAN, text)
    return results


def _lock(source: Path, plan: Plan) -> dict[str, Any]:
    with readable(source / LOCK):
        lock = dict(read_json(source / LOCK))
        training = {**lock["training"], "recipe": training_values(plan)}
    here = {"versions": versions(), "machine": describe_machine(), "git": git_revision(Path.cwd())}
    return {**lock, **here, "model_files": hash_model(plan.facts), "training": training}


def _results(plan: Plan, prepared: Prepared, origin: Origin, source: Path, output: Path) -> dict[str, Any]:
    clock = Clock()
    with readable(source / RESULTS):
        splits = {name: {"rows": split["rows"]} for name, split in read_json(source / RESULTS)["splits"].items()}
    derived = {
        "by": origin.by,
        "from": [str(path) for path in origin.sources],
        **origin.facts,
        "before": {name: dict(found) for name, found in origin.before.items()},
    }
    return opening(plan, clock, output) | {
        "recipe": output.name,
        "derived": derived,
        "world_size": 1,
        "steps": 0,
        "total_steps": 0,
        "epochs": 0.0,
        "stopped_early": False,
        "best": {"step": None, "value": None},
        "parameters": trainable_report(prepared.model, prepared.layout),
        "seconds": {"training": 0.0, "evaluation": 0.0, "this_process": 0.0},
        "tokens": 0,
        "tokens_per_second": None,
        "examples_per_second": None,
        "splits": splits,
        "exports": {},
        "gates": [],
        "warning": None,
    }


def _evaluated(predictor: Predictor, origin: Origin, tables: Mapping[str, Table], observer: Observer) -> dict[str, Any]:
    """What each split says of the new run. On validation the task decides anew what it decides there."""
    found, task = {}, predictor.task
    for name in (name for name in EVALUATED if name in tables):
        observer.stage(f"evaluating the result on {name}")
        report, predictions = predictor.measure(tables[name], cache=False)
        if name == EVALUATED[0]:
            task.calibration = task.calibrate(predictions, tables[name])
            if task.calibration:
                report["metrics"] = {**report["metrics"], **task.score(predictions, tables[name])}
        found[name] = report
    return found


def _finish(predictor: Predictor, results: dict[str, Any], folder: Path) -> None:
    task, prepared = predictor.task, predictor.prepared
    recipe = prepared.plan.recipe
    named = recipe.model_copy(update={"origin": replace(recipe.origin, name=results["recipe"])})
    plan = replace(prepared.plan, recipe=named)
    write_json(folder / TASK, {"name": task.name, "state": task.state(), "calibration": task.calibration})
    results[TASK_DIGEST] = sha256_of(folder / TASK)
    results |= {"status": "completed", "exit_code": 0, "peak_memory_mib": peak_memory_mib(), "artifacts": artifacts(folder)}
    card = model_card(plan, results, task, read_json(folder / LOCK), unusual_backbone(prepared.layout.model))
    write_text(folder / CARD, card)
    write_json(folder / RESULTS, results)
