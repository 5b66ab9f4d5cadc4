"""From a recipe file to a checked `Recipe`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftkit.errors import Problem, RecipeError
from ftkit.recipe.checking import check, key_homes, sound_part
from ftkit.recipe.expectations import gated_metrics, wrong_gates, wrong_names
from ftkit.recipe.overriding import apply_overrides, resolve_references
from ftkit.recipe.phases import KEY, has_phases, phase_documents, unmergeable_phases
from ftkit.recipe.reading import Document, dotted, read_file, read_text
from ftkit.recipe.schema import Component, Origin, Recipe, RecipeBody, Strict
from ftkit.recipe.secrecy import secret_values
from ftkit.registry import METHODS, TASKS, Registry

Rule = tuple[tuple[str | int, ...], str, str]
"""A broken rule: path of the key, message, hint."""

GATES = "expect"

COMPONENTS: dict[str, Registry[Any]] = {"task": TASKS, "method": METHODS}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe file with command line overrides applied.

    Raises RecipeError with every problem found, each with its place.
    """
    return _recipe(read_file(path), overrides, path.stem, path.parent.absolute())


def parse_recipe(text: str, name: str = "recipe", overrides: Sequence[str] = (), base: Path | None = None) -> Recipe:
    """Like `load_recipe`, from text; `name` is what messages call it, `base` the folder its relative paths start from."""
    return _recipe(read_text(text, name), overrides, name, base or Path.cwd())


def _recipe(document: Document, overrides: Sequence[str], name: str, base: Path) -> Recipe:
    apply_overrides(document, overrides)
    resolve_references(document)
    if secrets := list(secret_values(document)):
        raise RecipeError(secrets)
    if not isinstance(document.value, dict):
        what = "is empty" if document.value is None else "is not a mapping of keys"
        raise RecipeError(
            Problem(message=f"the recipe {what}", place=document.place(()), hint="Start from one: ftkit recipes list")
        )
    origin = Origin(name=name, base=base, text=document.text, overrides=tuple(overrides))
    return _in_phases(document, origin) if has_phases(document) else _checked(document, origin)


def _in_phases(document: Document, origin: Origin) -> Recipe:
    """The recipe of the last phase, which knows the earlier ones."""
    recipes: list[Recipe] = []
    documents = phase_documents(document)
    problems = unmergeable_phases(document)
    for number, phase in enumerate(documents, 1):
        own = replace(origin, phase=number, phase_place=document.place((KEY, number - 1)))
        try:
            recipes.append(_checked(phase, own))
        except RecipeError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise RecipeError(sorted(problems, key=_position))
    return recipes[-1].model_copy(update={"earlier": tuple(recipes[:-1])})


def _checked(document: Document, origin: Origin) -> Recipe:
    homes = _homes(document)
    problems: list[Problem] = []
    components: dict[str, Component] = {}
    for kind, registry in COMPONENTS.items():
        component, found = _component(kind, registry, document, homes)
        problems += found
        if component is not None:
            components[kind] = component
    rest = {key: value for key, value in document.value.items() if key not in COMPONENTS}
    body, found = check(RecipeBody, rest, document, (), homes)
    problems += [_with_component_names(problem) for problem in found]
    if (sound := body or sound_part(RecipeBody, rest)) is not None:
        problems += _across_keys(sound, components, document)
    if problems or body is None:
        raise RecipeError(sorted(problems, key=_position))
    fields = {name: getattr(body, name) for name in RecipeBody.model_fields}
    origin = replace(origin, gate_places=_gate_places(document))
    return Recipe.model_construct(None, **{**fields, **components, "origin": origin, "earlier": ()})


def _gate_places(document: Document) -> dict[str, str]:
    """Where each key of `expect` stands, by dotted key."""
    found: dict[str, str] = {}
    for name, value in (document.value.get(GATES) or {}).items():
        found[name] = document.place((GATES, name))
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": document.place((GATES, name, inner)) for inner in value}
    return found


def _homes(document: Document) -> dict[str, list[str]]:
    """Where each key name belongs: in the body, or in the options of the task and method that the recipe names."""
    homes = key_homes(RecipeBody)
    for kind, registry in COMPONENTS.items():
        value = document.value.get(kind)
        name = value.get("name") if isinstance(value, dict) else value
        if isinstance(name, str) and name in registry.names():
            for key, places in key_homes(registry.get(name).Options, kind).items():
                homes.setdefault(key, []).extend(places)
    return homes


def _component(
    kind: str, registry: Registry[Any], document: Document, homes: dict[str, list[str]]
) -> tuple[Component | None, list[Problem]]:
    value = document.value.get(kind)
    if isinstance(value, str):
        value = {"name": value}
    place = document.place((kind,))
    known = ", ".join(registry.names())
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None, [Problem(message=f"a {kind} name is required", place=place, key=kind, hint=f"Known: {known}")]
    name = value["name"]
    try:
        component = registry.get(name)
    except KeyError:
        near = registry.nearest(name)
        hint = f"Did you mean {near!r}? Known: {known}" if near else f"Known: {known}"
        return None, [Problem(message=f"unknown {kind} {name!r}", place=document.place((kind, "name")), key=kind, hint=hint)]
    rest = {key: item for key, item in value.items() if key != "name"}
    options, problems = check(component.Options, rest, document, (kind,), homes)
    if options is None:
        return None, problems
    if kind == "task" and (wrong := component(options).check_options()):
        return None, [Problem(message=wrong, place=place, key=kind)]
    return Component(name=name, options=options), []


def _with_component_names(problem: Problem) -> Problem:
    """`Known here:` of the top level names task and method too."""
    if "Known here: model, data" not in problem.hint:
        return problem
    hint = problem.hint.replace("model, data", "model, task, data, method")
    return Problem(message=problem.message, place=problem.place, key=problem.key, hint=hint)


def _position(problem: Problem) -> tuple[str, int, int]:
    name, *numbers = problem.place.rsplit(":", 2)
    line, column = (int(number) if number.isdigit() else 0 for number in (*numbers, "", "")[:2])
    return (name, line, column)


def _across_keys(body: RecipeBody, components: dict[str, Component], document: Document) -> list[Problem]:
    """Rules that concern several keys at once."""
    found: list[Rule] = []
    train, data = body.train, body.data
    has_validation = data.validation is not None or bool(data.split and data.split.validation)
    has_test = data.test is not None or bool(data.split and data.split.test)
    if train.early_stopping and not has_validation:
        found.append((("train", "early_stopping"), "needs validation rows", "Add `data.validation` or `data.split.validation`"))
    for name in ("validation", "test"):
        if getattr(data, name) is not None and data.split and getattr(data.split, name):
            found.append((("data", "split", name), f"`data.{name}` already names the {name} rows", "Remove one of the two"))
    if data.split and data.split.group and data.split.stratify not in ("auto", "none"):
        found.append(
            (("data", "split", "stratify"), "rows are grouped by `group` and cannot be stratified too", "Remove one of the two")
        )
    if data.split and data.split.validation + data.split.test >= 1:
        found.append((("data", "split"), "validation and test leave nothing to train on", "Their sum must be below 1"))
    if train.optimizer != "sgd" and train.momentum:
        found.append(
            (("train", "momentum"), f"the optimizer {train.optimizer!r} has no momentum", "Remove it, or use `optimizer: sgd`")
        )
    malformed = wrong_gates(body.expect)
    if not malformed and gated_metrics(body.expect) and not (has_validation or has_test):
        found.append((("expect",), "there is no test or validation split to read metrics off", "Add `data.test` or `data.split`"))
    found += malformed
    found += _component_rules(body, components)
    return [Problem(message=message, place=document.place(path), key=dotted(path), hint=hint) for path, message, hint in found]


def _component_rules(body: RecipeBody, components: dict[str, Component]) -> list[Rule]:
    found: list[Rule] = []
    if (method := components.get("method")) is not None:
        can = METHODS.get(method.name)(method.options).capabilities
        for index, form in enumerate(body.export):
            if form == "adapter" and not can.adapter:
                found.append(
                    (
                        ("export", index),
                        f"{method.name} trains the model itself; there is no separate adapter",
                        "Use `export: [merged]` (on the command line `export=merged`)",
                    )
                )
            if form == "merged" and can.adapter and not can.merge:
                message = f"what {method.name} trains cannot be merged into the model"
                found.append((("export", index), message, "Use `export: [adapter]` (on the command line `export=adapter`)"))
        if body.train.gradient_checkpointing and not can.checkpointing:
            found.append((("train", "gradient_checkpointing"), f"{method.name} does not work with it", "Set it to false"))
    if (task := components.get("task")) is not None:
        found += _metric_rules(body, TASKS.get(task.name)(task.options))
        found += _choice_rules(body, TASKS.get(task.name)(task.options))
    return found


def _metric_rules(body: RecipeBody, task: Any) -> list[Rule]:
    known = [metric.name for metric in task.metrics()]
    named: list[tuple[tuple[str | int, ...], str]] = [(("train", "best_metric"), body.train.best_metric)]
    if body.train.early_stopping:
        named.append((("train", "early_stopping", "metric"), body.train.early_stopping.metric))
    hint = f"The metrics of {task.name}: {', '.join(known)}"
    wrong: list[Rule] = []
    watched = body.train.early_stopping.metric if body.train.early_stopping else "auto"
    if "auto" not in (watched, body.train.best_metric) and watched != body.train.best_metric:
        message = f"watches {watched!r}, but `train.best_metric` is {body.train.best_metric!r}"
        wrong.append((("train", "early_stopping", "metric"), message, "One metric decides both; remove one of the two"))
    wrong += [(path, f"unknown metric {name!r}", hint) for path, name in named if name != "auto" and name not in known]
    wrong += wrong_names(body.expect, {metric.name: metric.headline for metric in task.metrics()}, body.export, task.name)
    if body.train.label_smoothing and not task.supports_label_smoothing:
        wrong.append((("train", "label_smoothing"), f"{task.name} as given has no labels to smooth", "Remove it"))
    return wrong


def _choice_rules(body: RecipeBody, task: Any) -> list[Rule]:
    """Without validation rows no metric picks weights. The task's first one, which plans name, then stands for none."""
    chosen, data = body.train.best_metric, body.data
    has_validation = data.validation is not None or bool(data.split and data.split.validation)
    known = [metric.name for metric in task.metrics()]
    if has_validation or chosen not in known[1:]:
        return []
    message = f"{chosen!r} would pick the best weights on validation rows, and there are none"
    return [(("train", "best_metric"), message, "Add `data.validation` or `data.split.validation`, or remove it")]


def options_schema() -> dict[str, type[Strict]]:
    """`task: name` / `method: name` and the Options class of each known component."""
    return {f"{kind}: {name}": registry.get(name).Options for kind, registry in COMPONENTS.items() for name in registry.names()}
