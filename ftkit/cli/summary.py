"""What a finished run comes down to, as the terminal shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftkit.cli.output import one_line, shown_mib, shown_number, shown_seconds, shown_share

METRIC_COLUMN = "metric"
WARNING = "warning"


def metric_table(splits: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a row for each metric, a column for each evaluated split, test first, and one for
    its metrics before training where they were taken; values with their 95 % interval."""
    evaluated = {name: split for name, split in splits.items() if split.get("metrics")}
    names = sorted(evaluated, key=lambda name: name != "test")
    metrics = list(dict.fromkeys(metric for name in names for metric in evaluated[name]["metrics"]))
    heads, columns = [METRIC_COLUMN], [metrics]
    for name in names:
        split = evaluated[name]
        heads.append(f"{name} ({split['rows']:,} rows)")
        columns.append([value_with_interval(split, metric) for metric in metrics])
        if before := split.get("before"):
            heads.append(f"{name} before training")
            columns.append([shown_number(before.get(metric)) for metric in metrics])
    return heads, [list(row) for row in zip(*columns, strict=True)]


def value_with_interval(split: Mapping[str, Any], metric: str) -> str:
    """`0.9640 [0.9461, 0.9802]`, or the value alone where there is no interval."""
    text = shown_number(split["metrics"].get(metric))
    interval: Sequence[float] | None = (split.get("intervals") or {}).get(metric)
    return f"{text} [{shown_number(interval[0])}, {shown_number(interval[1])}]" if interval else text


def run_facts(results: Mapping[str, Any]) -> dict[str, str]:
    """The lines of a summary, by name. What the results do not hold is left out."""
    facts = {"status": _status(results)}
    if warning := results.get("warning"):
        facts[WARNING] = warning
    if parameters := results.get("parameters"):
        facts["trained"] = f"{shown_share(parameters['trainable'], parameters['total'])} parameters"
    if results.get("best", {}).get("step") is not None:
        facts["best"] = f"step {results['best']['step']:,} of {results['total_steps']:,}"
    if seconds := results.get("seconds"):
        facts["time"] = f"training {shown_seconds(seconds['training'])}, evaluation {shown_seconds(seconds['evaluation'])}"
    if speed := results.get("tokens_per_second"):
        facts["speed"] = f"{speed:,.0f} {results.get('length_unit', 'tokens')}/s"
    if memory := results.get("peak_memory_mib"):
        facts["peak memory"] = shown_mib(memory)
    for gate in results.get("gates") or ():
        facts[f"gate {gate_name(gate)}"] = gate_text(gate)
    for form, export in (results.get("exports") or {}).items():
        place = Path(results["folder"]) / export["path"]
        difference = f"{export['max_abs_difference']:.1e}"
        facts[form] = f"{place} ({shown_mib(export['bytes'] / 2**20)}, logits within {difference} of the trained model)"
    return {**facts, "run folder": str(results["folder"])}


def gate_text(gate: Mapping[str, Any]) -> str:
    """`0.9640 on test, expected >= 0.96: met`."""
    verdict = "met" if gate["passed"] else "NOT MET"
    if (distance := gate.get("missed_by")) is not None:
        verdict += f", by {distance:.3g}"
    return f"{measured_text(gate)}, expected {gate['expected']}: {verdict}"


def measured_text(gate: Mapping[str, Any]) -> str:
    """`0.9640 on test`, with what of it the gate looks at: the end of an interval, the difference to a baseline."""
    text = shown_number(gate["value"]) + (f" on {gate['split']}" if gate["split"] else "")
    if baseline := gate.get("baseline"):
        text += f", {shown_number(baseline['value'])} in {one_line(Path(baseline['file']).name)}: "
        return text + ("at worst a difference of " if gate["confident"] else "a difference of ") + shown_number(gate["compared"])
    return f"{text}, at worst {shown_number(gate['compared'])}" if gate.get("confident") else text


def gate_name(gate: Mapping[str, Any]) -> str:
    """The key of a gate below `expect`."""
    return one_line(gate.get("gate") or gate["metric"])


def next_commands(results: Mapping[str, Any]) -> list[str]:
    """What to do with the run."""
    folder = one_line(results["folder"])
    return [f"ftkit predict {folder} --input FILE", f"ftkit evaluate {folder} --data FILE"]


def _status(results: Mapping[str, Any]) -> str:
    status = str(results.get("status", "completed")).replace("_", " ")
    return f"{status}, stopped early after {results['steps']:,} steps" if results.get("stopped_early") else status
