"""`ftkit train`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftkit.cli.ci import Junit, missed_problems, report_failure, reported
from ftkit.cli.failure import print_problems
from ftkit.cli.github import annotate
from ftkit.cli.launching import (
    LauncherFile,
    NodeRank,
    Nodes,
    Processes,
    Rendezvous,
    RendezvousTimeout,
    refuse_second_launch,
    start,
)
from ftkit.cli.options import AllowCode, AsJson, Overrides, Plugins, Quiet, RecipeFile, load_plugins, refuse_both
from ftkit.cli.output import emit
from ftkit.cli.shipped import recipe_file
from ftkit.errors import FtkitError
from ftkit.run.cluster import cluster_of
from ftkit.run.signals import end_with_launcher
from ftkit.run.world import World, launched_world

if TYPE_CHECKING:
    from ftkit.cli.display import Display


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
    processes: Processes = None,
    nodes: Nodes = None,
    node_rank: NodeRank = None,
    rendezvous: Rendezvous = None,
    rendezvous_timeout: RendezvousTimeout = None,
    launcher: LauncherFile = None,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="Try the whole life of the recipe on few rows, in about a minute: train 4 steps, evaluate, save, kill, resume, export, "
            "reload, predict. Nothing is left behind.",
        ),
    ] = False,
) -> None:
    """Train, evaluate and export what a recipe says.

    Ends with exit code 4 if a gate of `expect:` is not met.
    """
    world = launched_world()
    cluster = cluster_of(
        launcher,
        {
            "nproc": processes,
            "nodes": nodes,
            "node_rank": node_rank,
            "rendezvous": rendezvous,
            "rendezvous_timeout": rendezvous_timeout,
        },
    )
    if smoke:
        given = {
            "--resume": resume,
            "--overwrite": overwrite,
            "--output": output,
            "--junit": junit,
            "--nproc": cluster.nproc > 1,
            "--nodes": nodes is not None,
            "--launcher": launcher,
        }
        _refuse_beside_smoke([option for option, value in given.items() if value], world)
        _smoke(recipe, overrides, quiet=quiet, as_json=as_json, plugins=plugins, allow_code=allow_code)
        return
    refuse_both(resume=resume, overwrite=overwrite)
    refuse_second_launch(world, cluster)
    if cluster.several:
        flags = {
            "--resume": resume,
            "--overwrite": overwrite,
            "--quiet": quiet,
            "--json": as_json,
            "--trust-remote-code": allow_code,
        }
        values = [("--output", output), ("--junit", junit), *(("--plugin", plugin) for plugin in plugins or ())]
        words = ["train", *(flag for flag, given in flags.items() if given)]
        words += [word for name, value in values if value is not None for word in (name, str(value))]
        try:
            code = start([*words, "--", str(recipe), *(overrides or ())], cluster)
        except FtkitError as error:
            report_failure(recipe.stem, junit, error)
            raise
        raise typer.Exit(code)
    end_with_launcher()
    from ftkit import api

    with reported(recipe.stem, junit if world.is_main else None) as report, _display(world, quiet, as_json) as display:
        with _agreeing(world):
            load_plugins(plugins)
            checked = api.load_recipe(recipe_file(recipe), overrides or ())
            report.expects(checked)
        result = api.train(checked, output=output, resume=resume, overwrite=overwrite, observer=display, allow_code=allow_code)
        if not world.is_main:
            raise typer.Exit(result.exit_code)
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


def _refuse_beside_smoke(options: Sequence[str], world: World) -> None:
    if options:
        message = (
            f"--smoke takes no {' and no '.join(options)}: it runs in a folder of its own, which goes in the end, in one process"
        )
        raise typer.BadParameter(message)
    if world.several:
        raise typer.BadParameter(f"--smoke starts its processes itself, and a launcher has started {world.size}")


def _smoke(
    recipe: Path, overrides: Sequence[str] | None, *, quiet: bool, as_json: bool, plugins: Sequence[Path] | None, allow_code: bool
) -> None:
    load_plugins(plugins)
    from ftkit import api
    from ftkit.cli.display import make_progress
    from ftkit.cli.smoke_view import print_smoke

    checked = api.load_recipe(recipe_file(recipe), overrides or ())
    with make_progress(as_json=as_json or quiet) as display:
        report = api.smoke(checked, observer=display, allow_code=allow_code)
    if as_json:
        emit(report)
    elif not quiet:
        print_smoke(report)


def _agreeing(world: World) -> AbstractContextManager[Any]:
    """What goes wrong inside ends all processes of a run, and one of them says why."""
    if not world.several:
        return nullcontext()
    from ftkit.run.joining import meeting_of

    return meeting_of(world).agreeing()


def _display(world: World, quiet: bool, as_json: bool) -> Display:
    from ftkit.cli.display import Display, make_display

    return make_display(quiet=quiet, as_json=as_json) if world.is_main else Display()


def _report_warning(results: dict) -> None:
    from ftkit.errors import Problem

    if warning := results.get("warning"):
        print_problems([Problem(message=warning)], kind="warning")
