"""What would happen: the resolved recipe, sizes, parameters, steps, memory and disk, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftkit.data.encoding import encode_checked
from ftkit.data.splits import Splits, load_splits
from ftkit.models.facts import ModelFacts, read_facts
from ftkit.recipe.plan import Plan, make_plan, recipe_values
from ftkit.recipe.schema import Recipe
from ftkit.run.machine import has_gpu
from ftkit.run.observer import Observer

MIB = 2**20
FLOAT32_BYTES = 4
OPTIMIZER_STATES = {"adamw": 2.0, "sgd": 0.0, "adafactor": 0.05, "adamw_8bit": 0.52}
"""Extra numbers an optimizer keeps for each trained one, in units of a float32 (SGD: one more with momentum)."""


def make_plan_here(recipe: Recipe, facts: ModelFacts | None = None) -> Plan:
    """The plan on this machine. Asks torch what the GPU can do only where there seems to be one."""
    gpu = has_gpu()
    return make_plan(recipe, facts or read_facts(recipe.model, recipe.origin.base), gpu=gpu, gpu_bf16=gpu and _gpu_computes_bf16())


def _gpu_computes_bf16() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def validation_report(recipe: Recipe, observer: Observer | None = None) -> dict[str, Any]:
    """Everything that can be checked without torch: recipe, model folder, method against model, every data row."""
    watching = observer or Observer()
    watching.stage("checking the recipe")
    plan = make_plan_here(recipe)
    watching.stage("reading data")
    splits = load_splits(plan.recipe.data, plan.task(), recipe.origin.base, watching)
    return {
        "plan": recipe_values(plan.recipe),
        "sources": dict(plan.sources),
        "splits": {name: {"rows": len(table)} for name, table in splits.items()},
        "notes": list(splits.notes),
    }


def plan_report(recipe: Recipe, *, observer: Observer | None = None, allow_code: bool = False) -> dict[str, Any]:
    """The plan with measured sizes: splits, truncation, parameters, steps, and estimates of memory and disk."""
    from ftkit.models.load import trainable_report
    from ftkit.models.quiet import quiet_libraries
    from ftkit.run.wiring import encode_splits, prepare_model, prepare_processor

    quiet_libraries()
    watching = observer or Observer()
    watching.stage("checking the recipe")
    plan = make_plan_here(recipe)
    task = plan.task()
    task.allow_code = allow_code
    watching.stage("reading data")
    splits = load_splits(plan.recipe.data, task, recipe.origin.base, watching)
    processor, key = prepare_processor(plan)
    data = plan.recipe.data
    stores = encode_splits(splits, task, processor, key, cache=data.cache, observer=watching, num_workers=data.num_workers)
    watching.stage("loading the model")
    prepared = prepare_model(plan, task, processor, seed=plan.recipe.seed, allow_code=allow_code)
    parameters = trainable_report(prepared.model, prepared.layout)
    return {
        "recipe": recipe_values(plan.recipe),
        "yaml": plan.to_yaml(),
        "sources": dict(plan.sources),
        "splits": _split_facts(splits, stores, task),
        "parameters": parameters,
        "steps": _steps(plan, stores["train"], splits, task, processor),
        "memory": _memory(prepared, stores, parameters),
        "disk": _disk(plan, parameters),
        "notes": list(splits.notes),
    }


def _split_facts(splits: Splits, stores: Mapping[str, Any], task: Any) -> dict[str, Any]:
    facts = {}
    for name, table in splits.items():
        lengths = stores[name].lengths
        facts[name] = {
            "rows": len(table),
            "features": len(stores[name]),
            "truncated": _truncated(stores[name]),
            "tokens": {
                "total": int(lengths.sum()),
                "mean": float(lengths.mean()),
                "median": float(np.median(lengths)),
                "longest": int(lengths.max()),
            },
            "description": task.describe(table),
        }
    return facts


def _truncated(store: Any) -> int:
    """Rows that lost tokens to the length limit."""
    rows = (feature.get("truncated", False) for start in range(0, len(store), 1000) for feature in store.take(_span(store, start)))
    return sum(bool(row) for row in rows)


def _span(store: Any, start: int) -> np.ndarray:
    return np.arange(start, min(start + 1000, len(store)))


def _steps(plan: Plan, store: Any, splits: Splits, task: Any, processor: Any) -> dict[str, int]:
    from ftkit.run.wiring import TrainingBatches
    from ftkit.training.loop import count_steps, warmup_steps

    train = plan.recipe.train
    batches = TrainingBatches(store, splits.train, task, processor, train, plan.recipe.seed)
    total = count_steps(train, batches, processes=1)
    per_epoch = math.ceil(len(batches.epoch(0)) / train.gradient_accumulation_steps)
    return {"total": total, "per_epoch": per_epoch, "warmup": warmup_steps(train, total)}


def _memory(prepared: Any, stores: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, float]:
    """MiB of weights, gradients and optimizer state (exact) and of activations of the largest batch (see `run.activations`)."""
    from ftkit.models.quantization import weight_bytes
    from ftkit.run.activations import largest_batch_bytes

    train = prepared.plan.recipe.train
    trained = parameters["trainable"]
    states = OPTIMIZER_STATES[train.optimizer] + (1.0 if train.momentum else 0.0)
    found = {
        "weights": sum(weight_bytes(parameter) for parameter in prepared.model.parameters()) / MIB,
        "gradients": trained * FLOAT32_BYTES / MIB,
        "optimizer": trained * states * FLOAT32_BYTES / MIB,
        "activations_estimate": largest_batch_bytes(prepared, stores["train"]) / MIB,
    }
    return {**found, "total_estimate": sum(found.values())}


def _disk(plan: Plan, parameters: Mapping[str, Any]) -> dict[str, float]:
    """MiB that the run folder will hold at most: checkpoints, the best weights and exports."""
    train, can = plan.recipe.train, plan.method().capabilities
    trained = parameters["trainable"] * FLOAT32_BYTES / MIB
    states = OPTIMIZER_STATES[train.optimizer] + (1.0 if train.momentum else 0.0)
    merged = parameters["total"] * FLOAT32_BYTES / MIB if "merged" in plan.recipe.export else 0.0
    adapter = trained if "adapter" in plan.recipe.export and can.adapter else 0.0
    checkpoints = trained * (1.0 + states) * (train.keep_checkpoints + 1) + trained
    return {"checkpoints": checkpoints, "exports": merged + adapter, "total": checkpoints + merged + adapter}


def inspect_rows(recipe: Recipe, *, split: str, rows: int) -> list[dict[str, Any]]:
    """The first rows of a split as the model will see them: (token, note) pairs, with where each row stands."""
    from ftkit.errors import RecipeError
    from ftkit.models.quiet import quiet_libraries
    from ftkit.run.wiring import prepare_processor

    quiet_libraries()
    plan = make_plan_here(recipe)
    task = plan.task()
    tables = dict(load_splits(plan.recipe.data, task, recipe.origin.base).items())
    if split not in tables:
        raise RecipeError(f"there is no {split!r} split", hint=f"This recipe has: {', '.join(tables)}")
    processor, _ = prepare_processor(plan)
    table = tables[split]
    shown = []
    for index in range(min(rows, len(table))):
        place = [table.place(index)].__getitem__
        for features in encode_checked(task, [table[index]], processor, training=split == "train", place=place):
            tokens = [list(pair) for pair in task.inspect(features, processor)]
            shown.append(
                {"row": index, "place": table.place(index), "tokens": tokens, "truncated": bool(features.get("truncated", False))}
            )
    return shown
