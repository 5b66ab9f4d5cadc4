from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from ftkit.cli.catalog import type_text
from ftkit.cli.shipped import shipped_recipes
from ftkit.recipe.reading import read_file
from ftkit.registry import METHODS, TASKS
from tests.cli.conftest import Run, strict_json

TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict, "null": type(None)}


def fits(value: Any, form: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value fits a JSON Schema, as far as recipe schemas use the language."""
    if "$ref" in form:
        return fits(value, root["$defs"][form["$ref"].rpartition("/")[2]], root)
    if "anyOf" in form:
        return any(fits(value, choice, root) for choice in form["anyOf"])
    if "const" in form or "enum" in form:
        return value in form.get("enum", [form.get("const")])
    if "type" in form and (not isinstance(value, TYPES[form["type"]]) or (isinstance(value, bool) and form["type"] != "boolean")):
        return False
    if isinstance(value, list):
        return all(fits(item, form.get("items", {}), root) for item in value)
    if isinstance(value, dict):
        properties, others = form.get("properties", {}), form.get("additionalProperties", True)
        known = all(fits(item, properties[key], root) for key, item in value.items() if key in properties)
        rest = [item for key, item in value.items() if key not in properties]
        allowed = others is True or not rest or (isinstance(others, dict) and all(fits(item, others, root) for item in rest))
        return known and allowed and set(form.get("required", [])) <= set(value)
    return True


def test_methods_are_all_there_with_what_the_code_says(ftkit: Run) -> None:
    found = ftkit("methods", "--json").document()["methods"]
    assert [entry["name"] for entry in found] == METHODS.names()
    lora = next(entry for entry in found if entry["name"] == "lora")
    assert lora["capabilities"]["adapter"] is True
    assert lora["paper"]["url"] == "https://arxiv.org/abs/2106.09685"
    assert {"name": "rank", "type": "whole number >= 1", "default": 8}.items() <= lora["options"][0].items()


def test_the_table_of_methods(ftkit: Run) -> None:
    out = ftkit("methods").out
    assert all(METHODS.get(name).summary in out for name in METHODS.names())
    assert "https://arxiv.org/abs/2106.10199" in out


def test_one_method_with_its_options(ftkit: Run) -> None:
    out = ftkit("methods", "lora").out
    assert "LoRA: Low-Rank Adaptation of Large Language Models" in out
    assert "dropout" in out
    assert next(line.split() for line in out.splitlines() if line.startswith("dropout"))[:4] == ["dropout", "number", ">=", "0"]


def test_an_unknown_method(ftkit: Run) -> None:
    ended = ftkit("methods", "lroa")
    assert ended.code == 2
    assert "Did you mean 'lora'?" in ended.err


def test_tasks(ftkit: Run) -> None:
    found = ftkit("tasks", "--json").document()["tasks"]
    assert [entry["name"] for entry in found] == TASKS.names()
    classification = next(entry for entry in found if entry["name"] == "text-classification")
    assert "text" in [column["name"] for column in classification["columns"]]
    assert "text-classification" in ftkit("tasks").out
    out = ftkit("tasks", "text-classification").out
    assert "problem_type" in out
    assert "accuracy" in out
    assert "sentence1" in out


def test_metrics(ftkit: Run) -> None:
    found = ftkit("metrics", "--json").document()["metrics"]
    assert {"family": "classification", "name": "accuracy", "direction": "max", "interval": True}.items() <= found[0].items()
    out = ftkit("metrics").out
    assert "regression\n" in out
    assert "Linear correlation." in out


def test_components_of_a_plugin_are_listed(ftkit: Run, folder: Path) -> None:
    Path("mine.py").write_text(
        "from ftkit.methods.full import Full\nclass Own(Full):\n    name = 'listed-plugin'\n", encoding="utf-8"
    )
    assert "listed-plugin" in ftkit("methods", "--plugin", "mine.py").out


def test_the_schema_takes_every_shipped_recipe_and_no_misspelt_one(ftkit: Run, recipe: Path) -> None:
    schema = ftkit("schema").document()
    recipes = [recipe, *shipped_recipes().values()]
    assert len(recipes) > 1
    for path in recipes:
        value = read_file(path).value
        assert fits(value, schema, schema), path
        for section in [name for name in ("", "train", "data") if not name or name in value]:
            wrong = copy.deepcopy(value)
            (wrong[section] if section else wrong)["epohcs"] = 1
            assert not fits(wrong, schema, schema)


def test_the_schema_in_a_file(ftkit: Run, folder: Path) -> None:
    ended = ftkit("schema", "--output", "s.json")
    assert "# yaml-language-server: $schema=s.json" in ended.out
    assert strict_json(Path("s.json").read_text(encoding="utf-8")) == ftkit("schema", "--json").document()
    assert ftkit("schema", "--output", "s.json").code == 2
    assert ftkit("schema", "--output", "s.json", "--force", "--json").document() == {"output": str(folder / "s.json")}


def test_metrics_of_all_tasks_and_of_one_are_listed(ftkit: Run) -> None:
    names = [metric["name"] for metric in ftkit("metrics", "--json").document()["metrics"]]
    assert {"loss", "answer_match"} <= set(names)
    assert "multi-label classification" in ftkit("metrics").out


def test_only_options_without_a_default_are_required(ftkit: Run) -> None:
    options = {option["name"]: option for option in ftkit("tasks", "seq2seq", "--json").document()["tasks"][0]["options"]}
    assert not any(option["required"] for option in options.values())
    assert options["generation"]["default"] == {"max_new_tokens": "auto", "num_beams": 1, "do_sample": False}
    assert options["max_source_length"]["type"] == "whole number >= 8 or auto"
    assert "(required)" not in ftkit("tasks", "seq2seq").out


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"anyOf": [{"type": "integer"}, {"const": "auto", "type": "string"}, {"type": "null"}]}, "whole number or `auto` or null"),
        ({"type": "array", "items": {"type": "string"}}, "list of text"),
        ({"enum": ["a", "b"], "type": "string"}, "`a` or `b`"),
        ({"$ref": "#/$defs/X"}, "mapping"),
    ],
)
def test_types_in_words(form: dict[str, Any], text: str) -> None:
    assert type_text(form, {}) == text
