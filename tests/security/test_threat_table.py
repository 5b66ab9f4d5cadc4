"""docs/security.md: every test that it names exists, every kind of hostile input has its table, every test here is named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "security.md").read_text(encoding="utf-8")
INPUTS = ["Recipe", "Data", "Model folder", "Adapter", "Checkpoint and run folder", "Template", "Tracker", "Environment"]


def names_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_named_test_exists() -> None:
    existing = {name for path in TESTS.rglob("test_*.py") for name in names_of(path)}
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 50
    assert named <= existing, named - existing


def test_every_hostile_input_has_its_table_and_every_row_its_proof() -> None:
    sections = re.split(r"^### ", PAGE.split("## Threats")[1].split("\n## ")[0], flags=re.MULTILINE)[1:]
    assert [section.partition("\n")[0] for section in sections] == INPUTS
    for section in sections:
        rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
        assert rows
        for row in rows:
            cells = [cell.strip() for cell in row.strip("|").split(" | ")]
            assert len(cells) == 3, row
            assert "`test_" in cells[2], row


HELPERS = {"test_what_is_hidden_and_what_is_not", "test_plain_words_and_paths_of_the_environment_are_not_hidden"}
"""Of how secrets are told from other text."""


def test_every_test_here_is_named_there() -> None:
    own = {name for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__) for name in names_of(path)}
    assert own - HELPERS <= set(re.findall(r"`(test_\w+)`", PAGE)), own - HELPERS - set(re.findall(r"`(test_\w+)`", PAGE))
