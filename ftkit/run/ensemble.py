"""Finished runs that answer together: the same model, task and method, trained with other seeds (or on other parts of the data)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.errors import Problem, RecipeError
from ftkit.files import read_json
from ftkit.recipe.load import parse_recipe
from ftkit.recipe.schema import Recipe
from ftkit.run.folder import LOCK, PLAN, TASK, finished_results, read_learned, read_run, readable
from ftkit.run.predictor import Predictor, load_predictor

if TYPE_CHECKING:
    from torch import Tensor

SINGLE_LABEL = "single_label_classification"
MUST_AGREE = ("model", "task", "method")


def load_ensemble(runs: Sequence[Path], *, allow_code: bool = False) -> Predictor:
    """A predictor of which several finished runs are the members, the first being whose plan, thresholds and tokenizer count.

    Where each example (or token) has one label, members vote, and an answer's probability is its share of the votes; elsewhere their
    logits are averaged. Raises RecipeError if the runs differ in base, task, method or labels, or write text.
    """
    first, *others = [read_run(run) for run in runs]
    _refuse_twice(runs)
    _check_members(first, others)
    predictor = load_predictor(first, allow_code=allow_code)
    head = predictor.task.head()
    if head.pretrained:
        hint = "Name a single run, or runs of a task with labels"
        raise RecipeError(f"{predictor.task.name} writes text, on which runs cannot vote", hint=hint)
    from ftkit.models.ensemble import Ensemble

    states = [_trained(folder) for folder in (first, *others)]
    per_token = "TokenClassification" in head.auto_class
    votes = per_token or head.config.get("problem_type") == SINGLE_LABEL
    together = replace(predictor.prepared, model=Ensemble(predictor.prepared.model, states, votes=votes))
    return Predictor(first, together, predictor._processor_hash)


def _trained(folder: Path) -> dict[str, Tensor]:
    from ftkit.training.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder / finished_results(folder)["weights"])
    if checkpoint.tensors("method"):
        message = "its method keeps more than trained parameters, which members cannot take turns with"
        raise RecipeError(Problem(message=message, place=str(folder), hint="Use runs of another method, such as prompt-tuning"))
    return checkpoint.tensors("trainable")


def _refuse_twice(runs: Sequence[Path]) -> None:
    """Raises RecipeError for a run that would have two votes."""
    places = [run.resolve() for run in runs]
    if twice := [run for run, place in zip(runs, places, strict=True) if places.count(place) > 1]:
        message = "is named twice, and would have two votes"
        raise RecipeError(Problem(message=message, place=str(twice[0]), hint="Name each run once"))


def _check_members(first: Path, others: Sequence[Path]) -> None:
    """Raises RecipeError with each way in which a run does not go together with the first."""
    problems = []
    recipe, learned, base = _facts(first)
    for folder in others:
        own_recipe, own_learned, own_base = _facts(folder)
        differing = [name for name in MUST_AGREE if getattr(recipe, name) != getattr(own_recipe, name)]
        differing += ["labels"] if learned != own_learned else []
        differing += ["base weights"] if base != own_base else []
        if differing:
            message = f"it differs from {first.name} in {', '.join(differing)}"
            problems.append(Problem(message=message, place=str(folder), hint="Give runs of one recipe with different seeds"))
    if problems:
        raise RecipeError(problems)


def _facts(folder: Path) -> tuple[Recipe, object, object]:
    results = finished_results(folder)
    with readable(folder / PLAN):
        recipe = parse_recipe((folder / PLAN).read_text(encoding="utf-8"), str(folder / PLAN), base=folder)
    with readable(folder / TASK):
        learned = read_learned(folder, results)["state"]
    with readable(folder / LOCK):
        return recipe, learned, read_json(folder / LOCK)["model_files"]
