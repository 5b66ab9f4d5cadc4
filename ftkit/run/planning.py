"""What would happen: the resolved recipe, sizes, parameters, steps, memory and disk, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ftkit.data.encoding import encode_checked
from ftkit.data.splits import Splits, load_splits
from ftkit.models.facts import ModelFacts, read_facts
from ftkit.recipe.phase_plans import plan_phases, whole_sources, whole_values, whole_yaml
from ftkit.recipe.plan import Plan, make_plan
from ftkit.recipe.schema import Recipe
from ftkit.run.baseline import Baseline, read_baseline_of, refuse_other_rows
from ftkit.run.machine import has_gpu
from ftkit.run.measurements import gated_split
from ftkit.run.observer import Observer
from ftkit.tasks.base import Task

MIB = 2**20
FLOAT32_BYTES = 4
OPTIMIZER_STATES = {"adamw": 2.0, "sgd": 0.0, "adafactor": 0.05, "adamw_8bit": 0.52}
"""Extra numbers an optimizer keeps for each trained one, in units of a float32 (SGD: one more with momentum)."""


def make_plan_here(recipe: Recipe, facts: ModelFacts | None = None) -> Plan:
    """The plan on this machine, with those of all phases. Asks torch what the GPU can do only where there seems to be one."""
    gpu = has_gpu()
    known, bf16 = facts or read_facts(recipe.model, recipe.origin.base), gpu and _gpu_computes_bf16()

    def make(phase: Recipe) -> Plan:
        return make_plan(phase, known, gpu=gpu, gpu_bf16=bf16)

    return plan_phases(recipe, make) if recipe.earlier else make(recipe)


def _gpu_computes_bf16() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def validation_report(recipe: Recipe, observer: Observer | None = None) -> dict[str, Any]:
    """Everything that can be checked without torch: recipe, model folder, method against model, every data row."""
    watching = observer or Observer()
    watching.stage("checking the recipe")
    plan = make_plan_here(recipe)
    baseline = read_baseline_of(plan.recipe)
    watching.stage("reading data")
    splits = load_splits(plan.recipe.data, plan.task(), recipe.origin.base, watching)
    _refuse_other_baseline(baseline, plan, splits)
    return {
        "plan": whole_values(plan),
        "sources": whole_sources(plan),
        "splits": {name: {"rows": len(table)} for name, table in splits.items()},
        "notes": [*_unchecked_model(plan), *splits.notes],
    }


def _refuse_other_baseline(baseline: Baseline | None, plan: Plan, splits: Splits) -> None:
    """Raises RecipeError if the gates compare with a baseline that was measured on other rows."""
    if baseline is not None:
        tables = dict(splits.items())
        split = gated_split(tables)
        refuse_other_rows(baseline, plan.recipe, split, tables[split].fingerprint() if split in tables else None)


def _unchecked_model(plan: Plan) -> list[str]:
    """A note for a hub id that is not on this machine."""
    if plan.facts.path is not None:
        return []
    name = plan.recipe.model.name
    return [f"the model itself was not checked: {name} is a hub id that is not on this machine, and its first use downloads it"]


def plan_report(recipe: Recipe, *, observer: Observer | None = None, allow_code: bool = False) -> dict[str, Any]:
    """The plan with measured sizes: splits, truncation, parameters, steps, and estimates of memory and disk.

    Of a recipe in phases, `phases` holds these of each; beside it stand the sums of steps and disk, and the memory of the largest.
    """
    from ftkit.models.quiet import quiet_libraries

    quiet_libraries()
    watching = observer or Observer()
    watching.stage("checking the recipe")
    plan = make_plan_here(recipe)
    baseline = read_baseline_of(plan.recipe)
    parts = (*plan.earlier, plan)
    sizes, rows = [], _encoded(parts[0], watching, allow_code)
    _refuse_other_baseline(baseline, plan, rows.splits)
    for part in parts:
        if part.recipe.task != rows.plan.recipe.task or part.method().source_column != rows.task.source_column:
            rows = _encoded(part, watching, allow_code)
        # Of random weights there is nothing to load, though the phase will find those of the one before it.
        model = part.recipe.model_copy(update={"model": parts[0].recipe.model})
        watching.stage("loading the model")
        sizes.append(_sizes(replace(part, recipe=model), rows, allow_code))
    return {
        "recipe": whole_values(plan),
        "yaml": whole_yaml(plan),
        "sources": whole_sources(plan),
        "splits": _split_facts(rows.splits, rows.stores, rows.task),
        **(_of_phases(parts, sizes) if plan.earlier else sizes[0]),
        "notes": list(rows.splits.notes),
    }


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """What a plan was measured on."""

    plan: Plan
    task: Task
    splits: Splits
    processor: Any
    stores: Mapping[str, Any]


def _encoded(plan: Plan, observer: Observer, allow_code: bool) -> _Rows:
    from ftkit.run.wiring import encode_splits, prepare_processor

    task = plan.task()
    task.allow_code = allow_code
    observer.stage("reading data")
    splits = load_splits(plan.recipe.data, task, plan.recipe.origin.base, observer)
    processor, key = prepare_processor(plan)
    data = plan.recipe.data
    stores = encode_splits(splits, task, processor, key, cache=data.cache, observer=observer, num_workers=data.num_workers)
    return _Rows(plan=plan, task=task, splits=splits, processor=processor, stores=stores)


def _sizes(plan: Plan, rows: _Rows, allow_code: bool) -> dict[str, Any]:
    """What one training needs."""
    from ftkit.models.load import trainable_report
    from ftkit.run.wiring import prepare_model

    prepared = prepare_model(plan, rows.task, rows.processor, seed=plan.recipe.seed, allow_code=allow_code)
    parameters = trainable_report(prepared.model, prepared.layout)
    return {
        "parameters": parameters,
        "steps": _steps(plan, rows.stores["train"], rows.splits, rows.task, rows.processor),
        "memory": _memory(prepared, rows.stores, parameters),
        "disk": disk_of(plan, parameters),
    }


def _of_phases(parts: Sequence[Plan], sizes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "phases": [{"method": part.recipe.method.name, **size} for part, size in zip(parts, sizes, strict=True)],
        "steps": {"total": sum(size["steps"]["total"] for size in sizes)},
        "memory": max((size["memory"] for size in sizes), key=lambda memory: memory["total_estimate"]),
        "disk": {name: sum(size["disk"][name] for size in sizes) for name in sizes[0]["disk"]},
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
    total = count_steps(train, batches)
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


def disk_of(plan: Plan, parameters: Mapping[str, Any]) -> dict[str, float]:
    """MiB that the run folder will hold at most: checkpoints, the best weights and exports."""
    train, can = plan.recipe.train, plan.method().capabilities
    trained = parameters["trainable"] * FLOAT32_BYTES / MIB
    states = OPTIMIZER_STATES[train.optimizer] + (1.0 if train.momentum else 0.0)
    merged = parameters["total"] * FLOAT32_BYTES / MIB if "merged" in plan.recipe.export else 0.0
    adapter = trained if "adapter" in plan.recipe.export and can.adapter else 0.0
    # Beside each checkpoint the weights that were best then, and one of both is being written.
    checkpoints = trained * (2.0 + states) * (train.keep_checkpoints + 1)
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
                {
                    "row": index + 1,
                    "place": table.place(index),
                    "tokens": tokens,
                    "truncated": bool(features.get("truncated", False)),
                }
            )
    return shown
