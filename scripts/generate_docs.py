#!/usr/bin/env python3
"""Fills the generated parts of docs/ and README from the code: recipe keys, options, methods, metrics, commands, recipes.

    scripts/generate_docs.py            rewrites what changed
    scripts/generate_docs.py --check    changes nothing; exits with 1 if something is stale

A generated part stands between `<!-- generated: NAME -->` and `<!-- end generated -->`; everything around it is written by hand.
A method or task without a page gets one. Needs ftkit, not torch.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ftkit.cli.catalog import family_title, metric_families, type_text
from ftkit.cli.shipped import shipped_recipes
from ftkit.errors import EXIT_CODES
from ftkit.methods.parts.peft_types import OWN_METHOD, REFUSED, TUNERS
from ftkit.models.facts import ModelFacts
from ftkit.recipe.checking import models_in
from ftkit.recipe.plan import FALLBACKS
from ftkit.recipe.reading import scalar
from ftkit.recipe.schema import RecipeBody, SourceSpec, Strict
from ftkit.registry import METHODS, TASKS
from ftkit.tasks.base import Column

DOCS = Path(__file__).parent.parent / "docs"
_PART = re.compile(r"(<!-- generated: ([\w /-]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)

PAGE = "# {name}\n\n{summary}\n\n<!-- generated: {kind} {name} -->\n<!-- end generated -->\n"

EXAMPLES = {
    "encoder, width 384 (MiniLM)": ("encoder", "bert", 384, 6),
    "encoder, width 768 (BERT base)": ("encoder", "bert", 768, 12),
    "encoder, width 1024 (BERT large)": ("encoder", "bert", 1024, 24),
    "decoder, width 768 (GPT-2)": ("decoder", "gpt2", 768, 12),
    "decoder, width 4096 (Llama 8B)": ("decoder", "llama", 4096, 32),
    "encoder-decoder, width 768 (T5 base)": ("encoder-decoder", "t5", 768, 24),
    "encoder-decoder, width 768 (BART base)": ("encoder-decoder", "bart", 768, 12),
}
"""Models whose defaults the pages list: kind, model type, width, blocks."""

# --- parts -------------------------------------------------------------------------------------------------------------


def recipe_keys() -> str:
    """Tables of every key of a recipe but the options of task and method."""
    sections = []
    top: list[list[str]] = [
        ["`task`", "task name, or mapping with `name`", "required", "What is learned; see [tasks](#options-of-the-tasks)."],
        ["`method`", "method name, or mapping with `name`", "required", "What trains; see [methods](#options-of-the-methods)."],
    ]
    for name, field in RecipeBody.model_fields.items():
        inner = models_in(field.annotation)
        if inner:
            sections.append(_section(name, inner[0]))
        else:
            top.append(_key_row(RecipeBody, name, name))
    sources = _section("a source of data", SourceSpec, "")
    return "\n\n".join([f"### The top level\n\n{_table(KEY_HEADER, top)}", *sections, sources])


def options(kind: str) -> str:
    """The option table of every task or method."""
    registry: Any = METHODS if kind == "method" else TASKS
    return "\n\n".join(f"### `{kind}: {name}`\n\n{_options(registry.get(name))}" for name in registry.names())


def fallbacks() -> str:
    """Defaults for `auto` where neither task nor method has one."""
    rows = [[f"`{key}`", _value(default.value), _cell(default.source)] for key, default in FALLBACKS.items()]
    return _table(["key", "value", "source"], rows)


def methods() -> str:
    """One row a method."""
    rows = []
    for name in METHODS.names():
        cls = METHODS.get(name)
        paper = cls.paper
        cited = f"[{_short_authors(paper.authors)} {paper.year}]({paper.url})" if paper else ""
        exports = [form for form, can in (("adapter", cls.capabilities.adapter), ("merged", cls.capabilities.merge)) if can]
        rows.append([f"[{name}]({name}.md)", cls.summary, cited, ", ".join(exports)])
    return _table(["method", "what trains", "paper", "exports"], rows)


def method(name: str) -> str:
    """Update rule, paper, capabilities, options and defaults of one method."""
    cls = METHODS.get(name)
    paper = cls.paper
    lines = ["## Update rule", "", f"    {cls.update_rule}", ""]
    if paper:
        lines += ["## Paper", "", f"{paper.authors} ({paper.year}). [{paper.title}]({paper.url}).", ""]
    rows = [[what, "yes" if getattr(cls.capabilities, key) else "no"] for key, what in CAPABILITIES.items()]
    lines += ["## What can be done with it", "", _table(["", ""], rows), ""]
    lines += ["## Options", "", _options(cls), "", "## Defaults where the recipe says `auto`", "", _method_defaults(cls)]
    return "\n".join(lines)


def peft_types() -> str:
    """What the method `peft` allows, and what it refuses and why."""
    rows = []
    for name, tuner in TUNERS.items():
        can = [form for form, yes in (("merged", tuner.merge), ("quantized base", tuner.quantized), ("GPT-2", tuner.conv1d)) if yes]
        settings = ", ".join(f"`{setting}`" for setting in tuner.settings)
        rows.append([f"[{name}]({tuner.paper})", _cell(tuner.what), ", ".join(can), settings])
    refused = [[name, _cell(reason)] for name, reason in REFUSED.items()]
    own = ", ".join(f"{name} ([{method}]({method}.md))" for name, method in OWN_METHOD.items())
    allowed = _table(["type", "what trains", "works with", "settings"], rows)
    return f"{allowed}\n\nMethods by themselves: {own}.\n\nRefused:\n\n{_table(['type', 'why'], refused)}"


def task(name: str) -> str:
    """Columns, models, metrics and options of one task."""
    cls = TASKS.get(name)
    example = cls(cls.Options())
    columns = [[f"`{key}`", _role(c), c.summary, ", ".join(c.names)] for key, c in example.columns().items()]
    return "\n".join(
        [
            f"Kinds of model: {', '.join(sorted(cls.model_kinds))}. Metrics by default: {', '.join(m.name for m in example.metrics())}.",
            "",
            "### Columns",
            "",
            _table(["column", "", "what", "usual names"], columns),
            "",
            "### Options",
            "",
            _options(cls),
        ]
    )


def metrics() -> str:
    """A table for each metric family."""
    parts = []
    for family, specs in metric_families().items():
        rows = [[f"`{s.name}`", s.direction, "yes" if s.headline else "", _cell(s.summary)] for s in specs]
        parts.append(f"### {family_title(family).capitalize()}\n\n{_table(['metric', 'better', 'interval', 'what'], rows)}")
    return "\n\n".join(parts)


def exit_codes() -> str:
    """What each exit code means."""
    return _table(["code", "meaning"], [[str(code), _cell(meaning)] for code, meaning in EXIT_CODES.items()])


COMMON = {"--help", "--json", "--plugin", "--trust-remote-code"}
"""Options that the page explains once for all verbs."""


def verb(name: str) -> str:
    """Usage, arguments and options of one command (`recipes list`: of a nested one)."""
    command = _command()
    for part in name.split():
        command = command.commands[part]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not COMMON & set(p.opts)]
    rows = [[f"`{p.metavar}`", _cell(p.help or "")] for p in arguments]
    rows += [[f"`{_option_text(p)}`", _cell(p.help or "") + (" Required." if p.required else "")] for p in options]
    usage = " ".join(["ftkit", name, *(p.metavar if p.required else f"[{_several(p)}]" for p in arguments), "[OPTIONS]"])
    return "\n".join(["```text", usage, "```", "", str(command.help).strip(), *(["", _table(["", ""], rows)] if rows else [])])


def recipe(name: str) -> str:
    """A shipped recipe without its head."""
    lines = shipped_recipes()[name].read_text(encoding="utf-8").splitlines()
    return "\n".join(["```yaml", *(line for line in lines if not line.startswith("#")), "```"])


PARTS: dict[str, Callable[..., str]] = {
    "recipe-keys": recipe_keys,
    "options": options,
    "fallbacks": fallbacks,
    "methods": methods,
    "method": method,
    "peft-types": peft_types,
    "task": task,
    "metrics": metrics,
    "exit-codes": exit_codes,
    "verb": verb,
    "recipe": recipe,
}


# --- keys and options --------------------------------------------------------------------------------------------------

KEY_HEADER = ["key", "type", "default", "what"]
CAPABILITIES = {
    "adapter": "export as a PEFT adapter",
    "merge": "export as a plain model",
    "checkpointing": "works with gradient checkpointing",
    "quantized": "works on a quantized base",
    "from_scratch": "makes sense on random weights",
}


WRITTEN = {"Every": "`{epochs: number > 0}` or `{steps: whole number >= 1}`", "SourceSpec": "[source](#a-source-of-data)"}
"""Mappings that stand in many places, as the type column shows them."""


def _section(title: str, model: type[BaseModel], prefix: str | None = None) -> str:
    shown = f"`{title}`" if prefix is None else title[0].upper() + title[1:]
    about = " ".join(str(model.__doc__).strip().split("\n\n")[0].split())
    shorthand = model.shorthand if issubclass(model, Strict) else ""
    if shorthand:
        about += f" Plain text stands for `{shorthand}`."
    rows = list(_key_rows(model, title if prefix is None else prefix))
    return f"### {shown}\n\n{about}\n\n{_table(KEY_HEADER, rows)}"


def _key_rows(model: type[BaseModel], prefix: str) -> Iterator[list[str]]:
    """A row for each key of a mapping, nested mappings after the key that holds them."""
    for name, field in model.model_fields.items():
        shown = f"{prefix}.{name}" if prefix else name
        yield _key_row(model, name, shown)
        for inner in models_in(field.annotation):
            if inner.__name__ not in WRITTEN:
                yield from _key_rows(inner, shown)


def _key_row(model: type[BaseModel], name: str, shown: str) -> list[str]:
    schema = model.model_json_schema()
    form = schema["properties"][name]
    default = "required" if name in schema.get("required", []) else _default(model, name, form)
    kind = type_text(form, schema.get("$defs", {}), WRITTEN)
    return [f"`{shown}`", kind.replace("|", "\\|"), _cell(default), _cell(form.get("description", ""))]


def _default(model: type[BaseModel], name: str, form: dict[str, Any]) -> str:
    if "default" in form:
        return _value(form["default"])
    made = model.model_fields[name].get_default(call_default_factory=True)
    values = made.model_dump(mode="json", exclude_none=True) if isinstance(made, BaseModel) else made
    return "all defaults" if isinstance(values, dict) and len(values) > 3 else _value(values)


def _options(component: Any) -> str:
    model = component.Options
    if not model.model_fields:
        return "None."
    rows = [row for name in model.model_fields for row in [_key_row(model, name, name)]]
    return _table(["option", *KEY_HEADER[1:]], rows)


def _method_defaults(cls: Any) -> str:
    """Value and source by kind of model; models with the same value and source share a row."""
    found: dict[tuple[str, str, str], list[str]] = {}
    # One that needs options refuses all models without them.
    for shown, (kind, model_type, width, blocks) in EXAMPLES.items():
        facts = ModelFacts(
            kind=kind, model_type=model_type, hidden_size=width, block_count=blocks, max_positions=512, vocab_size=None, path=None
        )
        made = cls(cls.Options())
        if not cls.needs and made.refusal(facts):
            continue
        for key, default in made.defaults(facts).items():
            found.setdefault((key, _value(default.value), _cell(default.source)), []).append(shown)
    rows = [[f"`{key}`", value, _models(models), source] for (key, value, source), models in found.items()]
    return _table(["key", "value", "for", "source"], sorted(rows, key=lambda row: row[0]))


def _models(models: Sequence[str]) -> str:
    return "all" if len(models) == len(EXAMPLES) else "; ".join(models)


def _role(column: Column) -> str:
    return "target" if column.target else "required" if column.required else "optional"


# --- commands ----------------------------------------------------------------------------------------------------------


def _command() -> Any:
    from typer.main import get_command

    from ftkit.cli.app import app

    return get_command(app)


def verbs() -> list[str]:
    """All commands by name, nested ones as `recipes list`."""
    found = []
    for name, command in _command().commands.items():
        inner = getattr(command, "commands", None)
        found += [f"{name} {part}" for part in inner] if inner else [name]
    return found


def _option_text(parameter: Any) -> str:
    names = ", ".join(parameter.opts)
    return names if parameter.is_flag else f"{names} {parameter.metavar or _METAVARS.get(parameter.name, 'TEXT')}"


_METAVARS = {"rows": "N", "batch_size": "N", "format": "FORMAT"}
"""Of options whose metavar Typer makes up, by name."""


def _short_authors(authors: str) -> str:
    names = authors.split(", ")
    return " & ".join(names) if len(names) < 3 else f"{names[0]} et al."


def _several(parameter: Any) -> str:
    return f"{parameter.metavar} ..." if parameter.nargs == -1 else str(parameter.metavar)


# --- Markdown ----------------------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _cell(text: str) -> str:
    parts = " ".join(str(text).split()).replace("|", "\\|").split("`")
    # Outside code, `<` would start an HTML tag.
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def _value(value: Any) -> str:
    """A default as a recipe writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    text = str(value)
    return text if scalar(text) == text else f'"{text}"'


# --- files -------------------------------------------------------------------------------------------------------------


def filled(text: str) -> str:
    """A page with its generated parts made anew. Raises ValueError for a part that nothing generates."""

    def fill(match: re.Match[str]) -> str:
        kind, _, argument = match[2].partition(" ")
        if kind not in PARTS:
            raise ValueError(f"nothing generates {match[2]!r}")
        return f"{match[1]}\n{PARTS[kind](*([argument] if argument else []))}\n\n{match[3]}"

    return _PART.sub(fill, text)


def pages(docs: Path) -> dict[Path, str]:
    """Each page as it should be, by path; pages of new methods and tasks included."""
    found = [path for path in (docs.parent / "README.md", *sorted(docs.rglob("*.md"))) if path.is_file()]
    texts = {path: path.read_text(encoding="utf-8") for path in found}
    for kind, folder, registry in (("method", "methods", METHODS), ("task", "tasks", TASKS)):
        for name in registry.names():
            page = PAGE.format(name=name, kind=kind, summary=registry.get(name).summary)
            texts.setdefault(docs / folder / f"{name}.md", page)
    return {path: filled(text) for path, text in texts.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 if `--check` found something stale."""
    parser = argparse.ArgumentParser(description="Fill the generated parts of docs/.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if something is stale")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder of pages")
    given = parser.parse_args(arguments)
    stale = [path for path, text in pages(given.docs).items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'stale' if given.check else 'wrote'}: {path.relative_to(given.docs.parent)}")
    if given.check:
        return 1 if stale else 0
    for path, text in pages(given.docs).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
