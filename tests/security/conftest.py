from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import ftkit
from ftkit.cli.app import main
from tests.conftest import write_rows
from tests.security.hostile import Mark
from tests.tiny import save_tiny


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


Command = Callable[..., Ended]


@pytest.fixture
def mark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mark]:
    """What hostile files of a test make if they are executed; that none was is checked after it."""
    found = Mark(tmp_path_factory.mktemp("mark") / "executed")
    yield found
    assert not found.path.exists(), "a hostile file was executed"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command line in this process, in a working folder of its own. No traceback ever shows."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for name in ("CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "FTKIT_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str | Path) -> Ended:
        with pytest.raises(SystemExit) as ending:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        ended = Ended(int(ending.value.code or 0), captured.out, captured.err)
        assert "Traceback" not in ended.said
        assert "internal error" not in ended.said, ended.said
        return ended

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a finished run (`run`, one step, exported as an adapter), its recipe and its rows. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_folder, folder / "bert")
    write_rows(folder / "train.jsonl", 24, 0)
    recipe = {
        "model": str(folder / "bert"),
        "task": "text-classification",
        "data": {"train": str(folder / "train.jsonl"), "split": {"validation": 0.25}},
        "method": {"name": "lora", "rank": 2},
        "train": {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": {"steps": 1}},
        "export": ["adapter"],
    }
    (folder / "recipe.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTKIT_CACHE", str(folder / "cache"))
        ftkit.train(ftkit.load_recipe(folder / "recipe.yaml"), output=folder / "run")
    return folder


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished / "run", tmp_path / "copies" / "run", symlinks=True)


@pytest.fixture
def bert(tmp_path: Path, tiny_folder: Path) -> Path:
    """A copy of a tiny BERT, to be changed."""
    return shutil.copytree(tiny_folder, tmp_path / "models" / "bert")


@pytest.fixture(scope="session")
def llama_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama") / "llama", "llama", "AutoModelForCausalLM")


@pytest.fixture
def llama(tmp_path: Path, llama_source: Path) -> Path:
    """A copy of a tiny Llama, to be changed."""
    return shutil.copytree(llama_source, tmp_path / "models" / "llama")


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT. Not to be changed."""
    return save_tiny(tmp_path_factory.mktemp("vit") / "vit", "vit")
