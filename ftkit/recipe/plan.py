"""The plan: a recipe with every `auto` replaced, and where each value came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftkit.errors import Problem, RecipeError
from ftkit.methods.base import Default, Method
from ftkit.models.facts import ModelFacts
from ftkit.paths import PACKAGE_PREFIX
from ftkit.recipe.expectations import FILE, VERSUS, gated_metrics
from ftkit.recipe.schema import Component, Recipe
from ftkit.recipe.writing import block_lines
from ftkit.registry import METHODS, TASKS
from ftkit.tasks.base import Task
from ftkit.tasks.parts.sources import with_sources

FALLBACKS = {
    "train.epochs": Default(value=3.0, source="ftkit: usual number of passes for a fine-tuning run"),
    "train.weight_decay": Default(value=0.0, source="ftkit: no decay unless the method asks for it"),
    "train.warmup_ratio": Default(value=0.06, source="RoBERTa (Liu et al. 2019), appendix C: warm-up over 6 % of the steps"),
    "model.dtype": Default(value="float32", source="ftkit: full precision unless the recipe says otherwise"),
}


@dataclass(frozen=True)
class Plan:
    """A recipe that leaves nothing open.

    recipe: no value is `auto` except `model.attention` and source formats, where transformers and the file ending decide, and
    `data.num_workers`, which changes nothing but the speed on a machine.
    sources: for each value that was `auto`, by dotted key: a paper, a measurement, a rule.
    Relative paths that exist are made absolute.
    earlier: plans of the phases before this one, see `recipe.phase_plans`.
    """

    recipe: Recipe
    facts: ModelFacts
    sources: Mapping[str, str] = field(default_factory=dict)
    earlier: tuple[Plan, ...] = ()

    def task(self) -> Task:
        """A fresh task object with the planned options, which reads what the method needs of a row and knows the metrics that the
        recipe counts on."""
        task = with_sources(TASKS.get(self.recipe.task.name), self.method().source_column)(self.recipe.task.options)
        gated = {name: f"expect.{key}" for name, key in gated_metrics(self.recipe.expect).items()}
        task.counted_on = {self.recipe.train.best_metric: "train.best_metric"} | gated
        return task

    def method(self) -> Method:
        """A fresh method object with the planned options."""
        return METHODS.get(self.recipe.method.name)(self.recipe.method.options)

    def to_yaml(self) -> str:
        """The plan, without earlier phases, as a recipe that `ftkit train` runs, with the source of each default beside it."""
        head = "# The complete recipe of a run. Comments say where a value came from that the recipe left to ftkit."
        return "\n".join([head, *block_lines(recipe_values(self.recipe), self.sources)]) + "\n"


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, in the order people write one."""
    values = recipe.model_dump(mode="json", exclude={"task", "method", "origin"}, warnings=False)
    for kind in ("task", "method"):
        component = getattr(recipe, kind)
        values[kind] = {"name": component.name, **component.options.model_dump(mode="json")}
    order = ["model", "task", "data", "method"]
    return {**{key: values[key] for key in order}, **{key: value for key, value in values.items() if key not in order}}


def make_plan(recipe: Recipe, facts: ModelFacts, *, gpu: bool, gpu_bf16: bool) -> Plan:
    """Fills in every default.

    gpu, gpu_bf16: whether there is a GPU, and whether it computes in bfloat16. Raises RecipeError for a combination that cannot
    work (all of them at once).
    """
    task = TASKS.get(recipe.task.name)(recipe.task.options)
    method = METHODS.get(recipe.method.name)(recipe.method.options)
    defaults = {**FALLBACKS, **_derived(recipe, task, gpu_bf16), **task.defaults(_room(facts, method)), **method.defaults(facts)}
    if recipe.train.warmup_steps is not None:
        defaults.pop("train.warmup_ratio", None)
    sources: dict[str, str] = {}
    filled = _fill(recipe, "", defaults, sources)
    plan = Plan(recipe=_absolute_paths(filled, recipe.origin.base), facts=facts, sources=sources)
    if problems := _misfits(plan, gpu):
        raise RecipeError(problems)
    return plan


def _room(facts: ModelFacts, method: Method) -> ModelFacts:
    """The model as a task sees it: with the positions that the method leaves."""
    taken = method.positions_taken(facts)
    return facts if facts.max_positions is None or not taken else replace(facts, max_positions=max(0, facts.max_positions - taken))


def _derived(recipe: Recipe, task: Task, gpu_bf16: bool) -> dict[str, Default]:
    """Defaults that follow from other keys, the task or the machine."""
    train = recipe.train
    metrics = {metric.name: metric for metric in task.metrics()}
    stopping = train.early_stopping.metric if train.early_stopping else "auto"
    chosen = train.best_metric if train.best_metric != "auto" else stopping
    best = chosen if chosen != "auto" else next(iter(metrics))
    why_best = f"the first metric of {task.name}" if chosen == "auto" else "train.early_stopping.metric"
    return {
        "train.best_metric": Default(value=best, source=why_best),
        "train.early_stopping.metric": Default(value=best, source="train.best_metric"),
        "train.early_stopping.mode": Default(value=metrics[best].direction, source=f"the direction of {best}"),
        "train.eval_batch_size": Default(
            value=2 * train.batch_size, source="twice train.batch_size: nothing is kept for a backward pass"
        ),
        "train.precision": Default(
            value="bf16" if gpu_bf16 else "fp32",
            source="this machine's GPU computes in bf16" if gpu_bf16 else "no GPU with bf16 here",
        ),
        "model.quantization.compute_dtype": Default(
            value="bfloat16" if gpu_bf16 else "float32",
            source="this machine's GPU computes in bf16" if gpu_bf16 else "no GPU with bf16 here",
        ),
        "data.split.stratify": Default(
            value=_stratify_column(recipe, task),
            source="the task's label column" if task.stratify_column() else "the task has no label column",
        ),
        "output": Default(value=f"runs/{recipe.origin.name}", source="the recipe's file name"),
    }


def _stratify_column(recipe: Recipe, task: Task) -> str:
    if recipe.data.split and recipe.data.split.group:
        return "none"
    return "auto" if task.stratify_column() else "none"


def _fill(value: Any, key: str, defaults: Mapping[str, Default], sources: dict[str, str]) -> Any:
    """A copy of a model with each `auto` field replaced where `defaults` knows its key."""
    changes: dict[str, Any] = {}
    for name in type(value).model_fields:
        current, inner = getattr(value, name), f"{key}.{name}" if key else name
        if isinstance(current, str) and current == "auto" and inner in defaults:
            changes[name] = defaults[inner].value
            if changes[name] != "auto":
                sources[inner] = defaults[inner].source
        elif hasattr(type(current), "model_fields"):
            holder = current.options if inner in ("task", "method") else current
            filled = _fill(holder, inner, defaults, sources)
            changes[name] = current.model_copy(update={"options": filled}) if holder is not current else filled
    return value.model_copy(update=changes)


def _absolute_paths(recipe: Recipe, base: Path) -> Recipe:
    """Local relative paths made absolute, so that the plan runs from any folder."""
    model = recipe.model
    names = {key: locate(getattr(model, key), base) for key in ("name", "decoder", "tokenizer") if getattr(model, key)}
    data = recipe.data
    sources = {
        split: [source.model_copy(update={"path": locate(source.path, base)}) for source in getattr(data, split)]
        for split in ("train", "validation", "test")
        if getattr(data, split) is not None
    }
    options = recipe.task.options
    written = {name: getattr(options, name) for name in TASKS.get(recipe.task.name).path_options}
    files = {name: locate(text, base) for name, text in written.items() if isinstance(text, str) and Path(text).suffix}
    task = recipe.task.model_copy(update={"options": options.model_copy(update=files)})
    method = _with_absolute_folders(recipe.method, base)
    changes: dict[str, Any] = {
        "model": model.model_copy(update=names),
        "task": task,
        "data": data.model_copy(update=sources),
        "method": method,
    }
    if (versus := recipe.expect.get(VERSUS)) is not None:
        changes["expect"] = {**recipe.expect, VERSUS: {**versus, FILE: locate(versus[FILE], base)}}
    return recipe.model_copy(update=changes)


def _with_absolute_folders(method: Component, base: Path) -> Component:
    changes: dict[str, Any] = {}
    for name in METHODS.get(method.name).path_options:
        value = getattr(method.options, name)
        if value is not None:
            changes[name] = locate(value, base) if isinstance(value, str) else [locate(text, base) for text in value]
    return method.model_copy(update={"options": method.options.model_copy(update=changes)}) if changes else method


def locate(text: str, base: Path) -> str:
    """An absolute path for a relative one that exists here or beside the recipe; other texts (hub ids, `package:`) as they are.

    A glob or `#count` ending is kept.
    """
    if text.startswith((PACKAGE_PREFIX, "hub:")) or os.path.isabs(text):
        return text
    stem = text if os.path.exists(text) else text.rpartition("#")[0] or text
    fixed = Path(*_fixed_parts(stem))
    for folder in (Path.cwd(), base):
        if fixed.parts and (folder / fixed).exists():
            return str((folder / text).absolute())
    return text


def _fixed_parts(text: str) -> list[str]:
    parts: list[str] = []
    for part in Path(text).parts:
        if any(sign in part for sign in "*?["):
            break
        parts.append(part)
    return parts


def _misfits(plan: Plan, gpu: bool) -> list[Problem]:
    recipe, facts, task, method = plan.recipe, plan.facts, plan.task(), plan.method()
    found: list[tuple[str, str, str]] = []
    if unsuited := _unsuited(recipe, facts, task):
        found.append(unsuited)
    else:  # Another model will have other limits.
        if task.needs_offsets and not facts.offsets:
            message = f"its tokenizer does not say which characters its tokens are; {task.needs_offsets}"
            key = "model.tokenizer" if recipe.model.tokenizer else "model.name"
            found.append((key, message, "Choose a model with a fast tokenizer (tokenizer.json)"))
        if reason := task.refusal(_room(facts, method)):
            found.append(("task", reason, ""))
        if reason := _unfusable(method) or method.refusal(facts) or method.task_refusal(task, facts):
            found.append(("method", reason, ""))
    held_back = recipe.data.validation or (recipe.data.split and recipe.data.split.validation)
    if task.needs_validation and not held_back:
        found.append(
            ("task", f"{task.needs_validation} needs validation rows, and there are none", "Set data.split.validation: 0.1")
        )
    if recipe.model.weights == "random" and not method.capabilities.from_scratch:
        found.append(("model.weights", f"random weights: {method.name} would leave most of them random", "Use `method: full`"))
    if recipe.train.sharding != "none":
        found += _sharding_misfits(recipe, method)
    if recipe.model.quantization is not None:
        found += _quantization_misfits(recipe, method)
    if recipe.train.precision == "fp16" and not gpu:
        found.append(("train.precision", "fp16 needs a GPU and there is none here", "Use `precision: auto` (fp32 here) or `bf16`"))
    if recipe.train.learning_rate == "auto":
        found.append(("train.learning_rate", f"{method.name} has no default for this model", "Give a number"))
    return [Problem(message=message, key=key, hint=hint) for key, message, hint in found]


def _unfusable(method: Method) -> str:
    """Which adapter that a method fuses is of one whose adapters do not fuse, '' if none is."""
    for folder, kind in method.member_types().items():
        name = kind.lower().replace("_", "-")
        if name not in METHODS.names() or not METHODS.get(name).capabilities.fusable:
            able = [name for name in METHODS.names() if METHODS.get(name).capabilities.fusable]
            return f"{folder} holds an adapter of the kind {kind}; only those of {' and '.join(able)} fuse"
    return ""


def _unsuited(recipe: Recipe, facts: ModelFacts, task: Task) -> tuple[str, str, str] | None:
    """Why models of this kind cannot do the task at all."""
    if recipe.model.decoder is not None and not task.takes_pairs:
        message = f"`decoder` makes a sequence-to-sequence model out of two; {task.name} takes a single model"
        return ("model.decoder", message, "Leave it out, or choose the task seq2seq")
    if facts.kind in task.model_kinds | {"unknown"}:
        return None
    kinds = ", ".join(sorted(task.model_kinds))
    message = f"{facts.model_type} is of the kind {facts.kind!r}; {task.name} needs one of: {kinds}"
    beside = ", or put a decoder beside it with `model.decoder`" if task.takes_pairs and facts.kind == "encoder" else ""
    return ("model.name", message, f"Choose another model{beside}")


def _sharding_misfits(recipe: Recipe, method: Method) -> list[tuple[str, str, str]]:
    train, reasons = recipe.train, []
    if not method.capabilities.shardable:
        reasons.append((f"{method.name} needs the whole model in each process", "Use `none`"))
    if recipe.model.quantization is not None:
        reasons.append(("quantized weights cannot be divided", "Use `none`: they are small already"))
    if train.compile:
        reasons.append(("compiled models cannot be divided", "Set `train.compile: false`"))
    if train.precision == "fp16":
        reasons.append(("the loss scale of fp16 is not kept together over processes", "Use `train.precision: bf16`"))
    if train.optimizer in ("adafactor", "adamw_8bit"):
        reasons.append((f"{train.optimizer} keeps a state that cannot be divided", "Use `train.optimizer: adamw`"))
    if train.gradual_unfreezing is not None:
        reasons.append(("what is frozen for a time cannot be divided", "Remove `train.gradual_unfreezing`"))
    return [("train.sharding", message, hint) for message, hint in reasons]


def _quantization_misfits(recipe: Recipe, method: Method) -> list[tuple[str, str, str]]:
    key = "model.quantization"
    if not method.capabilities.quantized:
        return [
            (key, f"{method.name} does not work on quantized weights", "Use `method: lora` with its default start, or leave it out")
        ]
    if recipe.model.weights == "random":
        return [(key, "random weights are trained, and quantized ones cannot be", "Leave it out")]
    if find_spec("bitsandbytes") is None:
        return [(key, "needs the package bitsandbytes, which is not installed", "pip install 'ftkit[quant]', or leave it out")]
    return []
