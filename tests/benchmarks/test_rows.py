"""The benchmark of many rows, on few."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.delitem(sys.modules, "rows", raising=False)
    return importlib.import_module("rows")


def test_the_file_repeats_and_has_its_copies(script: Any, tmp_path: Path) -> None:
    words = script.write_model(tmp_path / "model", "text-classification")
    for name in ("one.jsonl", "two.jsonl"):
        script.write_rows(tmp_path / name, 60_000, words)
    text = (tmp_path / "one.jsonl").read_text()
    assert text == (tmp_path / "two.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 60_000
    assert {len(row["text"].split()) for row in rows} == set(range(*script.WORDS_IN_A_ROW))
    assert set(Counter(row["label"] for row in rows)) == set("abcd")
    assert len({row["text"] for row in rows}) == 59_400
    assert rows[99] == rows[49]


def test_a_table_of_all_stages(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- results:rows -->\nold\n<!-- end:rows -->\nafter\n")
    script.SHORT = 0.0
    script.main(["--rows", "3000", "--steps", "2", "--memory-limit", "4096", "--write", str(document)])
    text = document.read_text()
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:]
    assert names.index("reading train") < names.index("dividing rows") < names.index("encoding train") < names.index("training")
    assert names[-1] == "encoding train, reused"
    assert "old" not in text
    assert "3,000 rows (0 MiB of JSON lines)" in text
    assert text.startswith("before")
    assert text.endswith("after\n")
    capsys.readouterr()
