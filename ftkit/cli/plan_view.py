"""Prints a plan: the complete recipe with its sources, and tables of what the run needs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ftkit.cli.output import (
    clean,
    console,
    is_terminal,
    one_line,
    print_facts,
    print_table,
    say,
    shown_mib,
    shown_number,
    shown_share,
)

LABELS_SHOWN = 50


def print_recipe(text: str) -> None:
    """The recipe as YAML; in a terminal the comments are dimmed."""
    if not is_terminal(sys.stdout):
        say(text.rstrip("\n"))
        return
    from rich.text import Text

    screen = console(sys.stdout)
    for line in text.splitlines():
        value, mark, comment = line.partition("  # ") if not line.startswith("#") else ("", "", line)
        drawn = Text(clean(value))
        drawn.append(clean(mark + comment), style="dim")
        screen.print(drawn, soft_wrap=True)


def print_plan(report: Mapping[str, Any]) -> None:
    """Everything that `ftkit.plan` found out."""
    print_recipe(report["yaml"])
    say()
    _print_splits(report["splits"])
    _print_labels(report["splits"])
    for number, phase in enumerate(report.get("phases") or (), 1):
        say(f"Phase {number}: {one_line(phase['method'])}\n")
        _print_sizes(phase)
    if "phases" in report:
        say("All phases: sums of steps and disk, memory of the largest\n")
    _print_sizes(report)
    for note in report["notes"]:
        say(f"note: {one_line(note)}")


def _print_sizes(report: Mapping[str, Any]) -> None:
    if "parameters" in report:
        _print_parameters(report["parameters"])
    steps = report["steps"]
    print_facts({name.replace("_", " "): f"{steps[name]:,}" for name in steps}, title="Optimizer steps")
    for part, title in (("memory", "Memory"), ("disk", "Disk")):
        print_facts({name.replace("_", " "): shown_mib(amount) for name, amount in report[part].items()}, title=title)


def _print_splits(splits: Mapping[str, Any]) -> None:
    columns = ["split", "rows", "features", "truncated", "tokens", "median", "longest"]
    rows = []
    for name, split in splits.items():
        tokens = split["tokens"]
        counts = [split["rows"], split["features"], split["truncated"], tokens["total"], tokens["median"], tokens["longest"]]
        rows.append([name, *(f"{count:,.0f}" for count in counts)])
    print_table(columns, rows, title="Splits", right=columns[1:])


def _print_labels(splits: Mapping[str, Any]) -> None:
    """Tables of what the task says about the splits: a column a split, a row a label; facts without labels as they are."""
    counts = {name: split["description"]["labels"] for name, split in splits.items() if split.get("description", {}).get("labels")}
    if counts:
        labels = list(dict.fromkeys(label for found in counts.values() for label in found))
        rows = [[label, *(_count_and_share(found, label) for found in counts.values())] for label in labels[:LABELS_SHOWN]]
        print_table(["label", *counts], rows, title="Labels", right=list(counts))
        if len(labels) > LABELS_SHOWN:
            say(f"and {len(labels) - LABELS_SHOWN:,} more labels\n")
    for name, split in splits.items():
        others = {key: value for key, value in split.get("description", {}).items() if key not in ("labels", "rows")}
        for key, value in others.items():
            say(f"{name} {key.replace('_', ' ')}: {_flat(value)}")
    say()


def _count_and_share(found: Mapping[str, int], label: str) -> str:
    total = sum(found.values())
    return f"{found.get(label, 0):,} ({100 * found.get(label, 0) / total:.1f} %)" if total else "0"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{one_line(key)} {_flat(item)}" for key, item in value.items())
    return f"{int(value):,}" if isinstance(value, float) and value.is_integer() else shown_number(value)


def _print_parameters(parameters: Mapping[str, Any]) -> None:
    groups = {name: group for name, group in parameters["groups"].items() if group["total"]}
    rows = [[name, f"{group['trainable']:,}", f"{group['total']:,}"] for name, group in groups.items()]
    print_table(["parameters", "trainable", "total"], rows, title="Parameters", right=["trainable", "total"])
    say(f"trainable: {shown_share(parameters['trainable'], parameters['total'])}\n")
