"""`ftkit adapters`: working with what was trained. Views of the functions of `ftkit.api`; see `ftkit.adapters`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ftkit.cli.adapters_view import print_conversion, print_derived, print_diff, print_inspection, print_list
from ftkit.cli.options import AllowCode, AsJson, Plugins, Quiet, load_plugins
from ftkit.cli.output import emit

app = typer.Typer(help="List, inspect, compare, merge, extract, convert and fuse adapters.", no_args_is_help=False)

Subject = Annotated[
    Path, typer.Argument(metavar="RUN|ADAPTER", help="A run folder, or the folder of an exported adapter.", show_default=False)
]
Output = Annotated[
    Path, typer.Option("--output", metavar="DIR", help="The folder to write; it must not hold files.", show_default=False)
]
Evaluate = Annotated[
    list[str] | None,
    typer.Option(
        "--evaluate",
        metavar="SPLIT",
        help="A split of the first run's recipe to measure before and after: validation, test or none. Repeatable (default: both).",
        show_default=False,
    ),
]


@app.callback(invoke_without_command=True)
def adapters(context: typer.Context) -> None:
    """List, inspect, compare, merge, extract, convert and fuse adapters."""
    if context.invoked_subcommand is None:
        from ftkit.cli.output import say

        say(context.get_help())


@app.command("list")
def list_adapters(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="Runs, exported adapters, or folders with such in them.", show_default=False),
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Say of each whether it belongs to this base model.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """List runs and exported adapters: method, base, parameters, size, task, best metric, when."""
    load_plugins(plugins)
    from ftkit import api

    found = api.list_adapters(folders, base=base)
    if as_json:
        emit({"adapters": found})
    else:
        print_list(found, with_base=base is not None)


@app.command("inspect")
def inspect(subject: Subject, as_json: AsJson = False, plugins: Plugins = None, allow_code: AllowCode = False) -> None:
    """Show parameters, norm and effective rank of what was trained, layer by layer."""
    load_plugins(plugins)
    from ftkit import api

    with _progress(as_json) as display:
        display.stage("loading")
        found = api.inspect_adapter(subject, allow_code=allow_code)
    if as_json:
        emit(found)
    else:
        print_inspection(found)


@app.command("diff")
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run or an exported adapter.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Compare two runs or adapters: tensor by tensor, settings, base."""
    load_plugins(plugins)
    from ftkit import api

    found = api.diff_adapters(a, b)
    if as_json:
        emit(found)
    else:
        print_diff(found)


@app.command("merge")
def merge(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Two runs or more: one method, one base, one label set.", show_default=False),
    ],
    output: Output,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="W,W...",
            help="One for each run (default: equal, with the sum 1). They may be negative.",
            show_default=False,
        ),
    ] = None,
    combination: Annotated[
        str,
        typer.Option(
            "--combination",
            help="cat (exact, the ranks add up), svd (cut to a rank), linear, ties, dare_linear, dare_ties, magnitude_prune, or one of "
            "these four with _svd behind (default: cat; for ia3 linear).",
            show_default=False,
        ),
    ] = "",
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Of the result, with svd (default: the largest).", show_default=False)
    ] = None,
    density: Annotated[
        float | None,
        typer.Option("--density", help="Share of values to keep, with ties, dare and magnitude_prune.", show_default=False),
    ] = None,
    head: Annotated[
        str,
        typer.Option(
            "--head", metavar="WHICH", help="The task head: average, or the number (from 1) or folder of the run to take it from."
        ),
    ] = "average",
    evaluate: Evaluate = None,
    as_json: AsJson = False,
    plugins: Plugins = None,
    allow_code: AllowCode = False,
) -> None:
    """Make one run out of several by weights, and measure it against them.

    The result is a run folder for predict, evaluate and export.
    """
    load_plugins(plugins)
    from ftkit import api

    numbers = _numbers(weights)
    with _progress(as_json) as display:
        results = api.merge_adapters(
            runs,
            output,
            weights=numbers,
            combination=combination,
            rank=rank,
            density=density,
            head=head,
            evaluate=evaluate,
            allow_code=allow_code,
            observer=display,
        )
    _show(results, as_json)


@app.command("extract")
def extract(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run that tuned the model itself (full, partial).", show_default=False)
    ],
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rank of each update.", show_default=False)],
    output: Output,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="MODEL", help="Take the updates against this model (default: that of the recipe).", show_default=False
        ),
    ] = None,
    keep_rest: Annotated[
        bool,
        typer.Option("--keep-rest", help="Also keep what is no linear layer's weight (embeddings, norms, biases), whole."),
    ] = False,
    evaluate: Evaluate = None,
    as_json: AsJson = False,
    plugins: Plugins = None,
    allow_code: AllowCode = False,
) -> None:
    """Make a LoRA out of a tuned model: the best approximation of its change of a given rank, with its error.

    The result is a run folder for predict, evaluate and export.
    """
    load_plugins(plugins)
    from ftkit import api

    with _progress(as_json) as display:
        results = api.extract_lora(
            run, rank, output, base=base, keep_rest=keep_rest, evaluate=evaluate, allow_code=allow_code, observer=display
        )
    _show(results, as_json)


@app.command("convert")
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A folder of AdapterHub's library, or a run or adapter of ftkit.", show_default=False
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="ftkit or adapterhub.", show_default=False)],
    output: Output,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="The base model (default: what the source names).", show_default=False),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="What AdapterHub is to call the adapter (default: the folder's name).", show_default=False)
    ] = "",
    as_json: AsJson = False,
    plugins: Plugins = None,
    allow_code: AllowCode = False,
) -> None:
    """Convert a bottleneck adapter of AdapterHub's library for ftkit, or back. Values stay as they are; heads are left out."""
    load_plugins(plugins)
    from ftkit import api

    with _progress(as_json) as display:
        display.stage("converting")
        found = api.convert_adapter(source, to, output, base=base, name=name, allow_code=allow_code)
    if as_json:
        emit(found)
    else:
        print_conversion(found)


@app.command("fuse")
def fuse(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER... [KEY=VALUE]...",
            help="Runs of adapter or compacter that exported an adapter, or exported adapters; then changes to the recipe.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        Path, typer.Option("--recipe", metavar="RECIPE", help="What to train it on; its method is replaced.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="The run folder (default: `output` of the recipe).", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run where its last checkpoint stands.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Move an existing run folder aside and start anew.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    plugins: Plugins = None,
    allow_code: AllowCode = False,
) -> None:
    """Train an AdapterFusion of several adapters on the data of a recipe: `ftkit train` with `method: adapter-fusion`."""
    from ftkit.adapters.fusing import fusion_overrides
    from ftkit.cli.training import train

    changes = [text for text in given if not Path(text).exists() and ("=" in text or text.startswith("~"))]
    overrides = fusion_overrides([Path(text) for text in given if text not in changes], changes)
    train(recipe, overrides, resume, overwrite, output, quiet, as_json, plugins, allow_code)


def _progress(as_json: bool) -> Any:
    from ftkit.cli.display import make_progress

    return make_progress(as_json=as_json)


def _show(results: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(results)
    else:
        print_derived(results)


def _numbers(text: str | None) -> list[float]:
    """The numbers in `0.5,0.5`. Raises a usage error."""
    found = []
    for part in text.split(",") if text else ():
        try:
            found.append(float(part))
        except ValueError:
            raise typer.BadParameter(f"--weights: {part.strip()!r} is no number; write them as in 0.5,0.5") from None
        if not abs(found[-1]) < float("inf"):
            raise typer.BadParameter(f"--weights: {part.strip()!r} is not finite")
    return found
