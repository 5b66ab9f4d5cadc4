"""Writes a commented recipe for a person to go on from. Comments come from the code that reads the keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftkit.cli.output import one_line
from ftkit.recipe.writing import flow

SCHEMA_FILE = "recipe.schema.json"
TRAIN_KEYS = ("epochs", "batch_size", "learning_rate")
OTHER_TRAIN_KEYS = (
    "gradient_accumulation_steps", "max_tokens", "schedule", "warmup_ratio", "weight_decay", "precision", "gradient_checkpointing",
)  # fmt: skip
COMMENT_COLUMN = 40


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the recipe is to say.

    sources: data sources by split; columns: {task column: (data column, what it looks like)}; group: the data column whose rows stay in
    one split; reason: the columns that the task was guessed from, '' if it was named; remarks: what a person should know besides.
    """

    task: Any
    method: Any
    model: str
    sources: Mapping[str, Any]
    columns: Mapping[str, tuple[Any, str]]
    task_options: Mapping[str, Any] = field(default_factory=dict)
    held_back: Mapping[str, float] = field(default_factory=dict)
    group: str = ""
    reason: str = ""
    remarks: Sequence[str] = ()
    file_name: str = "recipe.yaml"


def recipe_text(choices: Choices) -> str:
    """The recipe as YAML."""
    name = choices.file_name
    train = choices.sources["train"]
    guess = [f"# The task is a guess from the columns ({one_line(choices.reason, 200)}); `ftkit init --task NAME` takes another"]
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        f"# {choices.task.name} with {choices.method.name} on {one_line(train if isinstance(train, str) else train['path'])}",
        *(guess if choices.reason else []),
        *(f"# {one_line(remark, 600)}" for remark in choices.remarks),
        "#",
        f"# Check it: ftkit validate {name}    See all of it: ftkit plan {name}    Run it: ftkit train {name}",
        f"# Editors complete and check it after: ftkit schema --output {SCHEMA_FILE}",
        "",
        _line(
            "model", choices.model, "hub id, local folder, or package:<package>/<path>; pin a hub id: {name: ..., revision: ...}"
        ),
        "",
        *_component("task", choices.task, choices.task_options),
        "",
        *_data(choices),
        "",
        *_component("method", choices.method, {}),
        "",
        *_train(choices),
        "",
        _line("export", _exports(choices.method), "adapter: what PEFT loads; merged: what plain transformers loads"),
        *_closing(choices),
    ]
    return "\n".join(lines) + "\n"


def _component(kind: str, component: Any, options: Mapping[str, Any]) -> list[str]:
    lines = [f"{kind}:", _line("  name", component.name, component.summary)]
    lines += [_line(f"  {name}", value, _description(component.Options, name)) for name, value in options.items()]
    for name, option in component.Options.model_fields.items():
        if name not in options and not option.is_required():
            lines.append(_line(f"  # {name}", _plain(option), _description(component.Options, name)))
    return lines


def _data(choices: Choices) -> list[str]:
    lines = ["data:", *(_line(f"  {split}", path) for split, path in choices.sources.items())]
    if choices.held_back:
        lines += [
            "  split:",
            *(_line(f"    {split}", share, "share of the training rows") for split, share in choices.held_back.items()),
        ]
        lines.append(_line("    seed", 0))
        if choices.group:
            lines.append(_line("    group", choices.group, "rows with the same value stay in one split"))
    lines.append("  columns:")
    lines += [_line(f"    {name}", source, look) for name, (source, look) in choices.columns.items()]
    return lines


def _train(choices: Choices) -> list[str]:
    from ftkit.recipe.schema import TrainSpec

    fields = TrainSpec.model_fields
    lines = ["train:", *(_line(f"  {key}", _plain(fields[key]), _description(TrainSpec, key)) for key in TRAIN_KEYS)]
    lines += [_line(f"  # {key}", _plain(fields[key]), _description(TrainSpec, key)) for key in OTHER_TRAIN_KEYS]
    lines.append(_line("  # evaluate_every", {"epochs": 0.5}, "or {steps: 100}"))
    if "validation" in {*choices.sources, *choices.held_back}:
        lines.append(_line("  # early_stopping", {"patience": 3}, _description(TrainSpec, "early_stopping")))
    return lines


def _closing(choices: Choices) -> list[str]:
    metrics = choices.task(choices.task.Options.model_validate(dict(choices.task_options))).metrics()
    best = metrics[0]
    # No number is a sensible bound of a loss or a perplexity whatever the data.
    gate = [_line("# expect", {best.name: ">= 0.9"}, "gate: ftkit train ends with exit code 4 if it is missed")]
    return [
        *(gate if best.direction == "max" else []),
        _line("seed", 0),
    ]


def _exports(method: Any) -> list[str]:
    can = method.capabilities
    return [form for form, fits in (("adapter", can.adapter), ("merged", can.merge or not can.adapter)) if fits]


def _plain(option: Any) -> Any:
    default = option.get_default(call_default_factory=True)
    return default.model_dump(mode="json", exclude_none=True) if hasattr(default, "model_dump") else default


def _description(model: Any, name: str) -> str:
    return model.model_fields[name].description or ""


def _line(key: str, value: Any, comment: str = "") -> str:
    text = f"{key}: {flow(value)}"
    return f"{text.ljust(COMMENT_COLUMN)}  # {one_line(comment)}" if comment else text
