"""`ftkit gate` and `baseline`: what a run must reach."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftkit.cli.ci import Junit, missed_problems, reported
from ftkit.cli.failure import print_problems
from ftkit.cli.files import refuse_existing
from ftkit.cli.github import annotate
from ftkit.cli.options import AsJson, Force, Plugins, Run, load_plugins
from ftkit.cli.output import emit, one_line, say

Gates = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Other gates than the run's own: 'expect={accuracy: \">= 0.9\"}', 'expect.vs.file=baseline.json'.",
        show_default=False,
    ),
]


def gate(run: Run, gates: Gates = None, junit: Junit = None, as_json: AsJson = False, plugins: Plugins = None) -> None:
    """Hold a finished run against gates again, its own or others, without training.

    Ends with exit code 4 if one is not met. Nothing in the run changes.
    """
    load_plugins(plugins)
    from ftkit import api
    from ftkit.cli.summary import gate_name, gate_text

    with reported(run.name, junit) as report:
        found = api.gate(run, gates or ())
        report.ends(found)
    problems = missed_problems(found["gates"])
    if as_json:
        emit(found)
        annotate(problems)
    else:
        for note in found["notes"]:
            say(f"note: {one_line(note)}")
        for entry in found["gates"]:
            if entry["passed"]:
                say(f"{gate_name(entry)}: {gate_text(entry)}")
        print_problems(problems)
    raise typer.Exit(found["exit_code"])


def baseline(
    run: Run,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="The file to write.")] = Path("baseline.json"),
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write what a run reached as a baseline, which `expect: {vs: {file: ...}}` holds later runs against."""
    refuse_existing(output, force=force)
    from ftkit import api
    from ftkit.files import write_json

    found = api.baseline(run)
    write_json(output, found)
    if as_json:
        emit({"output": str(output.absolute()), "baseline": found})
    else:
        say(f"{one_line(output)}: {len(found['metrics'])} metrics of {found['split']}, {one_line(found['recipe'])}")
