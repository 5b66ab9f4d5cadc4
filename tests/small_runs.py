"""Finished runs of tiny models, one for each task that answers in its own way. Shared by tests of what is done with a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ftkit
from tests.tiny import tiny_model, tiny_tokenizer

WORDS = [" ".join(f"w{(3 * row + place) % 20}" for place in range(3 + row % 4)) for row in range(16)]

TURNS = (
    "{% for turn in messages %}{% if turn.role == 'assistant' %}{% generation %} {{ turn.content }} </s>{% endgeneration %}"
    "{% else %} {{ '<cls>' if turn.role == 'system' else '<s>' }} {{ turn.content }} <sep>{% endif %}{% endfor %}"
)
"""A chat template in whose texts white space divides all tokens."""

Kind = tuple[str, str, str, Sequence[Mapping[str, Any]]]
KINDS: dict[str, Kind] = {
    "continues": ("llama", "AutoModelForCausalLM", "{name: language-modeling, max_length: 16}", [{"text": text} for text in WORDS]),
    "converses": (
        "llama",
        "AutoModelForCausalLM",
        "{name: instruction-tuning, max_length: 16, generation: {max_new_tokens: 8}}",
        [{"instruction": text, "output": "w1 w2"} for text in WORDS],
    ),
    "rewrites": (
        "t5",
        "AutoModelForSeq2SeqLM",
        "{name: seq2seq, metrics: [loss], generation: {max_new_tokens: 8}}",
        [{"source": text, "target": "w3 w4"} for text in WORDS],
    ),
    "compares": (
        "bert",
        "AutoModelForSequenceClassification",
        "text-classification",
        [{"text": text, "text_pair": WORDS[row // 2], "label": ["same", "other"][row % 2]} for row, text in enumerate(WORDS)],
    ),
    "finds": (
        "bert",
        "AutoModelForQuestionAnswering",
        "question-answering",
        [
            {"id": f"q{row}", "question": "w30", "context": text, "answers": {"text": [text.split()[1]], "answer_start": [3]}}
            for row, text in enumerate(["w1 w2 w3", "w4 w5 w6", "w7 w8 w9", "w2 w4 w6"] * 4)
        ],
    ),
    "tags": (
        "bert",
        "AutoModelForTokenClassification",
        "token-classification",
        [{"tokens": text.split(), "tags": ["B-A"] + ["O"] * (len(text.split()) - 1)} for text in WORDS],
    ),
}
"""Family, auto class, task of the recipe, and rows."""


def small_run(folder: Path, kind: str, **train: Any) -> Path:
    """Trains two steps of a run of a kind inside `folder`; returns the run's folder."""
    family, auto_class, task, rows = KINDS[kind]
    save_varied(folder / "model", family, auto_class)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, **train}
    recipe = {"model": str(folder / "model"), "data": "{train: rows.jsonl, split: {validation: 0.25}}", "method": "lora"}
    lines = [f"{key}: {value}\n" for key, value in {**recipe, "task": task, "train": json.dumps(settings)}.items()]
    (folder / "recipe.yaml").write_text("".join(lines), encoding="utf-8")
    return ftkit.train(ftkit.load_recipe(folder / "recipe.yaml"), output=folder / "run").folder


def save_varied(folder: Path, family: str, auto_class: str) -> None:
    """As initialized, tiny models write one token whatever the prompt says."""
    import torch

    model, generator = tiny_model(family, auto_class), torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3, generator=generator)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer(family)
    tokenizer.chat_template = TURNS
    tokenizer.save_pretrained(folder)
