"""`ftkit methods`, `tasks`, `metrics` and `schema`: what there is, read off the code."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ftkit.cli.options import AsJson, Force, Plugins, load_plugins
from ftkit.cli.output import emit, print_facts, print_table, say
from ftkit.errors import Problem, RecipeError
from ftkit.recipe.writing import flow

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
    from ftkit.metrics.catalog import all_metrics

    found = [
        {"family": family, "name": spec.name, "summary": spec.summary, "direction": spec.direction, "interval": spec.headline}
        for family, specs in all_metrics().items()
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
        print_table(["metric", "better", "interval", "what"], rows, title=str(family).replace("_", " "))


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
    properties = options.model_json_schema().get("properties", {})
    return [
        {
            "name": name,
            "type": type_text(form),
            "default": form.get("default"),
            "required": "default" not in form,
            "description": form.get("description", ""),
        }
        for name, form in properties.items()
    ]


def type_text(form: dict[str, Any]) -> str:
    """A JSON Schema type in a few words: `integer or auto`, `list of string`."""
    if "anyOf" in form:
        return " or ".join(dict.fromkeys(type_text(choice) for choice in form["anyOf"]))
    if "enum" in form:
        return " or ".join(map(str, form["enum"]))
    if "const" in form:
        return str(form["const"])
    if form.get("type") == "array":
        return f"list of {type_text(form.get('items', {}))}"
    return str(form.get("type", "mapping"))


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
