from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.benchmarks import tiny_tasks
from tests.benchmarks.test_benchmarks import SCRIPTS
from tests.tiny import save_tiny

LABELS = {"calm": "w1 w2 w3", "angry": "w11 w12 w13", "glad": "w21 w22 w23"}


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a module of scripts/benchmarks/sides by name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return lambda name: importlib.import_module(f"sides.{name}")


@pytest.fixture
def request_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a request for a measurement of a task with a method; further words are options of the task and keys of `train`."""
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))

    def make(
        task: str, method: str = "full", *, tiny: tiny_tasks.Tiny | None = None, options: Any = None, **train: Any
    ) -> dict[str, Any]:
        return tiny_tasks.request(tmp_path, task, tiny or tiny_tasks.TASKS[task], method, options or {}, **train)

    return make


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A LoRA recipe on a tiny BERT and rows of uneven length."""
    save_tiny(tmp_path / "bert", "bert")
    generator = random.Random(0)
    for name, count in {"train": 52, "validation": 8, "test": 24}.items():
        rows = []
        for number in range(count):
            label = list(LABELS)[number % 3]
            words = [f"w{generator.randrange(30, 41)}" for _ in range(generator.randrange(1, 12))]
            words += generator.choices(LABELS[label].split(), k=3)
            rows.append(json.dumps({"text": " ".join(words), "label": label}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    path = tmp_path / "tiny.yaml"
    keys = {
        "model": str(tmp_path / "bert"),
        "task": "text-classification",
        "data": "{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}",
        "method": "{name: lora, rank: 4}",
        "train": "{epochs: 2, batch_size: 8, learning_rate: 1e-2, early_stopping: {patience: 1}}",
        "export": "[adapter]",
    }
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()), encoding="utf-8")
    return path
