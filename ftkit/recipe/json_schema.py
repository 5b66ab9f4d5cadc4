"""JSON Schema of recipes, for editors: completion, hover texts and checks while typing."""

from __future__ import annotations

from typing import Any

from ftkit.recipe.load import COMPONENTS
from ftkit.recipe.schema import RecipeBody


def recipe_schema() -> dict[str, Any]:
    """The schema of a whole recipe, with the options of every known task and method."""
    schema = RecipeBody.model_json_schema()
    _allow_shorthands(schema)
    for kind, registry in COMPONENTS.items():
        forms = [_component_form(kind, name, registry.get(name), schema["$defs"]) for name in registry.names()]
        names = {"type": "string", "enum": registry.names(), "description": f"A {kind} with its default options."}
        schema["properties"][kind] = {"anyOf": [names, *forms]}
    schema["required"] = sorted({*schema.get("required", []), "task"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "ftkit recipe",
        "additionalProperties": False,
    }


def _component_form(kind: str, name: str, component: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    form = component.Options.model_json_schema()
    definitions.update(form.pop("$defs", {}))
    form["properties"] = {"name": {"const": name, "description": component.summary}, **form.get("properties", {})}
    form["required"] = ["name", *form.get("required", [])]
    return {**form, "title": f"{kind} {name}", "additionalProperties": False}


def _allow_shorthands(schema: dict[str, Any]) -> None:
    """Models with a shorthand may be plain text, and a list of sources or exports may be a single one."""
    text = {"type": "string"}
    schema["properties"]["model"] = {"anyOf": [text, {"$ref": "#/$defs/ModelSpec"}]}
    quantization = schema["$defs"]["ModelSpec"]["properties"]["quantization"]
    quantization["anyOf"] = [text, *quantization["anyOf"]]
    export = schema["properties"]["export"]
    schema["properties"]["export"] = {
        **{key: export[key] for key in ("description", "default") if key in export},
        "anyOf": [export["items"], {"type": "array", "items": export["items"]}],
    }
    source = {"anyOf": [text, {"$ref": "#/$defs/SourceSpec"}]}
    for split in ("train", "validation", "test"):
        field = schema["$defs"]["DataSpec"]["properties"][split]
        kept = {key: field[key] for key in ("description", "default") if key in field}
        many = {"type": "array", "items": source, "minItems": 1}
        forms = [text, {"$ref": "#/$defs/SourceSpec"}, many]
        schema["$defs"]["DataSpec"]["properties"][split] = {
            **kept,
            "anyOf": forms if split == "train" else [*forms, {"type": "null"}],
        }
