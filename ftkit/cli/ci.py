"""Tells a CI system how a run ended: a JUnit file where one is asked for, a summary where GitHub Actions runs it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ftkit.cli.failure import print_problems
from ftkit.errors import EXIT_CODES, FtkitError, Problem

Junit = Annotated[
    Path | None,
    typer.Option(
        "--junit",
        metavar="FILE",
        help="Write JUnit XML: a test case for the run and one for each gate. A file that exists is replaced.",
        show_default=False,
    ),
]


class Report:
    """What is known of a run so far. name: of the recipe. gates: keys of those it has. results: once it is over."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._began = time.monotonic()
        self.gates: Sequence[str] = ()
        self.results: Mapping[str, Any] | None = None

    def expects(self, recipe: Any) -> None:
        """Takes name and gates of a checked recipe."""
        from ftkit.recipe.expectations import parse_gates

        self.name, self.gates = recipe.origin.name, [gate.key for gate in parse_gates(recipe.expect)]

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def ends(self, results: Mapping[str, Any]) -> None:
        """Takes the results."""
        self.results = results


@contextmanager
def reported(name: str, junit: Path | None) -> Iterator[Report]:
    """Reports on what happens inside, however it ends. Raises a usage error for a file that cannot be written, before it begins."""
    if junit is not None and (junit.is_dir() or not junit.absolute().parent.is_dir()):
        what = "is a folder" if junit.is_dir() else f"lies in a folder that does not exist; make it: mkdir -p {junit.parent}"
        raise typer.BadParameter(f"--junit {junit} {what}")
    report = Report(name)
    try:
        yield report
    except FtkitError as error:
        silent = f"another process ended the run: {EXIT_CODES.get(error.exit_code, error.exit_code)}"
        _write(report, junit, [str(problem) for problem in error.problems] or [silent])
        raise
    except (Exception, KeyboardInterrupt) as error:
        _write(report, junit, [f"{type(error).__name__}: {error}".removesuffix(": ")])
        raise
    _write(report, junit, [])


def report_failure(name: str, junit: Path | None, error: FtkitError) -> None:
    """Reports on a run of several processes that could not end by itself: one of them was killed, or a machine lost."""
    if junit is not None and not junit.is_dir() and junit.absolute().parent.is_dir():
        _write(Report(name), junit, [str(problem) for problem in error.problems])


def _write(report: Report, junit: Path | None, problems: Sequence[str]) -> None:
    from ftkit.cli.github import add_summary, summary

    if junit is not None:
        from ftkit.cli.junit import junit_xml
        from ftkit.files import write_text

        waiting = report.gates if report.results is None else ()
        write_text(junit, junit_xml(report.name, report.results, problems, waiting, seconds=report.seconds))
    if trouble := add_summary(summary(report.name, report.results, problems)):
        print_problems([Problem(message=trouble)], kind="warning")


def missed_problems(gates: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """A problem for each gate that is not met."""
    from ftkit.cli.summary import gate_name, gate_text

    return [Problem(message=gate_text(gate), key=f"expect.{gate_name(gate)}") for gate in gates if not gate["passed"]]
