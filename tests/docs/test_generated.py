"""The generated parts of docs/ are those that the code gives."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import ftkit
from ftkit.recipe.schema import RecipeBody
from ftkit.registry import METHODS, TASKS

ROOT = Path(ftkit.__file__).parent.parent


@pytest.fixture(scope="module")
def generate_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "scripts" / "generate_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "docs", tmp_path / "docs"))


def test_pages_are_up_to_date(generate_docs: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_docs.main(["--check"]) == 0, f"run scripts/generate_docs.py\n{capsys.readouterr().out}"


def test_check_finds_a_stale_page_and_changes_nothing(
    generate_docs: ModuleType, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = copied / "recipe.md"
    stale = page.read_text(encoding="utf-8").replace("| `train.epochs` |", "| `train.epoch` |")
    page.write_text(stale, encoding="utf-8")
    assert generate_docs.main(["--check", "--docs", str(copied)]) == 1
    assert "stale: docs/recipe.md" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == stale
    assert generate_docs.main(["--docs", str(copied)]) == 0
    assert page.read_text(encoding="utf-8") == (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")


def test_method_without_a_page_gets_one(generate_docs: ModuleType, copied: Path) -> None:
    (copied / "methods" / "lora.md").unlink()
    assert generate_docs.main(["--check", "--docs", str(copied)]) == 1
    generate_docs.main(["--docs", str(copied)])
    assert "| `rank` |" in (copied / "methods" / "lora.md").read_text(encoding="utf-8")


def test_part_that_nothing_generates_is_an_error(generate_docs: ModuleType) -> None:
    with pytest.raises(ValueError, match="nothing generates 'weather'"):
        generate_docs.filled("<!-- generated: weather -->\n<!-- end generated -->\n")


def test_recipe_page_names_every_key_and_option() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    for key in (*RecipeBody.model_fields, "task", "method"):
        assert f"`{key}`" in text
    options = [METHODS.get(name).Options for name in METHODS.names()] + [TASKS.get(name).Options for name in TASKS.names()]
    for option in (option for model in options for option in model.model_fields):
        assert f"| `{option}` |" in text


def test_every_verb_has_its_part(generate_docs: ModuleType) -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [verb for verb in generate_docs.verbs() if f"<!-- generated: verb {verb} -->" not in text] == []
