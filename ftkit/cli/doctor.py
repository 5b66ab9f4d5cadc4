"""`ftkit doctor`: what is wrong with the data, before anything is trained on it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
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
    """
    load_plugins(plugins)
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
