"""A short round of every fault, and the harness itself: what it does not see would prove nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ftkit.registry import TASKS
from tests.faults.cases import CASES
from tests.faults.checks import differences, mistakable
from tests.faults.children import Ended
from tests.faults.harness import FAULTS, OF_MOUNTS, _share
from tests.faults.trial import wrong_end
from tests.small_runs import small_run

ROOT = Path(__file__).parents[2]

FORGETFUL = """
import sys
from pathlib import Path
from unittest.mock import patch

from ftkit.run import training
from tests.faults import harness

harness.preload()
with patch.object(training, "load_optimizer_state", lambda *arguments: None):
    rows = harness.run(Path(sys.argv[1]), kills=6, trials=0, cases=harness.CASES[:1])
print("WRONG", sum(len(row.wrong) for row in rows))
"""


def run(words: Sequence[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    # In a process of its own: what forks must not have threads, and this one has.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FTKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    environment |= {"TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=400, check=False)


def test_r2_nothing_is_lost_or_inexact_whatever_happens(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured: faults -->\nold\n<!-- end measured -->\nafter\n", encoding="utf-8")
    words = ["--kills", "6", "--trials", "1", "--recipes", "2", "--seed", str(os.getpid()), "--write", str(page)]
    done = run([str(ROOT / "scripts" / "reliability.py"), *words], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \| (\d+) \|$", done.stdout, re.MULTILINE)
    tried = {name: int(trials) for name, trials, _, _ in rows}
    assert set(FAULTS) - set(OF_MOUNTS) <= set(tried) <= set(FAULTS)
    assert min(tried.values()) >= 1
    assert sum(int(faults) for name, _, faults, _ in rows if name.startswith("SIGKILL")) >= 6
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| SIGTERM while training | 1 |" in text
    assert "\nold\n" not in text


def test_a_resume_that_forgets_the_optimizer_is_seen(tmp_path: Path) -> None:
    script = tmp_path / "forgetful.py"
    script.write_text(FORGETFUL, encoding="utf-8")
    done = run([str(script), str(tmp_path / "runs")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rpartition("WRONG ")[2]) > 0


def test_cases_are_of_every_task() -> None:
    assert len(CASES) >= 20
    assert {case.cell.task for case in CASES} == set(TASKS.names())
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("straight"), "tags", checkpoint_every={"steps": 1}, keep_checkpoints=3)


@pytest.fixture
def copy(straight: Path, tmp_path: Path) -> Path:
    return shutil.copytree(straight, tmp_path / "copy")


def test_an_equal_run_has_nothing_wrong(straight: Path, copy: Path) -> None:
    assert differences(copy, straight) == []
    assert mistakable(copy, straight) == []
    assert mistakable(copy.with_name("none"), straight) == []


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("metrics.jsonl", "metrics.jsonl"),
        ("checkpoints/step-00000002/optimizer.safetensors", "checkpoints/step-00000002/optimizer.safetensors"),
        ("probe.safetensors", "probe.safetensors"),
    ],
)
def test_a_bit_that_differs_is_told(straight: Path, copy: Path, file: str, told: str) -> None:
    content = bytearray((copy / file).read_bytes())
    content[-2] ^= 1
    (copy / file).write_bytes(content)
    assert told in differences(copy, straight)
    assert mistakable(copy, straight)


def test_numbers_files_and_states_that_differ_are_told(straight: Path, copy: Path) -> None:
    results = copy / "results.json"
    results.write_text(results.read_text(encoding="utf-8").replace('"steps": 2', '"steps": 3', 1), encoding="utf-8")
    (copy / "left.tmp").touch()
    shutil.rmtree(copy / "checkpoints" / "step-00000001")
    found = differences(copy, straight)
    assert "results.json: steps" in found
    assert "only one has left.tmp" in found
    assert "step-00000001: state" in found


def test_an_export_under_its_name_that_is_not_whole_is_told(straight: Path, copy: Path) -> None:
    (copy / "results.json").write_text('{"status": "running"}', encoding="utf-8")
    assert mistakable(copy, straight) == []
    (copy / "export" / "adapter").mkdir(parents=True)
    (copy / "export" / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    assert mistakable(copy, straight) == ["export/adapter is not whole"]
    (copy / "results.json").write_text('{"status": "running", "weights": "checkpoints/best-00000002"}', encoding="utf-8")
    assert "results.json says running, and names weights" in mistakable(copy, straight)


def test_an_end_must_be_the_one_expected() -> None:
    assert wrong_end(Ended(143, "stopped; --resume"), 143, "--resume") == []
    assert "expected 143" in wrong_end(Ended(1, ""), 143)[0]
    assert "a traceback" in wrong_end(Ended(2, "Traceback (most recent call last)"), 2)[0]
    assert "'--resume'" in wrong_end(Ended(143, ""), 143, "--resume")[0]


def test_trials_are_spread_evenly() -> None:
    assert [_share(7, place, 3) for place in range(3)] == [3, 2, 2]
    assert sum(_share(200, place, 20) for place in range(20)) == 200
