from __future__ import annotations

from pathlib import Path

import pytest

import ftkit as package
from ftkit.cli.shipped import shipped_recipes, summary_of
from tests.cli.conftest import Run

NAME = "text-classification/bbc-news-lora"


def test_list_shows_every_file_with_its_first_comment(ftkit: Run) -> None:
    found = ftkit("recipes", "list", "--json").document()["recipes"]
    on_disk = sorted((Path(package.__file__).parent.parent / "recipes").rglob("*.yaml"))
    assert [entry["name"] for entry in found] == [f"{path.parent.name}/{path.stem}" for path in on_disk]
    assert all(entry["summary"] for entry in found)
    assert NAME in ftkit("recipes", "list").out
    assert ftkit("recipes").out == ftkit("recipes", "list").out
    assert ftkit("recipes", "--json").document()["recipes"] == found
    assert "write --json after `show`" in ftkit("recipes", "--json", "show", NAME).document()["error"]["problems"][0]["message"]


def test_an_installed_package_brings_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = folder / "site" / "ftkit"
    (inside / "_recipes" / "some-task").mkdir(parents=True)
    (inside / "_recipes" / "some-task" / "one.yaml").write_text("# One.\n", encoding="utf-8")
    monkeypatch.setattr(package, "__file__", str(inside / "__init__.py"))
    assert shipped_recipes() == {"some-task/one": inside / "_recipes" / "some-task" / "one.yaml"}


def test_show_prints_the_file(ftkit: Run) -> None:
    text = shipped_recipes()[NAME].read_text(encoding="utf-8")
    assert ftkit("recipes", "show", NAME).out == text
    assert ftkit("recipes", "show", f"{NAME}.yaml", "--json").document() == {
        "name": NAME,
        "summary": summary_of(text),
        "text": text,
    }


def test_an_unknown_name(ftkit: Run) -> None:
    ended = ftkit("recipes", "show", "text-classification/bbc-news-lroa")
    assert ended.code == 2
    assert NAME in ended.err
    assert ftkit("recipes", "show", "../pyproject").code == 2


def test_copy(ftkit: Run, folder: Path) -> None:
    text = shipped_recipes()[NAME].read_text(encoding="utf-8")
    ended = ftkit("recipes", "copy", NAME)
    assert Path("bbc-news-lora.yaml").read_text(encoding="utf-8") == text
    assert "ftkit train bbc-news-lora.yaml" in ended.out
    (folder / "sub").mkdir()
    assert ftkit("recipes", "copy", NAME, "sub", "--json").document()["path"] == str(folder / "sub" / "bbc-news-lora.yaml")


def test_copy_replaces_nothing_unless_forced(ftkit: Run, folder: Path) -> None:
    Path("mine.yaml").write_text("mine", encoding="utf-8")
    ended = ftkit("recipes", "copy", NAME, "mine.yaml")
    assert (ended.code, Path("mine.yaml").read_text(encoding="utf-8")) == (2, "mine")
    assert "--force" in ended.err
    assert ftkit("recipes", "copy", NAME, "mine.yaml", "--force").code == 0
    assert ftkit("recipes", "copy", NAME, "nowhere/mine.yaml").code == 2


@pytest.mark.parametrize(
    ("text", "summary"),
    [("# One.\n# Two.\n", "One."), ("# yaml-language-server: $schema=x\n#\n# Three.\na: 1\n", "Three."), ("a: 1\n", "")],
)
def test_the_summary_is_the_first_comment_that_says_something(text: str, summary: str) -> None:
    assert summary_of(text) == summary


def test_copy_brings_the_files_that_a_recipe_reads(ftkit: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = folder / "site" / "ftkit" / "_recipes" / "some-task"
    (task / "data" / "more").mkdir(parents=True)
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl", "unused.jsonl", "more/deep.txt"):
        (task / "data" / name).write_text(name, encoding="utf-8")
    recipe = (
        "# One.\nmodel: a/b\ndata: {train: [data/train-*.jsonl, data/more], test: {path: 'data/test.jsonl#5'}}\noutput: ../out\n"
    )
    (task / "one.yaml").write_text(recipe, encoding="utf-8")
    monkeypatch.setattr(package, "__file__", str(task.parent.parent / "__init__.py"))
    (folder / "mine").mkdir()
    monkeypatch.chdir(folder / "mine")
    assert "and 4 files that it reads" in ftkit("recipes", "copy", "some-task/one").out
    found = sorted(path.relative_to(folder / "mine").as_posix() for path in (folder / "mine").rglob("*") if path.is_file())
    assert found == ["data/more/deep.txt", "data/test.jsonl", "data/train-0.jsonl", "data/train-1.jsonl", "one.yaml"]
    assert (folder / "mine" / "data" / "test.jsonl").read_text(encoding="utf-8") == "test.jsonl"
    assert ftkit("recipes", "copy", "some-task/one", "two.yaml").code == 0
    (folder / "mine" / "data" / "test.jsonl").write_text("my own", encoding="utf-8")
    ended = ftkit("recipes", "copy", "some-task/one", "three.yaml")
    assert ended.code == 2
    assert "test.jsonl" in ended.err
    assert not Path("three.yaml").exists()
