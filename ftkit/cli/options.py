"""Arguments and options that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="The recipe: a YAML file, or the name of a shipped one (`ftkit recipes`).", show_default=False
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes to the recipe: `train.epochs=1` sets a key, `~export` removes one.",
        show_default=False,
    ),
]
PredictionOptions = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Options of the task for prediction alone, under other values than in training: `task.generation.max_new_tokens=64`.",
        show_default=False,
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as `ftkit train` printed it.", show_default=False)]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="RUN",
        help="Another run on the same base, which answers too; NAME=RUN to name it. The base is in memory once. Repeatable.",
        show_default=False,
    ),
]
AdapterColumn = Annotated[
    str | None,
    typer.Option(
        "--adapter-column",
        metavar="NAME",
        help="With --adapter: the column that names the one adapter of a row.",
        show_default=False,
    ),
]
Ensemble = Annotated[
    list[Path] | None,
    typer.Option(
        "--ensemble",
        metavar="RUN",
        help="Another run of the same recipe (with another seed) that votes together with this one. Repeatable.",
        show_default=False,
    ),
]
DropBlocks = Annotated[
    int,
    typer.Option(
        "--drop-blocks",
        metavar="N",
        min=0,
        help="Leave the bottleneck adapters of the N lowest blocks out (AdapterDrop).",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output; everything else on standard error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and the run folder, nothing else.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that exists.")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="Python file that defines a task or method of your own. It runs with your rights. Repeatable.",
        show_default=False,
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Consent to run code that the recipe names: of a model, or of an `evaluate:` metric."),
]


def load_plugins(files: Sequence[Path] | None) -> None:
    """Runs plug-in files in the order given. Raises RecipeError."""
    for file in files or ():
        from ftkit.registry import load_plugin

        load_plugin(file)


def refuse_both(**given: object) -> None:
    """Raises a usage error if two options that exclude each other are both given. Names are those of the options."""
    names = [f"--{name.rstrip('_').replace('_', '-')}" for name, value in given.items() if value]
    if len(names) > 1:
        raise typer.BadParameter(f"give {' or '.join(names)}, not both")
