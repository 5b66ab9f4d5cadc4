"""Processes of ftkit import this ftkit, and nothing from the folder that they are started in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import ftkit
from ftkit.children import command
from ftkit.exports.verification import verify

PROBE = """
import os
import sys
import ftkit

def main(arguments):
    print(ftkit.__file__, *arguments, {"", os.getcwd()} & set(sys.path))
"""


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with files that end whatever imports them with 7."""
    folder = tmp_path / "evil"
    folder.mkdir()
    for name in ("pydantic", "runpy", "importlib", "json", "ftkit", "safetensors"):
        (folder / f"{name}.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(folder)
    return folder


def ended(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    given = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": False}
    return subprocess.run(command(module, arguments), env={**kept, **environment}, **given)  # type: ignore[call-overload]


def test_an_encoding_process_does_not_import_from_the_working_folder(evil: Path) -> None:
    done = ended("ftkit.data.worker")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_proof_of_an_export_does_not_import_from_the_working_folder(evil: Path) -> None:
    assert verify([], {}, {}, []) == []


@pytest.mark.parametrize("safe", ["", "1"])
def test_the_same_ftkit_and_what_pythonpath_names(evil: Path, tmp_path: Path, safe: str) -> None:
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "probe.py").write_text(PROBE)
    done = ended("probe", "one", "two", PYTHONPATH=str(tmp_path / "named"), **({"PYTHONSAFEPATH": safe} if safe else {}))
    assert done.stdout.strip() == f"{ftkit.__file__} one two set()", done.stderr
    assert ended("ftkit.data.worker", PYTHONPATH=str(evil)).returncode == 7
