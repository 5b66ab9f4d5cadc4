"""What `ftkit adapters` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftkit.cli.output import document_text, one_line, print_facts, print_table, say, shown_mib, shown_number, shown_share

NAMED = {
    "path": "adapter",
    "method": "method",
    "base": "base",
    "base_matches": "same base",
    "parameters": "parameters",
    "bytes": "size",
}
LONGEST_VALUE = 60


def print_list(found: Sequence[Mapping[str, Any]], *, with_base: bool) -> None:
    """One line each, the unusable ones with what is wrong."""
    if not found:
        say("There are no runs or adapters.")
        return
    columns = [name for key, name in NAMED.items() if key != "base_matches" or with_base]
    rows = [[*(_cell(entry, key) for key in NAMED if key != "base_matches" or with_base), *_rest(entry)] for entry in found]
    print_table([*columns, "task", "best metric", "trained"], rows, right=("parameters", "size"))
    for entry in found:
        if entry["problem"]:
            hint = f". {entry['hint']}" if entry["hint"] else ""
            say(f"not usable: {one_line(entry['path'])}: {one_line(entry['problem'])}{one_line(hint)}")


def _cell(entry: Mapping[str, Any], key: str) -> str:
    value = entry[key]
    if value is None:
        return ""
    if key == "bytes":
        return shown_mib(value / 2**20)
    if key == "base":
        return Path(str(value)).name if Path(str(value)).is_absolute() else one_line(value)
    if key == "method" and entry["made_by"]:
        return f"{value} ({entry['made_by']})"
    return shown_number(value)


def _rest(entry: Mapping[str, Any]) -> list[str]:
    if entry["problem"]:
        return [entry["task"] or "", "", ""]
    metric, when = entry["metric"], str(entry["trained"] or "")[:16].replace("T", " ")
    shown = f"{metric['name']} {shown_number(metric['value'])} ({metric['split']})" if metric else ""
    return [entry["task"] or "", shown, when]


MEASURES = {"norm": "norm", "relative_norm": "relative norm", "effective_rank": "effective rank", "rank": "of rank"}
SOURCES = {
    "low rank": "of the update s B A",
    "merged": "of the change of the merged weight",
    "tuned": "of the change of the weight",
    "tensors": "of the trained values themselves: what they do is no change of a weight matrix, or the base is not at hand",
}


def print_inspection(found: Mapping[str, Any]) -> None:
    """Facts, and a line for each layer."""
    facts = {"method": found["method"], "base": found["base"], "norms": SOURCES[found["source"]]}
    if found["parameters"] is not None:
        facts["parameters"] = shown_number(found["parameters"])
    if found["update_norm"] is not None:
        facts["norm of all updates"] = shown_number(found["update_norm"])
    print_facts(facts, title=one_line(found["path"]))
    known = [key for key in MEASURES if any(layer[key] is not None for layer in found["layers"])]
    columns = ["layer", "parameters", "of the", *(MEASURES[key] for key in known)]
    rows = [
        [
            layer["layer"],
            f"{layer['parameters']:,}",
            layer["what"],
            *("" if layer[key] is None else shown_number(layer[key]) for key in known),
        ]
        for layer in found["layers"]
    ]
    print_table(columns, rows, right=[name for name in columns[1:] if name != "of the"])


def print_diff(found: Mapping[str, Any]) -> None:
    """Bases, settings, tensors."""
    same = {True: "the same", False: "DIFFERENT", None: "perhaps the same"}[found["same_base"]]
    print_facts({"a": found["a"], "b": found["b"], "base": f"{same} ({found['base']})"})
    if found["settings"]:
        rows = [[entry["key"], _setting(entry["a"]), _setting(entry["b"])] for entry in found["settings"]]
        print_table(["setting", "a", "b"], rows)
    if found["settings"] is None:
        say("Settings are not compared: one is a run, the other an adapter.")
    for side in ("a", "b"):
        if names := found[f"only_in_{side}"]:
            print_table([f"only in {side}"], [[name] for name in names])
    if found["other_shape"]:
        print_table(["other shape", "a", "b"], [[entry["name"], entry["a"], entry["b"]] for entry in found["other_shape"]])
    if found["tensors"]:
        keys = ("max_difference", "relative_difference", "cosine")
        rows = [
            [entry["name"], *("" if entry[key] is None else shown_number(entry[key]) for key in keys)] for entry in found["tensors"]
        ]
        print_table(["tensor", "max difference", "relative", "cosine"], rows, right=("max difference", "relative", "cosine"))
    if found["equal"]:
        say("All tensors are equal.")


def _setting(value: Any) -> str:
    """A value of a recipe as `ftkit diff` shows it."""
    if value is None:
        return "none"
    return one_line(value if isinstance(value, str) else document_text(value), LONGEST_VALUE)


def print_derived(results: Mapping[str, Any]) -> None:
    """A run made out of others: metrics before and after, errors of an extraction, where it lies."""
    derived = results["derived"]
    splits = {name: split for name, split in results["splits"].items() if split.get("metrics")}
    for name, split in splits.items():
        before = {_short(path, list(derived["before"])): metrics[name] for path, metrics in derived["before"].items()}
        columns = [f"{name} ({split['rows']:,} rows)", *before, "result"]
        rows = [
            [metric, *(shown_number(found.get(metric)) for found in before.values()), shown_number(value)]
            for metric, value in split["metrics"].items()
        ]
        print_table(columns, rows, right=columns[1:])
    if "layers" in derived:
        _print_extraction(derived)
    parameters = results["parameters"]
    print_facts(
        {
            "method": results["method"],
            "parameters": shown_share(parameters["trainable"], parameters["total"]),
            "run folder": results["folder"],
        }
    )


def _short(path: str, others: Sequence[str]) -> str:
    """The name of a folder, or its whole path where another one is called the same."""
    name = Path(path).name
    return name if [Path(other).name for other in others].count(name) == 1 else path


def _print_extraction(derived: Mapping[str, Any]) -> None:
    rows = [[layer["layer"], shown_number(layer["norm"]), shown_number(layer["relative_error"])] for layer in derived["layers"]]
    rows.append(["all of these", "", shown_number(derived["relative_error"])])
    print_table(["layer", "norm of change", "relative error"], rows, right=("norm of change", "relative error"))
    for title, parts in (("kept whole", derived["kept"]), ("left out", derived["left_out"])):
        if parts:
            rows = [
                [part["part"], f"{part['parameters']:,}", shown_number(part["norm"]), f"{100 * part['share']:.3g} %"]
                for part in parts
            ]
            columns = [title, "parameters", "norm of change", "share of the whole"]
            print_table(columns, rows, right=columns[1:])
    for part in derived["left_out"]:
        if "why" in part:
            say(f"{part['part']} left out: {part['why']}")
    kept = {"kept whole": f"{derived['kept_bytes'] / 2**20:,.2f} MiB"} if derived["kept"] else {}
    print_facts({**kept, "relative error of the whole change": shown_number(derived["remaining_error"])})


def print_conversion(found: Mapping[str, Any]) -> None:
    """Where the converted adapter lies, its settings, what was left out."""
    facts = {"folder": found["path"], "name": found["name"], "tensors": shown_number(found["tensors"])}
    print_facts({name: value for name, value in facts.items() if value})
    print_facts({name: _setting(value) for name, value in found["settings"].items()}, title="Settings")
    if found["left_out"]:
        say(f"left out: {', '.join(found['left_out'])}. Heads are not converted")
