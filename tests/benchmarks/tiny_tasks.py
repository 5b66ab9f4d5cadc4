"""For each task that has a reference: a tiny model without dropout and rows that it can learn a little of, in files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tiny import save_tiny

BATCH_SIZE = 4
ROWS = {"train": 18, "test": 14}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """family, auto_class: the model. row: a row of a split by its number. options: of the task."""

    family: str
    auto_class: str
    row: Callable[[random.Random, int], Row]
    options: Mapping[str, Any] = field(default_factory=dict)


def text_row(generator: random.Random, number: int) -> Row:
    label = number % 2 if generator.random() < 0.8 else 1 - number % 2
    return {"text": " ".join(f"w{(number * word) % 41}" for word in range(1, 3 + number % 7)), "label": label}


def tagged_row(generator: random.Random, number: int) -> Row:
    """Names are w1 to w9, places w11 to w19, and an entity may go on."""
    tokens: list[str] = []
    tags: list[str] = []
    for _ in range(2 + number % 5):
        kind, first = generator.choice([("PER", 1), ("LOC", 11), ("", 21)])
        count = generator.randrange(1, 4)
        tokens += [f"w{first + generator.randrange(9)}" for _ in range(count)]
        tags += [f"{'I' if place else 'B'}-{kind}" if kind else "O" for place in range(count)]
        tokens.append("w40")
        tags.append("O")
    return {"tokens": tokens, "tags": tags}


WINDOW = {"max_length": 24, "stride": 6, "n_best": 24, "max_answer_length": 4}
"""Three special tokens and a question of three leave the context 18 tokens of a window; windows begin 12 apart."""


def asked_row(generator: random.Random, number: int, *, answered: bool = True) -> Row:
    """Contexts of 18 or 30 words make one or two windows without padding, the same ones on both sides. The answer is w1 to w3."""
    words = [f"w{generator.randrange(10, 41)}" for _ in range(18 if number % 3 else 30)]
    at = generator.randrange(len(words) - 2)
    if answered:
        words[at : at + 2] = generator.choices(["w1", "w2", "w3"], k=2)
    texts = [" ".join(words[at : at + 2])] if answered else []
    starts = [len(" ".join([*words[:at], ""]))] if answered else []
    return {"question": "w4 w5 w6", "context": " ".join(words), "answers": {"text": texts, "answer_start": starts}}


def squad2_row(generator: random.Random, number: int) -> Row:
    return asked_row(generator, number, answered=number % 4 != 0)


def document_row(generator: random.Random, number: int) -> Row:
    start = generator.randrange(41)
    return {"text": " ".join(f"w{(start + 2 * word + generator.randrange(2)) % 41}" for word in range(5 + 3 * (number % 9)))}


TASKS = {
    "text-classification": Tiny(family="bert", auto_class="AutoModelForSequenceClassification", row=text_row),
    "token-classification": Tiny(family="bert", auto_class="AutoModelForTokenClassification", row=tagged_row),
    "question-answering": Tiny(family="bert", auto_class="AutoModelForQuestionAnswering", row=asked_row, options=WINDOW),
    "language-modeling": Tiny(
        family="llama", auto_class="AutoModelForCausalLM", row=document_row, options={"max_length": 16, "packing": True}
    ),
}
SQUAD2 = Tiny(family="bert", auto_class="AutoModelForQuestionAnswering", row=squad2_row, options=WINDOW)


def write(folder: Path, tiny: Tiny) -> None:
    """Model and rows."""
    save_tiny(folder / "model", tiny.family, tiny.auto_class)
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    (folder / "model" / "config.json").write_text(json.dumps({**config, **NO_DROPOUT}), encoding="utf-8")
    for seed, (name, count) in enumerate(ROWS.items()):
        generator = random.Random(seed)
        rows = [json.dumps(tiny.row(generator, number)) for number in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")


def request(folder: Path, task: str, tiny: Tiny, method: str, options: Mapping[str, Any], **train: Any) -> dict[str, Any]:
    """Writes model, rows and recipe; returns what asks for a measurement of it."""
    if not (folder / "model").is_dir():
        write(folder, tiny)
    settings = {"epochs": 3.0, "batch_size": BATCH_SIZE, "learning_rate": 1e-2, "weight_decay": 0.1, **train}
    keys = {
        "model": str(folder / "model"),
        "task": json.dumps({"name": task, **tiny.options, **options}),
        "data": "{train: train.jsonl, test: test.jsonl, leaks: 'off'}",
        "method": method,
        "train": json.dumps(settings),
        "export": "[merged]",
    }
    path = folder / "tiny.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()), encoding="utf-8")
    return {"recipe": str(path), "overrides": [], "seed": 3, "precision": "fp32"}
