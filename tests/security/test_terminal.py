"""Escape sequences, marks that reorder text and workflow commands in rows, labels and names: none reaches a terminal or a report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.security.conftest import Command

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eabc\r\n::error::owned\u2028<script>|`[x](javascript:y)`"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def rows(folder: Path, count: int = 24) -> Path:
    """Rows whose texts and labels are hostile."""
    path = folder / "rows.jsonl"
    lines = [{"text": f"w{number % 9} {HOSTILE}", "label": f"{HOSTILE}{number % 2}"} for number in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_run_on_hostile_rows_says_and_writes_nothing_raw(
    finished: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    recipe, data, run = finished / "recipe.yaml", rows(tmp_path), tmp_path / "run"
    overrides = (f"data.train={data}", "export=[]", 'expect={accuracy: ">= 2"}')
    said = [command(verb, recipe, *overrides).said for verb in ("validate", "plan", "inspect", "doctor")]
    trained = command("train", recipe, "--output", run, "--junit", tmp_path / "junit.xml", *overrides)
    assert trained.code == 4, trained.said
    said += [trained.said]
    said += [
        command(*arguments).said
        for arguments in (
            ("evaluate", run),
            ("predict", run, "--text", HOSTILE),
            ("predict", run, "--input", data, "--json"),
            ("diff", run, finished / "run"),
            ("adapters", "list", tmp_path),
        )
    ]
    for text in said:
        assert not RAW.search(text), RAW.search(text)
        assert not any(line.startswith("::error::owned") for line in text.splitlines())
    ElementTree.fromstring((tmp_path / "junit.xml").read_text())
    for file in ("junit.xml", "summary.md", "run/README.md", "run/log.txt"):
        text = (tmp_path / file).read_text()
        assert not RAW.search(text), (file, RAW.search(text))
        assert "<script>" not in text
        assert not any(line.startswith("::error::owned") for line in text.splitlines())


@pytest.mark.parametrize("verb", ["validate", "train"])
def test_names_and_values_of_recipes_are_said_in_plain_characters(verb: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "recipe.yaml").write_text(
        'model: "\\e[2J\\u202Ex"\ntask: "\\e]0;owned\\a"\ndata: {train: "\\e[31m.csv"}\nmethod: lora\n"\\e[1m\\r::error::owned": 1\n'
    )
    ended = command(verb, tmp_path / "recipe.yaml")
    assert ended.code == 2
    assert not RAW.search(ended.said)
    assert "\\x1b" in ended.err


def test_names_of_files_and_columns_are_said_in_plain_characters(tmp_path: Path, tiny_folder: Path, command: Command) -> None:
    (tmp_path / "\x1b[31m\nrows.csv").write_text("\x1b[2Jtext,la\x9bbel\na,b\n")
    source = json.dumps("\x1b[31m\nrows.csv")
    (tmp_path / "recipe.yaml").write_text(
        f"model: {tiny_folder}\ntask: text-classification\ndata: {{train: {source}}}\nmethod: lora\n"
    )
    ended = command("validate", tmp_path / "recipe.yaml")
    assert ended.code == 2
    assert not RAW.search(ended.said)
