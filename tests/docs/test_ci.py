"""The shell steps of docs/ci.md do what the page says, on a tiny model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

import ftkit
from tests.conftest import write_rows

ROOT = Path(ftkit.__file__).parent.parent
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
RECIPE = """\
model: {model}
task: text-classification
data: {{train: train.jsonl, test: test.jsonl}}
method: {{name: lora, rank: 2}}
train: {{epochs: 1, batch_size: 16, learning_rate: 0.01}}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def project(tmp_path: Path, tiny_folder: Path) -> Path:
    """A folder with data and the recipe of the page, whose bounds on metrics a tiny model meets."""
    write_rows(tmp_path / "train.jsonl", 48, 0)
    write_rows(tmp_path / "test.jsonl", 24, 1)
    [gates] = [text for text in blocks("yaml") if text.startswith("expect:")]
    met = re.sub(r'(accuracy|bound): ">= 0\.\d+"', r'\1: ">= 0"', gates)
    assert met.count('">= 0"') == 2
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny_folder) + met, encoding="utf-8")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "ftkit"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ftkit "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return tmp_path


def run(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    path = os.pathsep.join([str(folder / "bin"), plain["PATH"]])
    modules = os.pathsep.join(filter(None, [str(ROOT), plain.get("PYTHONPATH", "")]))
    environment = {**plain, "PATH": path, "PYTHONPATH": modules, **variables}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_steps_of_the_page_run(project: Path) -> None:
    once, plain, later = blocks("bash")
    run(once, project)
    [workflow] = [yaml.safe_load(text) for text in blocks("yaml") if text.startswith("name:")]
    steps: list[dict[str, Any]] = workflow["jobs"]["train"]["steps"]
    summary = project / "summary.md"
    for step in steps:
        if "run" in step and not step["run"].startswith("pip "):
            run(step["run"], project, GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(summary), CI="true")
    assert ElementTree.parse(project / "junit.xml").getroot().get("tests") == "7"
    assert "completed" in summary.read_text(encoding="utf-8")
    run(plain, project)
    assert (project / "reports" / "candidate.json").is_file()
    done = run(later, project)
    assert "the same metrics and weights" in done.stdout
