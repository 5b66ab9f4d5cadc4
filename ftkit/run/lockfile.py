"""lock.json: everything a run depends on, by content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ftkit.data.splits import Splits
from ftkit.files import json_text, sha256_of
from ftkit.models.facts import ModelFacts
from ftkit.models.folder import model_files
from ftkit.recipe.plan import Plan, recipe_values
from ftkit.run.machine import describe_machine, git_revision, versions

NOT_TRAINING = ("output", "export", "expect", "trackers")
NOT_TRAINING_DATA = ("cache", "num_workers")
NOT_TRAINING_TRAIN = ("keep_checkpoints", "eval_batch_size")


def make_lock(plan: Plan, splits: Splits, processor_key: str, *, world_size: int) -> dict[str, Any]:
    """Versions, hashes of model, data and tokenizer, git revision, machine.

    `training` is what decides the course of training; a run is only resumed where it is the same.
    """
    return {
        "schema_version": 1,
        "versions": versions(),
        "machine": describe_machine(),
        "git": git_revision(Path.cwd()),
        "model_files": hash_model(plan.facts),
        "training": {
            "recipe": training_digest(plan),
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


def training_digest(plan: Plan) -> str:
    """A hash of `training_values`."""
    return _digest(training_values(plan))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What keeps a run with the lock `new` from continuing one with the lock `old`, in words."""
    found = []
    before, now = old["training"], new["training"]
    if before["recipe"] != now["recipe"]:
        found.append("the recipe")
    found += [f"the {name} rows" for name in {**before["data"], **now["data"]} if before["data"].get(name) != now["data"].get(name)]
    if before["tokenizer"] != now["tokenizer"]:
        found.append("the tokenizer")
    if before["world_size"] != now["world_size"]:
        found.append(f"the number of processes ({before['world_size']} then, {now['world_size']} now)")
    if old["model_files"] != new["model_files"]:
        found.append("the files of the base model")
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json_text(value).encode()).hexdigest()
