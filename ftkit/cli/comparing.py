"""`ftkit diff` and `rerun`: whether two runs are the same, and in what they are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ftkit.cli.options import AllowCode, AsJson, Plugins, Quiet, Run, load_plugins
from ftkit.cli.output import document_text, emit, one_line, print_table, say, shown_number

DIGEST = 64
SHOWN_OF_A_DIGEST = 12

NAMED = {"recipe": "key", "data": "split", "model_files": "file", "versions": "name", "environment": "name", "status": "status"}
"""Parts of a comparison, and what their entries go by."""


def diff(
    a: Annotated[Path, typer.Argument(metavar="RUN1", help="A run folder.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="RUN2", help="Another one.", show_default=False)],
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Show in what two runs differ: recipe, data, versions, results.

    Ends with exit code 0 whether they differ or not.
    """
    load_plugins(plugins)
    from ftkit import api

    found = api.diff(a, b)
    if as_json:
        emit(found)
        return
    same = [part.replace("_", " ") for part in NAMED if not found[part]]
    for part in NAMED:
        _print_part(part, found)
    _print_weights(found["weights"])
    if same:
        say(f"the same: {', '.join(same)}\n")
    print_table(*_metric_rows(found["metrics"]), title="metrics", right=["RUN1", "RUN2", "difference"])
    rows = [
        [entry["resource"], shown_number(entry["a"]), shown_number(entry["b"]), signed(entry["difference"])]
        for entry in found["resources"]
    ]
    print_table(["resource", "RUN1", "RUN2", "difference"], rows, title="resources", right=["RUN1", "RUN2", "difference"])


def rerun(
    run: Run,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="The new run folder (default: RUN-rerun, beside RUN).", show_default=False),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    plugins: Plugins = None,
    allow_code: AllowCode = False,
) -> None:
    """Train a run's plan again, on the same rows and base model, and compare metrics and weights.

    Ends with exit code 0 if both are equal bit for bit, 4 if not, 2 if rows or base model are others.
    """
    load_plugins(plugins)
    from ftkit import api
    from ftkit.cli.display import make_display

    with make_display(quiet=quiet, as_json=as_json) as display:
        found = api.rerun(run, output=output, allow_code=allow_code, observer=display)
    if as_json:
        emit(found)
    elif not quiet or not found["same"]:
        _print_rerun(found)
    raise typer.Exit(found["exit_code"])


def _print_rerun(found: Mapping[str, Any]) -> None:
    for part in ("versions", "environment"):
        _print_part(part, found)
    if found["metrics"]:
        print_table(*_metric_rows(found["metrics"]), title="metrics that differ", right=["RUN1", "RUN2", "difference"])
    _print_weights(found["weights"])
    verdict = "the same metrics and weights" if found["same"] else "NOT the same"
    say(f"{one_line(found['folder'])}: {verdict} as {one_line(found['run'])}")


def _print_part(part: str, found: Mapping[str, Any]) -> None:
    if entries := found[part]:
        rows = [[entry[NAMED[part]], _shown(entry["a"]), _shown(entry["b"])] for entry in entries]
        print_table([NAMED[part], "RUN1", "RUN2"], rows, title=part.replace("_", " "))


def _print_weights(entries: Sequence[Mapping[str, Any]]) -> None:
    if differing := [entry for entry in entries if entry["a"] != entry["b"]]:
        rows = [[entry["file"], _shown(entry["a"]), _shown(entry["b"])] for entry in differing]
        print_table(["file", "RUN1", "RUN2"], rows, title="weights")


def _metric_rows(entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for entry in entries:
        sides = [_with_interval(entry["a"], entry["interval_a"]), _with_interval(entry["b"], entry["interval_b"])]
        rows.append([entry["split"], entry["metric"], *sides, "" if entry["difference"] is None else f"{entry['difference']:+.4g}"])
    return ["split", "metric", "RUN1", "RUN2", "difference"], rows


def signed(difference: float | None) -> str:
    """A difference of resources with its sign."""
    return f"+{shown_number(difference)}" if difference is not None and difference > 0 else shown_number(difference)


def _with_interval(value: Any, interval: Sequence[float] | None) -> str:
    return f"{shown_number(value)} [{shown_number(interval[0])}, {shown_number(interval[1])}]" if interval else shown_number(value)


def _shown(value: Any) -> str:
    """A value of a recipe or lock; of digests the beginning."""
    if isinstance(value, Mapping) and "sha256" in value:
        return f"{value.get('rows', 0):,} rows, sha256 {str(value['sha256'])[:SHOWN_OF_A_DIGEST]}"
    if isinstance(value, str):
        return value[:SHOWN_OF_A_DIGEST] if len(value) == DIGEST else one_line(value, 80)
    return "none" if value is None else one_line(document_text(value), 80)
