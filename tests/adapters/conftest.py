from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import ftkit
from tests.conftest import write_rows
from tests.tiny import save_tiny

Train = Callable[..., Path]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT, rows and what was trained on them; shared, so that nothing is trained twice."""
    folder = tmp_path_factory.mktemp("workshop")
    save_tiny(folder / "bert", "bert")
    for number, (name, count) in enumerate({"train": 48, "validation": 15, "test": 13}.items()):
        write_rows(folder / f"{name}.jsonl", count, number)
    return folder


@pytest.fixture(scope="session")
def train(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains a run of this name once; keyword arguments replace top-level keys of the recipe (as YAML flow text)."""
    done: dict[str, Path] = {}

    def run(name: str, *overrides: str, **keys: str) -> Path:
        if name in done:
            return done[name]
        data = ", ".join(f"{split}: {workshop / f'{split}.jsonl'}" for split in ("train", "validation", "test"))
        values = {
            "model": str(workshop / "bert"),
            "task": "text-classification",
            "data": f"{{{data}, cache: false}}",
            "method": "{name: lora, rank: 4}",
            "train": "{epochs: 2.0, batch_size: 8, learning_rate: 1e-2}",
            **keys,
        }
        path = tmp_path_factory.mktemp("recipes") / f"{name}.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()), encoding="utf-8")
        done[name] = ftkit.train(ftkit.load_recipe(path, overrides), output=workshop / "runs" / name).folder
        return done[name]

    return run


@pytest.fixture(scope="session")
def first(train: Train) -> Path:
    return train("first")


@pytest.fixture(scope="session")
def second(train: Train) -> Path:
    return train("second", "seed=1", "train.learning_rate=2e-2")


@pytest.fixture(scope="session")
def tuned(train: Train) -> Path:
    return train("tuned", method="full")


@pytest.fixture(scope="session")
def relabeled(train: Train, workshop: Path) -> Path:
    """A run with other labels on the same base."""
    rows = [json.loads(line) for line in (workshop / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    text = "".join(json.dumps({**row, "label": "even" if number % 2 else "odd"}) + "\n" for number, row in enumerate(rows))
    (workshop / "other.jsonl").write_text(text, encoding="utf-8")
    return train("relabeled", data=f"{{train: {workshop / 'other.jsonl'}, split: {{validation: 0.25}}, cache: false}}")


@pytest.fixture(scope="session")
def renamed(train: Train, workshop: Path) -> Path:
    """A run with as many labels under other names: its trained values fit the model of the first one."""
    for split in ("train", "validation", "test"):
        text = (workshop / f"{split}.jsonl").read_text(encoding="utf-8")
        (workshop / f"renamed-{split}.jsonl").write_text(
            text.replace('"calm"', '"zen"').replace('"angry"', '"mad"'), encoding="utf-8"
        )
    data = ", ".join(f"{split}: {workshop / f'renamed-{split}.jsonl'}" for split in ("train", "validation", "test"))
    return train("renamed", data=f"{{{data}, cache: false}}")


@pytest.fixture(scope="session")
def on_other_base(train: Train, workshop: Path) -> Path:
    save_tiny(workshop / "other-bert", "bert", seed=5)
    return train("on_other_base", model=str(workshop / "other-bert"))
