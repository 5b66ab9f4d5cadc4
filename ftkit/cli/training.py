"""`ftkit train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftkit.cli.ci import Junit, missed_problems, reported
from ftkit.cli.failure import print_problems
from ftkit.cli.github import annotate
from ftkit.cli.options import AllowCode, AsJson, Overrides, Plugins, Quiet, RecipeFile, load_plugins, refuse_both
from ftkit.cli.output import emit
from ftkit.cli.shipped import recipe_file


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run where its last checkpoint stands.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Move an existing run folder aside and start anew.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="The run folder (default: `output` of the recipe).", show_default=False),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    plugins: Plugins = None,
    allow_code: AllowCode = False,
    junit: Junit = None,
) -> None:
    """Train, evaluate and export what a recipe says.

    Ends with exit code 4 if a gate of `expect:` is not met.
    """
    refuse_both(resume=resume, overwrite=overwrite)
    load_plugins(plugins)
    from ftkit import api
    from ftkit.cli.display import make_display

    with reported(recipe.stem, junit) as report, make_display(quiet=quiet, as_json=as_json) as display:
        checked = api.load_recipe(recipe_file(recipe), overrides or ())
        report.expects(checked)
        result = api.train(checked, output=output, resume=resume, overwrite=overwrite, observer=display, allow_code=allow_code)
        if not display.closed_with_results:
            display.finished(result.results)
        report.ends(result.results)
    missed = missed_problems(result.results.get("gates") or ())
    if as_json:
        emit(result.results)
        annotate(missed)
    else:
        print_problems(missed)
        if quiet:
            _report_warning(result.results)
    raise typer.Exit(result.exit_code)


def _report_warning(results: dict) -> None:
    from ftkit.errors import Problem

    if warning := results.get("warning"):
        print_problems([Problem(message=warning)], kind="warning")
