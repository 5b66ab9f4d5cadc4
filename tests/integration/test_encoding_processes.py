"""Tokenization in several processes as users meet it: interrupted, terminated, killed, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import write_rows

RecipeFile = Callable[..., Path]
ENOUGH_SECONDS = 60

PLUGIN = """
import time
from ftkit.tasks.text_classification import TextClassification

class SlowText(TextClassification):
    name = "slow-text"
    summary = "Text classification that takes its time."

    def encode(self, rows, processor, *, training=False):
        time.sleep(SECONDS)
        return super().encode(rows, processor, training=training)
"""


@pytest.fixture
def start(recipe_file: RecipeFile, tmp_path: Path) -> Callable[[float], subprocess.Popen[str]]:
    """Trains on 30,000 rows with a task that takes so many seconds for each thousand, with two encoding processes."""
    write_rows(tmp_path / "many.jsonl", 30_000, 7)
    data = "{train: many.jsonl, num_workers: 2}"
    recipe = recipe_file(task="{name: slow-text, max_length: 16}", data=data, train="{max_steps: 1, learning_rate: 1e-3}")

    def run(seconds: float) -> subprocess.Popen[str]:
        (tmp_path / "slow_text.py").write_text(PLUGIN.replace("SECONDS", str(seconds)))
        words = ["train", str(recipe), "--plugin", str(tmp_path / "slow_text.py"), "--output", str(tmp_path / "run")]
        return subprocess.Popen(
            [sys.executable, "-m", "ftkit", *words],
            env={**os.environ, "FTKIT_CACHE": str(tmp_path / "cache"), "CI": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def encoding_processes(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Those that a run has started, waited for until they encode."""
    until = time.monotonic() + ENOUGH_SECONDS
    while time.monotonic() < until and process.poll() is None:
        found = psutil.Process(process.pid).children()
        # What encodes has loaded the tokenizer.
        if len(found) == 2 and all(child.memory_info().rss > 80 * 2**20 for child in found):
            return found
        time.sleep(0.05)
    pytest.fail(f"no encoding processes: {process.communicate()}")


def wait_for_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=ENOUGH_SECONDS)
    assert not alive


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_processes_and_leaves_no_half_entry(
    start: Callable[[float], subprocess.Popen[str]], tmp_path: Path, number: int, code: int
) -> None:
    process = start(2.0)
    children = encoding_processes(process)
    signaled = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=ENOUGH_SECONDS)
    assert time.monotonic() - signaled < 20
    assert process.returncode == code, error
    assert f"{signal.Signals(number).name} received" in error
    assert "Traceback" not in error
    wait_for_end(children)
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_what_kill_9_leaves_is_no_entry_and_goes_with_the_next_run(
    start: Callable[[float], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(2.0)
    children = encoding_processes(process)
    process.kill()
    process.communicate()
    wait_for_end(children)
    tokens = tmp_path / "cache" / "tokens"
    assert sorted(entry.name[:6] for entry in tokens.iterdir()) == [".turn-", ".writi"]
    again = start(0.0)
    out, error = again.communicate(timeout=4 * ENOUGH_SECONDS)
    assert again.returncode == 0, error
    assert "reused from the cache" not in out
    assert len([entry for entry in tokens.iterdir() if (entry / "manifest.json").is_file()]) == len(list(tokens.iterdir())) == 1
