"""`ftkit doctor`: what is wrong with the data, before anything is trained on it; and whether resuming a run is exact here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from ftkit.cli.options import AllowCode, AsJson, Overrides, Plugins, RecipeFile, load_plugins
from ftkit.cli.output import clean, console, emit, is_terminal, one_line, say
from ftkit.cli.shipped import recipe_file

TITLES = {"error": "Errors", "warning": "Warnings", "note": "Notes"}
STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
ERRORS_FOUND = 2


def doctor(
    recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False, plugins: Plugins = None, allow_code: AllowCode = False
) -> None:
    """Look for defects of the data: leaks, duplicates, wrong labels, damaged or cut texts.

    Exits with 2 if there is an error: training would refuse the data, or its results would mean nothing.

    `ftkit doctor resume RUN` proves instead that resuming is exact on this machine: it trains a stretch of a run again from a checkpoint
    and compares bit by bit. Exits with 0 if it is, 4 if not, 2 if there is nothing to compare. The run is only read.
    """
    load_plugins(plugins)
    if _asks_for_resume(recipe, overrides):
        _doctor_resume(overrides or [], as_json, allow_code)
        return
    from ftkit import api
    from ftkit.cli.display import make_progress

    checked = api.load_recipe(recipe_file(recipe), overrides or ())
    with make_progress(as_json=as_json) as display:
        report = api.doctor(checked, observer=display, allow_code=allow_code)
    if as_json:
        emit(report)
    else:
        _print(report)
    if any(finding["severity"] == "error" for finding in report["findings"]):
        raise typer.Exit(ERRORS_FOUND)


def _asks_for_resume(recipe: Path, overrides: Sequence[str] | None) -> bool:
    """Whether the words are `resume RUN`, not a recipe of that name and changes to it."""
    if str(recipe) != "resume":
        return False
    return not recipe.is_file() or any("=" not in word and not word.startswith("~") for word in overrides or ())


def _doctor_resume(words: Sequence[str], as_json: bool, allow_code: bool) -> None:
    if len(words) != 1:
        raise typer.BadParameter(f"`doctor resume` takes one run folder, not {len(words)}: ftkit doctor resume RUN")
    from ftkit import api
    from ftkit.cli.display import make_progress
    from ftkit.cli.replay_view import print_replay

    with make_progress(as_json=as_json) as display:
        report = api.doctor_resume(words[0], observer=display, allow_code=allow_code)
    if as_json:
        emit(report)
    else:
        print_replay(report)
    raise typer.Exit(report["exit_code"])


def _print(report: Mapping[str, Any]) -> None:
    for severity, title in TITLES.items():
        chosen = [finding for finding in report["findings"] if finding["severity"] == severity]
        if chosen:
            _line(title, STYLES[severity])
            for finding in chosen:
                _print_finding(finding)
            say()
    rows = ", ".join(f"{name} {count:,}" for name, count in report["rows"].items())
    say(f"{'' if report['findings'] else 'Nothing found. '}Usable rows: {rows or 'none'}.")


def _print_finding(finding: Mapping[str, Any]) -> None:
    _line(f"  {finding['check']}: {one_line(finding['message'])}")
    details = finding["details"] or [""] * len(finding["places"])
    width = max((len(one_line(place)) for place in finding["places"]), default=0)
    for place, detail in zip(finding["places"], details, strict=True):
        _line(f"      {one_line(place).ljust(width)}  {one_line(detail)}".rstrip(), "dim")
    more = finding["rows"] - len(finding["places"])
    if finding["places"] and more > 0:
        _line(f"      and {more:,} more", "dim")
    if finding["hint"]:
        _line(f"    → {one_line(finding['hint'])}")


def _line(text: str, style: str = "") -> None:
    """A line on standard output, in a style where that is a terminal."""
    if not is_terminal(sys.stdout):
        say(text)
        return
    console(sys.stdout).print(clean(text), style=style or None, soft_wrap=True)
