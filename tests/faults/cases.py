"""The recipes that faults are tried on: every task, and methods that keep a state of their own among what they train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.matrix.cell import Cell, write_recipe

STEPS = 8
TRAIN = {
    "max_steps": str(STEPS),
    "batch_size": "2",
    "checkpoint_every": "{steps: 2}",
    "evaluate_every": "{steps: 3}",
    "keep_checkpoints": "9",
}
PHASES = "phases: [{method: linear-probe, max_steps: 3}, {method: lora, max_steps: 5}]"


@dataclass(frozen=True)
class Case:
    """cell: task, method and model. train: besides `TRAIN`. phases: the recipe trains in these instead of one method."""

    cell: Cell
    train: Mapping[str, str] = field(default_factory=dict)
    phases: str = ""

    @property
    def name(self) -> str:
        """For tables and folders."""
        return f"{self.cell.task} {'in phases' if self.phases else self.cell.method} {self.cell.architecture}"


def _case(task: str, method: str, architecture: str, phases: str = "", **train: str) -> Case:
    return Case(Cell(task, method, architecture), train, phases)


CASES = (
    _case("text-classification", "full", "bert", gradient_accumulation_steps="2"),
    _case("text-classification", "lora", "roberta", optimizer="adafactor"),
    _case("text-classification", "lora", "bert", phases=PHASES),
    _case("text-classification", "bitfit", "distilbert", early_stopping="{patience: 2}"),
    _case("text-classification", "adapter", "bert", precision="bf16"),
    _case("text-classification", "diff-pruning", "bert"),
    _case("text-classification", "adalora", "bert"),
    _case("token-classification", "lora", "deberta-v2"),
    _case("token-classification", "prefix-tuning", "bert"),
    _case("question-answering", "full", "distilbert", gradual_unfreezing="{every: {steps: 2}}"),
    _case("question-answering", "ia3", "roberta"),
    _case("language-modeling", "full", "gpt2", gradient_checkpointing="true"),
    _case("language-modeling", "prompt-tuning", "qwen2"),
    _case("instruction-tuning", "lora", "llama"),
    _case("instruction-tuning", "vera", "qwen2"),
    _case("seq2seq", "full", "t5"),
    _case("seq2seq", "lora", "bart"),
    _case("seq2seq", "adapter", "bert + bert"),
    _case("image-classification", "full", "vit"),
    _case("image-classification", "compacter", "vit"),
)


def recipe_words(case: Case, folder: Path) -> list[str]:
    """The recipe's file and the overrides, as words of the command line. The file and what it names are made below `folder`."""
    path = write_recipe(case.cell, folder)
    if case.phases:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(("method:", "train:"))]
        path = path.with_name(f"phases-{path.name}")
        path.write_text("\n".join([*lines, case.phases, ""]), encoding="utf-8")
    settings = {**TRAIN, **case.train}
    if case.phases:
        del settings["max_steps"]
    return [str(path), *(f"train.{key}={value}" for key, value in settings.items())]
