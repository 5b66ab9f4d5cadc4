"""Plans of a recipe in phases: one for each phase, told together, and written down as one recipe again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ftkit.errors import Problem, RecipeError
from ftkit.recipe.phases import KEY
from ftkit.recipe.plan import Plan, recipe_values
from ftkit.recipe.schema import Recipe
from ftkit.recipe.writing import block_lines

OWN = ("method", "train")
"""Keys of a recipe that each phase has for itself."""

OF_THE_LAST = ("export", "expect")
"""Keys that hold for the last phase alone."""

AUTO = "auto"


def plan_phases(recipe: Recipe, make: Callable[[Recipe], Plan]) -> Plan:
    """The plan of the last phase, with those of the earlier ones. make: plans the recipe of one phase.

    Raises RecipeError with what is wrong with each phase; what is wrong with all of them is said once.
    """
    plans, refused = [], []
    for phase in _phases(recipe):
        try:
            plans.append(make(phase))
        except RecipeError as error:
            refused.append((phase, error.problems))
    if refused:
        raise RecipeError(_told(refused, len(recipe.earlier) + 1))
    return replace(plans[-1], earlier=tuple(plans[:-1]))


def _phases(recipe: Recipe) -> list[Recipe]:
    """The recipe of each phase by itself. What the first one makes of random weights is no longer random."""
    usual = {"model": recipe.model.model_copy(update={"weights": "pretrained"}), "earlier": ()}
    first, *others = (*recipe.earlier, recipe)
    return [first, *(phase.model_copy(update=usual) for phase in others)]


def _told(refused: Sequence[tuple[Recipe, list[Problem]]], count: int) -> list[Problem]:
    common = [problem for problem in refused[0][1] if len(refused) == count and all(problem in found for _, found in refused)]
    single = [_in_phase(problem, phase) for phase, found in refused for problem in found if problem not in common]
    return [*common, *single]


def _in_phase(problem: Problem, phase: Recipe) -> Problem:
    message = f"phase {phase.origin.phase} ({phase.method.name}): {problem.message}"
    return replace(problem, message=message, place=problem.place or phase.origin.phase_place)


def whole_values(plan: Plan) -> dict[str, Any]:
    """A plan as plain values of one recipe, in the order people write one. A value that phases decide differently is `auto`."""
    if not plan.earlier:
        return recipe_values(plan.recipe)
    values = [recipe_values(part.recipe) for part in (*plan.earlier, plan)]
    last = values[-1]
    phases = [{"method": own["method"], **own["train"]} for own in values]
    shared = {key: _agreed([own[key] for own in values]) for key in last if key not in (*OWN, *OF_THE_LAST)}
    shared["model"]["weights"] = values[0]["model"]["weights"]
    found: dict[str, Any] = {key: shared.pop(key) for key in ("model", "task", "data")}
    return {**found, KEY: phases, **{key: shared.get(key, last[key]) for key in last if key not in (*OWN, *found)}}


def _agreed(values: Sequence[Any]) -> Any:
    first = values[0]
    if all(isinstance(value, dict) and value.keys() == first.keys() for value in values):
        return {key: _agreed([value[key] for value in values]) for key in first}
    return first if all(value == first for value in values) else AUTO


def whole_sources(plan: Plan) -> dict[str, str]:
    """Where the values of `whole_values` came from, by dotted key; those of a phase as `phases[0].method.rank`."""
    if not plan.earlier:
        return dict(plan.sources)
    parts = (*plan.earlier, plan)
    values = whole_values(plan)
    found = {
        key: source for key, source in plan.sources.items() if key.partition(".")[0] not in OWN and _value(values, key) != AUTO
    }
    for number, part in enumerate(parts):
        found |= {f"{KEY}[{number}].{key}": source for key, source in _own_sources(part).items()}
    return found


def _own_sources(part: Plan) -> dict[str, str]:
    """Sources of what stands in a phase, by the keys that it has there."""
    own = {key: source for key, source in part.sources.items() if key.partition(".")[0] in OWN}
    return {key.removeprefix("train."): source for key, source in own.items()}


def _value(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def whole_yaml(plan: Plan) -> str:
    """A plan as a recipe that `ftkit train` runs, in phases if it has them, with the source of each default beside it."""
    if not plan.earlier:
        return plan.to_yaml()
    head, *_ = plan.to_yaml().partition("\n")
    values, sources = whole_values(plan), whole_sources(plan)
    lines = [head]
    for key, value in values.items():
        if key != KEY:
            lines += block_lines({key: value}, sources)
            continue
        lines.append(f"{KEY}:")
        for part, phase in zip((*plan.earlier, plan), value, strict=True):
            block = block_lines(phase, _own_sources(part))
            lines += [f"{'    ' if number else '  - '}{line}" for number, line in enumerate(block)]
    return "\n".join(lines) + "\n"
