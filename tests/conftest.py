from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftkit.registry import METHODS, PLUGIN_FILES, TASKS
from tests.tiny import save_tiny

LABELS = {"calm": "w1 w2 w3", "angry": "w11 w12 w13", "glad": "w21 w22 w23"}


# A CI runner may start the suite with Ctrl-C ignored, as shells start background jobs; its children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def write_rows(path: Path, count: int, seed: int) -> None:
    """Sentences of uneven length whose label shows in some of their words, so that a tiny model can learn it."""
    generator = random.Random(seed)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            label = list(LABELS)[number % 3]
            words = [f"w{generator.randrange(30, 41)}" for _ in range(generator.randrange(1, 12))] + generator.choices(
                LABELS[label].split(), k=3
            )
            generator.shuffle(words)
            stream.write(json.dumps({"text": " ".join(words), "label": label}) + "\n")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT on disk."""
    folder = tmp_path_factory.mktemp("model") / "bert"
    save_tiny(folder, "bert")
    return folder


@pytest.fixture(autouse=True)
def own_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test loads as a plug-in is gone after it."""
    for registry in (METHODS, TASKS):
        monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    before = list(PLUGIN_FILES)
    yield
    PLUGIN_FILES[:] = before


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_folder: Path) -> Callable[..., Path]:
    """Writes a recipe on small data; keyword arguments replace top-level keys (as YAML flow text)."""

    def make(**keys: str) -> Path:
        for number, (name, count) in enumerate({"train": 48, "validation": 15, "test": 13}.items()):
            if not (tmp_path / f"{name}.jsonl").exists():
                write_rows(tmp_path / f"{name}.jsonl", count, number)
        values = {
            "model": str(tiny_folder),
            "task": "text-classification",
            "data": "{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}",
            "method": "{name: lora, rank: 4}",
            "train": "{epochs: 2.0, batch_size: 8, learning_rate: 1e-2, evaluate_every: {epochs: 0.5}}",
            **keys,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()), encoding="utf-8")
        return path

    return make


@pytest.fixture
def exports_proved_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are proved in this process instead of a new one, which costs seconds; for tests of which others start the new one."""
    from ftkit.run import exporting
    from tests.matrix.cell import verify_here

    monkeypatch.setattr(exporting, "verify", verify_here)
