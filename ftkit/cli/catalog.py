"""`ftkit methods`, `tasks`, `metrics` and `schema`: what there is, read off the code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftkit.cli.options import AsJson, Force, Plugins, load_plugins
from ftkit.cli.output import emit, print_facts, print_table, say
from ftkit.errors import Problem, RecipeError
from ftkit.recipe.writing import flow

if TYPE_CHECKING:
    from ftkit.metrics.base import MetricSpec

Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Only this one, with its options.", show_default=False)]


def methods(name: Name = None, as_json: AsJson = False, plugins: Plugins = None) -> None:
    """List the tuning methods: what trains, the paper, what can be done with the result, options."""
    load_plugins(plugins)
    from ftkit.registry import METHODS

    found = [_method_facts(METHODS.get(known)) for known in _chosen(METHODS, "method", name)]
    if as_json:
        emit({"methods": found})
    elif name:
        _print_one(found[0], {"trains": found[0]["update_rule"], "paper": _paper(found[0]), "can": _capabilities(found[0])})
    else:
        rows = [[entry["name"], entry["summary"], _capabilities(entry), _short_paper(entry)] for entry in found]
        print_table(["method", "what", "can", "paper"], rows)
        say("Options of one: ftkit methods NAME")


def tasks(name: Name = None, as_json: AsJson = False, plugins: Plugins = None) -> None:
    """List the tasks: the columns they read, the models they need, metrics, options."""
    load_plugins(plugins)
    from ftkit.registry import TASKS

    found = [_task_facts(TASKS.get(known)) for known in _chosen(TASKS, "task", name)]
    if as_json:
        emit({"tasks": found})
    elif name:
        entry = found[0]
        _print_one(entry, {"models": ", ".join(entry["model_kinds"]), "metrics": ", ".join(entry["metrics"])})
        rows = [[column["name"], _role(column), column["summary"], ", ".join(column["usual_names"])] for column in entry["columns"]]
        print_table(["column", "", "what", "usual names"], rows, title="Columns")
    else:
        rows = [
            [
                entry["name"],
                entry["summary"],
                ", ".join(column["name"] for column in entry["columns"]),
                ", ".join(entry["model_kinds"]),
            ]
            for entry in found
        ]
        print_table(["task", "what", "columns", "models"], rows)
        say("Options of one: ftkit tasks NAME")


def metrics(as_json: AsJson = False) -> None:
    """List the metrics by family: what each measures, which way is better."""
    found = [
        {"family": family, "name": spec.name, "summary": spec.summary, "direction": spec.direction, "interval": spec.headline}
        for family, specs in metric_families().items()
        for spec in specs
    ]
    if as_json:
        emit({"metrics": found})
        return
    for family in dict.fromkeys(entry["family"] for entry in found):
        rows = [
            [entry["name"], entry["direction"], "95 %" if entry["interval"] else "", entry["summary"]]
            for entry in found
            if entry["family"] == family
        ]
        print_table(["metric", "better", "interval", "what"], rows, title=family_title(str(family)))


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where to write (default: standard output).", show_default=False)
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Print the JSON Schema of recipes, for editors: completion, hover texts, checks while typing."""
    load_plugins(plugins)
    from ftkit.recipe.json_schema import recipe_schema

    if output is None:
        emit(recipe_schema())
        return
    from ftkit.cli.files import write_new
    from ftkit.files import json_text

    write_new(output, json_text(recipe_schema(), indent=2) + "\n", force=force)
    if as_json:
        emit({"output": str(output.absolute())})
    else:
        say(f"{output}\n\nIn a recipe, as its first line:\n  # yaml-language-server: $schema={output}")


def known_name(registry: Any, kind: str, name: str) -> str:
    """`name`, if the registry has it. Raises RecipeError with the nearest name."""
    known = registry.names()
    if name in known:
        return name
    near = registry.nearest(name)
    hint = f"Did you mean {near!r}? Known: {', '.join(known)}" if near else f"Known: {', '.join(known)}"
    raise RecipeError(Problem(message=f"unknown {kind} {name!r}", place="command line", hint=hint))


def _chosen(registry: Any, kind: str, name: str | None) -> list[str]:
    return registry.names() if name is None else [known_name(registry, kind, name)]


def _method_facts(method: Any) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "update_rule": method.update_rule,
        "paper": asdict(method.paper) if method.paper else None,
        "capabilities": asdict(method.capabilities),
        "options": _options(method.Options),
    }


def _task_facts(task: Any) -> dict[str, Any]:
    example = task(task.Options())
    columns = [
        {
            "name": name,
            "summary": column.summary,
            "required": column.required,
            "target": column.target,
            "usual_names": list(column.names),
        }
        for name, column in example.columns().items()
    ]
    return {
        "name": task.name,
        "summary": task.summary,
        "model_kinds": sorted(task.model_kinds),
        "columns": columns,
        "metrics": [metric.name for metric in example.metrics()],
        "options": _options(task.Options),
    }


def _options(options: Any) -> list[dict[str, Any]]:
    schema = options.model_json_schema()
    return [
        {
            "name": name,
            "type": type_text(form, schema.get("$defs", {})).replace("`", ""),
            "default": _plain_default(options.model_fields[name]),
            "required": name in schema.get("required", []),
            "description": form.get("description", ""),
        }
        for name, form in schema.get("properties", {}).items()
    ]


def _plain_default(field: Any) -> Any:
    """The default as plain values; None where there is none."""
    if field.is_required():
        return None
    default = field.get_default(call_default_factory=True)
    return default.model_dump(mode="json", exclude_none=True) if hasattr(default, "model_dump") else default


def type_text(form: dict[str, Any], definitions: dict[str, Any], written: Mapping[str, str] | None = None) -> str:
    """A JSON Schema type in a few words, with its bounds: ``whole number >= 1 or `auto` ``.

    definitions: the schema's `$defs`. written: how mappings that stand in many places are shown, by class name.
    """
    if "$ref" in form:
        return (written or {}).get(form["$ref"].rpartition("/")[2], "mapping")
    if choices := form.get("anyOf") or form.get("oneOf"):
        return " or ".join(dict.fromkeys(type_text(choice, definitions, written) for choice in choices))
    if "enum" in form:
        return " or ".join(f"`{choice}`" for choice in form["enum"])
    if "const" in form:
        return f"`{form['const']}`"
    if form.get("type") == "array":
        inner = form.get("items", {})
        items = type_text(inner, definitions, written)
        if written and inner.get("$ref", "").rpartition("/")[2] in written:
            return f"{items} or list of them"
        return f"list of {f'({items})' if ' or ' in items else items}"
    return f"{_NAMES.get(str(form.get('type')), 'mapping')}{_bounds(form)}"


_NAMES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
_SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _bounds(form: dict[str, Any]) -> str:
    return "".join(
        f"{' and' if number else ''} {_SIGNS[key]} {form[key]:,}" for number, key in enumerate(k for k in _SIGNS if k in form)
    )


def metric_families() -> dict[str, list[MetricSpec]]:
    """The metrics of each family, then those that belong to all tasks, or to a single one."""
    from ftkit.metrics.base import LOSS
    from ftkit.metrics.catalog import all_metrics
    from ftkit.registry import TASKS

    own = {name: list(TASKS.get(name).own_metrics) for name in TASKS.names()}
    return {**all_metrics(), "every task": [LOSS], **{name: specs for name, specs in own.items() if specs}}


def family_title(family: str) -> str:
    """A family's name in words."""
    return family.replace("multi_label", "multi-label").replace("_", " ")


def _print_one(entry: dict[str, Any], facts: dict[str, str]) -> None:
    say(f"{entry['name']}: {entry['summary']}\n")
    print_facts(facts)
    if not entry["options"]:
        say("No options.\n")
        return
    rows = [[option["name"], option["type"], _default(option), option["description"]] for option in entry["options"]]
    print_table(["option", "type", "default", "what"], rows, title="Options")


def _default(option: dict[str, Any]) -> str:
    return "(required)" if option["required"] else flow(option["default"])


def _role(column: dict[str, Any]) -> str:
    return "target" if column["target"] else "required" if column["required"] else "optional"


def _capabilities(entry: dict[str, Any]) -> str:
    names = {
        "adapter": "adapter",
        "merge": "merged",
        "quantized": "quantized base",
        "checkpointing": "checkpointing",
        "from_scratch": "from scratch",
    }
    return ", ".join(text for name, text in names.items() if entry["capabilities"].get(name)) or "none"


def _paper(entry: dict[str, Any]) -> str:
    paper = entry["paper"]
    return f"{paper['authors']} {paper['year']}, {paper['title']}, {paper['url']}" if paper else "none"


def _short_paper(entry: dict[str, Any]) -> str:
    paper = entry["paper"]
    return f"{paper['authors'].split(',')[0].removesuffix(' et al.')} {paper['year']}, {paper['url']}" if paper else ""
