"""What `ftkit doctor resume` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ftkit.cli.output import one_line, say, shown_number

MOST_SHOWN = 10
ADVICE = (
    "Rounding depends on the machine, the versions and the number of threads (OMP_NUM_THREADS): repeat it with those of the run. "
    "If nothing of these is other, please report it with the output of `ftkit env`"
)
NAMES = {"trainable": "of the trained parameters", "optimizer": "of the optimizer", "method": "of the method"}
"""What the tensors of a file are."""


def print_replay(report: Mapping[str, Any]) -> None:
    """The verdict, what it is about, and what differs."""
    first, last = report["from_step"] + 1, report["to_step"]
    steps = f"step {last:,}" if first == last else f"steps {first:,} to {last:,}"
    verdict = "exact: " if report["exact"] else "NOT EXACT: "
    outcome = "came out the same, bit by bit" if report["exact"] else "came out otherwise"
    say(f"{verdict}{steps} of {one_line(report['run'])}, trained again {_how(report)}, {outcome}")
    say(f"compared: {_compared(report['compared'])}")
    for line in [*_differences(report["differences"]), *_surroundings(report)]:
        say(f"  {line}")
    if not report["exact"]:
        say(ADVICE)
    for note in report["notes"]:
        say(f"note: {one_line(note)}")


def _how(report: Mapping[str, Any]) -> str:
    resumed = report["resumed_after"]
    if report["from_step"]:
        return f"from the checkpoint of step {resumed:,}"
    return "from the start of training" + (f", interrupted and resumed after step {resumed:,}" if resumed else "")


def _compared(compared: Mapping[str, Any]) -> str:
    tensors = [f"{count:,} tensors {NAMES[file]}" for file, count in compared["tensors"].items()]
    return ", ".join([f"{compared['metrics_lines']:,} lines of metrics.jsonl", *tensors])


def _differences(found: Mapping[str, Any]) -> Iterator[str]:
    if loss := found["loss"]:
        yield f"the first step whose loss differs: {loss['step']:,} ({_values(loss)})"
    yield from _limited(
        [f"metrics.jsonl, {line['type']} {line['step']}: {line['key']} ({_values(line)})" for line in found["metrics"]]
    )
    yield from _limited([f"{entry['file']}: {one_line(entry['tensor'])} {_distance(entry)}" for entry in found["tensors"]])
    if found["state"]:
        yield f"state.json: {', '.join(found['state'])}"


def _values(entry: Mapping[str, Any]) -> str:
    return f"{entry['run']} in the run, {entry['replay']} again"


def _distance(entry: Mapping[str, Any]) -> str:
    distance = entry["max_abs_difference"]
    return "is only there once, or has another form" if distance is None else f"differs by up to {shown_number(distance)}"


def _limited(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_SHOWN
    return [*lines[:MOST_SHOWN], f"and {more:,} more"] if more > 0 else lines


def _surroundings(report: Mapping[str, Any]) -> Iterator[str]:
    """Other versions, machines and numbers of processes, from which differences may come. Commits are no matter of training."""
    for entry in (*report["versions"], *report["environment"]):
        if not entry["name"].startswith("git."):
            yield f"{entry['name']}: {one_line(entry['a'])} in the run, {one_line(entry['b'])} now"
