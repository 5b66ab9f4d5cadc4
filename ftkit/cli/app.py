"""The command line: verbs, and how they end. Importing this loads no torch and no pydantic; each verb imports what it needs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, NoReturn

import typer
from typer.main import get_command

from ftkit import __version__
from ftkit.cli import adapters, catalog, checking, comparing, doctor, gating, machine, runs, shipped, starting, training
from ftkit.cli.failure import BROKEN_PIPE, USAGE_ERROR, abandon_standard_output, guarded, print_problems, unwritable_output
from ftkit.cli.output import naming_standard_output, prepare_streams, say, standard_output_for_documents
from ftkit.errors import EXIT_CODES

EPILOG = "\b\n" + "\n".join(["Exit codes:", *(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items())])
TRAINING, RUNS, LOOKING_UP, STARTING = "Train", "Use a run", "Look up", "Start"

app = typer.Typer(
    name="ftkit",
    help="Fine-tune any Transformer, by any tuning method, on your own data, from one recipe.",
    epilog=EPILOG,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(rich_help_panel=STARTING)(starting.init)
app.add_typer(shipped.app, name="recipes", rich_help_panel=STARTING)
app.command(rich_help_panel=TRAINING)(checking.validate)
app.command(rich_help_panel=TRAINING)(doctor.doctor)
app.command(rich_help_panel=TRAINING)(checking.plan)
app.command(rich_help_panel=TRAINING)(checking.inspect)
app.command(rich_help_panel=TRAINING)(training.train)
app.command(rich_help_panel=RUNS)(runs.evaluate)
app.command(rich_help_panel=RUNS)(gating.gate)
app.command(rich_help_panel=RUNS)(gating.baseline)
app.command(rich_help_panel=RUNS)(comparing.diff)
app.command(rich_help_panel=RUNS)(comparing.rerun)
app.command(rich_help_panel=RUNS)(runs.predict)
app.command(rich_help_panel=RUNS)(runs.export)
app.add_typer(adapters.app, name="adapters", rich_help_panel=RUNS)
app.command(rich_help_panel=LOOKING_UP)(catalog.methods)
app.command(rich_help_panel=LOOKING_UP)(catalog.tasks)
app.command(rich_help_panel=LOOKING_UP)(catalog.metrics)
app.command(rich_help_panel=LOOKING_UP)(catalog.schema)
app.command(rich_help_panel=LOOKING_UP)(machine.env)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def ftkit(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Fine-tune any Transformer, by any tuning method, on your own data, from one recipe."""
    if context.invoked_subcommand is None:
        say(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "_FTKIT_COMPLETE" in os.environ:
        get_command(app).main(given, prog_name="ftkit")
    prepare_streams()
    _silence_notices()
    as_json, code = "--json" in given, 0
    try:
        with standard_output_for_documents() if as_json else nullcontext():
            code = guarded(lambda: _run(given), as_json=as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        abandon_standard_output()
        code = BROKEN_PIPE
    except OSError as error:
        problem = unwritable_output(error)
        if not code:
            print_problems([problem])
        code = code or USAGE_ERROR
    sys.exit(code)


def _silence_notices() -> None:
    """Notices of libraries to those who program with them are none of a user's business; `python -W` and PYTHONWARNINGS bring them back."""
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)


def _run(arguments: list[str]) -> int:
    """Parses and runs one command. Not Click's own `main`, which words errors its own way and swallows broken pipes."""
    command = get_command(app)
    prints_help = not {"-h", "--help"}.isdisjoint(arguments)
    with naming_standard_output() if prints_help else nullcontext(), command.make_context("ftkit", arguments) as context:
        command.invoke(context)
    return 0
