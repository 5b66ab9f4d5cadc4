"""Every shipped recipe is found by file and planned; every key of each is renamed, moved, doubled and mistyped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import ftkit
from ftkit.errors import RecipeError
from ftkit.recipe.load import parse_recipe
from ftkit.registry import METHODS, TASKS

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))


def test_recipes_are_found() -> None:
    assert len(RECIPES) >= 6
    assert {path.parent.name for path in RECIPES} <= set(TASKS.names())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_with_its_data_and_model(path: Path) -> None:
    report = ftkit.validate(ftkit.load_recipe(path))
    assert report["splits"]["train"]["rows"] > report["splits"]["test"]["rows"] > 0
    plan = report["plan"]
    for settings in plan.get("phases") or [plan["train"]]:
        assert "learning_rate" in settings
        assert "auto" not in {value for value in settings.values() if isinstance(value, str)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_begins_with_what_it_shows_and_its_command(path: Path) -> None:
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"# .{20,100}\.", first)
    assert f"#   ftkit train {path.parent.name}/{path.stem}" in rest


def test_every_method_has_a_recipe() -> None:
    """But for those that need what earlier runs made."""
    alone = {name for name in METHODS.names() if not METHODS.get(name).needs}
    assert {ftkit.load_recipe(path).method.name for path in RECIPES} == alone


# --- fuzzing: on the text, so that places can be checked --------------------------------------------------------------------


def keys_of(node: yaml.Node, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], yaml.ScalarNode, yaml.Node]]:
    """(path, key node, value node) of every mapping entry."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key, value
            yield from keys_of(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from keys_of(item, (*path, index))


CASES = [
    pytest.param(path, keys, key, value, id=f"{path.stem}:{'.'.join(map(str, keys))}")
    for path in RECIPES
    for keys, key, value in keys_of(yaml.compose(path.read_text(encoding="utf-8")))
]

FREE_KEYS = {("data", "columns"), ("expect",)}
"""Mappings whose keys are the user's own."""


def replaced(text: str, node: yaml.Node, new: str) -> str:
    # A block mapping ends where the next line's text begins.
    new += "\n" if isinstance(node, yaml.CollectionNode) and not node.flow_style else ""
    return text[: node.start_mark.index] + new + text[node.end_mark.index :]


def place(node: yaml.Node) -> str:
    return f"r:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def problems_of(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r")
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(("path", "keys", "key", "value"), CASES)
def test_renamed_key(path: Path, keys: tuple[Any, ...], key: yaml.ScalarNode, value: yaml.Node) -> None:
    if keys[:-1] in FREE_KEYS:
        return
    text = path.read_text(encoding="utf-8")
    name = key.value
    misspelt = name[:-1] if len(name) > 5 else name + "x"
    found = problems_of(replaced(text, key, misspelt))
    if keys in (("task",), ("method",), ("model",), ("data",)):
        assert any(
            f"{name} name is required" in problem or f"{name}: is required" in problem or f"'{misspelt}'" in problem
            for problem in found
        )
        return
    if name == "name":
        assert any(problem.startswith("r:") for problem in found)
        return
    assert any(problem.startswith(place(key)) and misspelt in problem for problem in found), found
    assert any(f"Did you mean {name!r}" in problem for problem in found), found


@pytest.mark.parametrize(("path", "keys", "key", "value"), CASES)
def test_moved_key(path: Path, keys: tuple[Any, ...], key: yaml.ScalarNode, value: yaml.Node) -> None:
    """A nested key put at the top level is refused there, and the message says where it belongs."""
    # What stands in a phase belongs under `train`, too.
    if len(keys) == 1 or keys[:-1] in FREE_KEYS or keys[0] == "phases" or keys[-1] in ("name", "path", "model", "data", "train"):
        return
    text = path.read_text(encoding="utf-8")
    moved = (
        f"{keys[-1]}: {text[value.start_mark.index : value.end_mark.index]}\n"
        if not isinstance(value, yaml.MappingNode)
        else f"{keys[-1]}: x\n"
    )
    found = problems_of(moved + text)
    assert any(problem.startswith("r:1:1: ") and repr(keys[-1]) in problem for problem in found), found
    if keys[-1] not in ("train", "validation", "test"):
        home = ".".join(str(part) for part in keys[:-1] if not isinstance(part, int))
        assert any(home in problem for problem in found if problem.startswith("r:1:1")), found


@pytest.mark.parametrize(("path", "keys", "key", "value"), CASES)
def test_doubled_key(path: Path, keys: tuple[Any, ...], key: yaml.ScalarNode, value: yaml.Node) -> None:
    text = path.read_text(encoding="utf-8")
    entry = text[key.start_mark.index : value.end_mark.index]
    flow = entry.splitlines()[0] == entry and any(
        mark in text.splitlines()[key.start_mark.line][: key.start_mark.column] for mark in "{["
    )
    indent = " " * key.start_mark.column
    if flow:
        doubled = text[: key.start_mark.index] + entry + ", " + text[key.start_mark.index :]
    else:
        doubled = text[: key.start_mark.index] + f"{key.value}: x\n{indent}" + text[key.start_mark.index :]
    assert any(f"the key {key.value!r} stands twice" in problem for problem in problems_of(doubled))


WRONG = {
    "a mapping": "{unexpected: 1}",
    "a list of a mapping": "[[{a: 1}]]",
    "nothing": "null",
    "a flag": "true",
    "text": "'not a value'",
}
OPEN_TEXT = {"name", "decoder", "path", "encoding", "text", "label", "stratify"}


@pytest.mark.parametrize("wrong", ["a mapping", "a list of a mapping"])
@pytest.mark.parametrize(("path", "keys", "key", "value"), CASES)
def test_wrongly_typed_value(path: Path, keys: tuple[Any, ...], key: yaml.ScalarNode, value: yaml.Node, wrong: str) -> None:
    text = path.read_text(encoding="utf-8")
    found = problems_of(replaced(text, value, WRONG[wrong]))
    lines = tuple(place(node).rsplit(":", 1)[0] for node in (key, value))
    assert any(problem.startswith(lines) for problem in found), found


@pytest.mark.parametrize("wrong", ["text", "a flag", "nothing"])
@pytest.mark.parametrize(("path", "keys", "key", "value"), CASES)
def test_wrong_scalar(path: Path, keys: tuple[Any, ...], key: yaml.ScalarNode, value: yaml.Node, wrong: str) -> None:
    if wrong == "text" and keys[-1] in OPEN_TEXT | {"model", "train"} and len(keys) != 1:
        return
    if keys == ("model",) and wrong == "text":
        return
    if wrong == "nothing" and keys[-1] in ("early_stopping", "split", "decoder", "quantization", "phases"):
        return
    if wrong in ("text", "nothing") and keys in (("data", "validation"), ("data", "test")):
        return
    text = path.read_text(encoding="utf-8")
    found = problems_of(replaced(text, value, WRONG[wrong]))
    line = place(key).rsplit(":", 1)[0]
    assert any(problem.startswith(line) for problem in found), found
