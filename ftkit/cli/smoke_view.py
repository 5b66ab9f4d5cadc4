"""What `ftkit train --smoke` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ftkit.cli.output import one_line, print_table, say, shown_number, shown_seconds

Facts = Mapping[str, Any]

SHAPING = ("train.", "task.")
"""Beginnings of keys whose changes are worth a line: the others have nothing to do with what is tried."""


def print_smoke(report: Facts) -> None:
    """A table of the stages, what is smaller than in a run, and the verdict."""
    rows = [[stage["name"], f"{stage['seconds']:.1f}", _SHOWN[stage["name"]](stage)] for stage in report["stages"]]
    print_table(["stage", "seconds", "what"], rows, right=["seconds"])
    for note in report["notes"]:
        say(f"note: {one_line(note)}")
    changes = [
        f"{key} {shown_number(values['smoke'])} (recipe: {shown_number(values['recipe'])})"
        for key, values in report["changes"].items()
        if key.startswith(SHAPING) and values["recipe"] is not None and values["smoke"] is not None
    ]
    if changes:
        say(f"smaller than in a run: {', '.join(changes)}")
    say(f"{one_line(report['recipe'])} works on this machine from beginning to end ({shown_seconds(report['seconds'])})")


def _read(stage: Facts) -> str:
    return ", ".join(f"{name} {split['used']:,} of {split['of']:,} rows" for name, split in stage["rows"].items())


def _trained(stage: Facts) -> str:
    if "steps" not in stage:
        return "loaded, encoded, evaluated"
    phases = f"in phase {stage['phases']}: " if stage["phases"] > 1 else ""
    return f"{phases}{stage['steps']} steps, evaluated, saved at {stage['checkpoint']}"


def _resumed(stage: Facts) -> str:
    first = stage["from_step"] + 1
    again = f", step {first} as it was before the kill, bit by bit" if stage["exact"] else ""
    return f"steps {first} to {stage['to_step']}{again}"


def _exported(stage: Facts) -> str:
    parts = [
        f"{form} (logits differ by {shown_number(fact['max_abs_difference'])} in a new process)"
        for form, fact in stage["exports"].items()
    ]
    return ", ".join(parts)


def _evaluated(stage: Facts) -> str:
    return f"the metrics of the run: {', '.join(stage['metrics'])}"


_SHOWN: Mapping[str, Callable[[Facts], str]] = {
    "read": _read,
    "train": _trained,
    "kill": lambda stage: f"{stage['signal']} in step {stage['in_step']}",
    "resume": _resumed,
    "export": _exported,
    "reload": lambda stage: "from the base and the best weights",
    "evaluate": _evaluated,
    "predict": lambda stage: f"{stage['rows']} rows",
}
