"""lock.json: everything a run depends on, by content."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ftkit.data.splits import Splits
from ftkit.files import json_text, sha256_of
from ftkit.models.facts import ModelFacts
from ftkit.models.folder import model_files
from ftkit.recipe.plan import Plan, recipe_values
from ftkit.recipe.schema import Recipe
from ftkit.registry import METHODS, TASKS
from ftkit.run.machine import describe_machine, git_revision, versions

SCHEMA_VERSION = 2
MOST_SHOWN, LONGEST_SHOWN = 8, 100
NOT_TRAINING = ("output", "export", "expect", "trackers")
NOT_TRAINING_DATA = ("cache", "num_workers")
NOT_TRAINING_TRAIN = ("keep_checkpoints", "eval_batch_size", "num_processes", "sharding")


def make_lock(plan: Plan, splits: Splits, processor_key: str, *, world_size: int) -> dict[str, Any]:
    """Versions, hashes of model, data and tokenizer, git revision, machine.

    `training` is what decides the course of training; a run is only resumed where it is the same. `folder`: of the recipe, which its
    paths are seen from.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": versions(),
        "machine": describe_machine(),
        "git": git_revision(Path.cwd()),
        "model_files": hash_model(plan.facts),
        "training": {
            "recipe": training_values(plan),
            "folder": str(plan.recipe.origin.base),
            "data": {name: {"rows": len(table), "sha256": table.fingerprint()} for name, table in splits.items()},
            "tokenizer": processor_key,
            "world_size": world_size,
        },
    }


def hash_model(facts: ModelFacts) -> dict[str, str]:
    """sha256 of each config, tokenizer and weight file of the base model; empty for a model that is not on this machine."""
    hashes = {} if facts.path is None else {path.name: sha256_of(path) for path in model_files(facts.path)}
    decoder = [] if facts.decoder_path in (None, facts.path) else model_files(facts.decoder_path)
    return {**hashes, **{f"decoder/{path.name}": sha256_of(path) for path in decoder}}


def training_values(plan: Plan) -> dict[str, Any]:
    """The part of the plan that decides the course of training."""
    values = {key: value for key, value in recipe_values(plan.recipe).items() if key not in NOT_TRAINING}
    values["train"] = {key: value for key, value in values["train"].items() if key not in NOT_TRAINING_TRAIN}
    values["data"] = {key: value for key, value in values["data"].items() if key not in NOT_TRAINING_DATA}
    return values


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What keeps a run with the lock `new` from continuing one with the lock `old`, in words."""
    found = []
    before, now = old["training"], new["training"]
    found += _changed_in_words(before, now)
    found += [f"the {name} rows" for name in {**before["data"], **now["data"]} if before["data"].get(name) != now["data"].get(name)]
    if before["tokenizer"] != now["tokenizer"]:
        found.append("the tokenizer")
    if old["model_files"] != new["model_files"]:
        found.append("the files of the base model")
    return found


def edited_values(recipe: Recipe, lock: Mapping[str, Any]) -> list[str]:
    """Options of task and method that a plan.yaml has otherwise than the run was trained with, each with both values."""
    kinds, trained = ("task", "method"), lock["training"]["recipe"]
    old, new = ({kind: values[kind] for kind in kinds} for values in (trained, recipe_values(recipe)))
    return _changed_in_words({**lock["training"], "recipe": old}, {**lock["training"], "recipe": new})


def changed_values(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values of each recipe key that has another one, by dotted key; None where there is none.

    before, now: `recipe` and the `folder` that it lay in. Paths that are the same as seen from the recipes' folders are the same: what
    they lead to is compared by content.
    """
    old, new = (dict(_flat(lock["recipe"], "")) for lock in (before, now))
    found, paths = {}, _path_keys(now["recipe"])
    for key in {**old, **new}:
        was, is_now = old.get(key), new.get(key)
        same_place = paths.fullmatch(key) and _from_recipe(was, before["folder"]) == _from_recipe(is_now, now["folder"])
        if was != is_now and not same_place:
            found[key] = (was, is_now)
    return found


def _changed_in_words(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changed = changed_values(before, now)
    found = [f"{key}: was {_shown(was)}, is {_shown(is_now)}" for key, (was, is_now) in changed.items()]
    return [*found[:MOST_SHOWN], f"and {len(found) - MOST_SHOWN} more keys of the recipe"] if len(found) > MOST_SHOWN else found


def _path_keys(values: Mapping[str, Any]) -> re.Pattern[str]:
    """Dotted keys of a recipe that hold paths."""
    options = {"task": TASKS.get(values["task"]["name"]).path_options, "method": METHODS.get(values["method"]["name"]).path_options}
    named = [rf"{kind}\.{re.escape(name)}(\[\d+\])?" for kind, names in options.items() for name in names]
    return re.compile(
        "|".join([r"model\.(name|decoder|tokenizer)", r"expect\.vs\.file", r"data\.(train|validation|test)\[\d+\]\.path", *named])
    )


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The single values under a value of a recipe, by dotted key."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{number}]")
    else:
        yield key, value


def _from_recipe(value: Any, folder: str) -> Any:
    """An absolute path as it is seen from the recipe's folder; anything else as it is."""
    return os.path.relpath(value, folder) if isinstance(value, str) and os.path.isabs(value) else value


def _shown(value: Any) -> str:
    text = json_text(value)
    return text if len(text) <= LONGEST_SHOWN else f"...{text[3 - LONGEST_SHOWN :]}"
