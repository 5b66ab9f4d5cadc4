"""What GitHub Actions shows of a command: annotations of what went wrong, and a summary of the run in Markdown.

Annotations are workflow commands, lines that the runner takes off the command's output; the summary is appended to the file that
the runner names. Both: docs.github.com, "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.cli.output import clean, one_line, shown_seconds, write
from ftkit.cli.summary import gate_name, measured_text, metric_table

if TYPE_CHECKING:
    from ftkit.errors import Problem

_PLACE = re.compile(r"(?P<file>.+?)(?::(?P<line>\d+):(?P<col>\d+)|, line (?P<data_line>\d+))")
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~&$@!]")


def runs_here() -> bool:
    """Whether this is a job of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS", "").lower() == "true"


def annotate(problems: Sequence[Problem], kind: str = "error") -> None:
    """An annotation for each problem, on standard error, where GitHub Actions runs this; nothing elsewhere."""
    if runs_here():
        write("".join(annotation(problem, kind) + "\n" for problem in problems), to=sys.stderr, flush=True)


def annotation(problem: Problem, kind: str = "error") -> str:
    """The workflow command that annotates a problem, at its file and line where it has them. kind: `error` or `warning`."""
    properties = {**_position(problem.place), "title": f"ftkit: {problem.key}" if problem.key else "ftkit"}
    parts = [
        problem.message if properties.get("file") else f"{problem.place}: {problem.message}" if problem.place else problem.message
    ]
    text = _data("\n".join([*parts, *([problem.hint] if problem.hint else [])]))
    return f"::{kind} {','.join(f'{key}={_property(value)}' for key, value in properties.items())}::{text}"


def _position(place: str) -> dict[str, str]:
    match = _PLACE.fullmatch(place)
    if match is None:
        return {}
    found = {"file": match["file"], "line": match["line"] or match["data_line"], "col": match["col"]}
    return {key: value for key, value in found.items() if value}


def _data(text: str) -> str:
    # The percent sign first: the others become some.
    return clean(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


# --- the summary of a step ---------------------------------------------------------------------------------------------


def add_summary(markdown: str) -> str:
    """Appends to the step's summary where there is one. Returns what kept it from being written, '' if nothing."""
    path = os.environ.get("GITHUB_STEP_SUMMARY", "")
    if not runs_here() or not path:
        return ""
    try:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(markdown + "\n")
    except OSError as error:
        return f"the step's summary cannot be written: {error.strerror or error}"
    return ""


def summary(name: str, results: Mapping[str, Any] | None, problems: Sequence[str] = ()) -> str:
    """A run in Markdown: how it ended, its gates, its metrics."""
    status = "failed" if results is None else str(results.get("status", "gated")).replace("_", " ")
    parts = [f"### ftkit {_text(name)}: {_text(status)}"]
    parts += [f"- {_text(problem)}" for problem in problems]
    given = results or {}
    if gates := given.get("gates"):
        rows = [[gate_name(gate), gate["expected"], measured_text(gate), *_verdict(gate)] for gate in gates]
        parts.append(markdown_table(["gate", "expected", "measured", "", "missed by"], rows))
    columns, rows = metric_table(given.get("splits") or {})
    if rows:
        parts.append(markdown_table(columns, rows))
    if seconds := (given.get("seconds") or {}).get("this_process"):
        parts.append(f"{shown_seconds(seconds)}, in {_text(given['folder'])}")
    parts += [f"**{kind}:** {_text(given[kind])}" for kind in ("warning",) if given.get(kind)]
    return "\n\n".join(parts) + "\n"


def _verdict(gate: Mapping[str, Any]) -> list[str]:
    distance = gate.get("missed_by")
    return ["met" if gate["passed"] else "NOT MET", "" if distance is None else f"{distance:.3g}"]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in which no text is markup."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[part if number == 1 else _text(part) for part in line] for number, line in enumerate(lines)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in cells)


def _text(text: object) -> str:
    """Text on one line with every character that Markdown or HTML would read as markup written as an entity."""
    return _MARKUP.sub(lambda match: f"&#{ord(match.group())};", one_line(text))
