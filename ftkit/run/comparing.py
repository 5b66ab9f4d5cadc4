"""In what two runs differ: recipe, data, versions, results. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ftkit.files import read_json
from ftkit.recipe.load import parse_recipe
from ftkit.recipe.plan import recipe_values
from ftkit.run.folder import LOCK, PLAN, finished_results, read_run, readable
from ftkit.run.lockfile import changed_values
from ftkit.run.measurements import resources_of

OWN_TO_EACH = ("output",)
"""Keys of a plan that any two runs differ in."""

PARTLY_LOCKED = ("data", "train")
"""Keys of a plan of which the lock leaves out what does not shape training."""

Parts = Mapping[str, Any]
Differing = list[dict[str, Any]]
"""Entries with a name, and the values `a` and `b`."""


def diff_runs(a: Path, b: Path) -> dict[str, Any]:
    """In what two finished runs differ.

    Returns `runs` (both folders), and lists of entries with `a` and `b` that hold only what is not the same: `recipe` (by key), `data`
    (rows and sha256 by split), `model_files`, `versions`, `environment` (machine, git, processes, tokenizer), `status`. `metrics` has
    all of them, by split, with `difference` (b - a) and both intervals; `resources` likewise; `weights` the sha256 of each file of the
    weights that count. Raises RunFolderError for what is no finished run, RecipeError for a plan that cannot be read.
    """
    before, after = _read(a), _read(b)
    old, new = before["lock"], after["lock"]
    return {
        "runs": {"a": str(a.absolute()), "b": str(b.absolute())},
        "status": _differing("status", {"status": before["results"]["status"]}, {"status": after["results"]["status"]}),
        "recipe": [{"key": key, "a": was, "b": now} for key, (was, now) in changed_values(before["plan"], after["plan"]).items()],
        "data": _differing("split", old["training"]["data"], new["training"]["data"]),
        "model_files": _differing("file", old["model_files"], new["model_files"]),
        **diff_surroundings(old, new),
        "metrics": list(_metrics(before["results"]["splits"], after["results"]["splits"])),
        "resources": _resources(before["results"], after["results"]),
        "weights": _weights(before["results"], after["results"]),
    }


def diff_surroundings(old: Parts, new: Parts) -> dict[str, Differing]:
    """In what two locks differ around the training: `versions` and `environment`, see `diff_runs`."""
    return {
        "versions": _differing("name", old["versions"], new["versions"]),
        "environment": _differing("name", _environment(old), _environment(new)),
    }


def _read(run: Path) -> dict[str, Any]:
    folder = read_run(run)
    results = finished_results(folder)
    with readable(folder / LOCK):
        lock = read_json(folder / LOCK)
        base = lock["training"]["folder"]
        _environment(lock), lock["model_files"], lock["versions"], lock["training"]["data"]
    with readable(folder / PLAN):
        text = (folder / PLAN).read_text(encoding="utf-8")
    planned = recipe_values(parse_recipe(text, str(folder / PLAN), base=folder))
    with readable(folder / LOCK):
        values = _as_trained(planned, lock["training"]["recipe"])
    plan = {"recipe": {key: value for key, value in values.items() if key not in OWN_TO_EACH}, "folder": base}
    return {"results": results, "lock": lock, "plan": plan}


def _as_trained(planned: Parts, locked: Parts) -> dict[str, Any]:
    """A plan in which the values that shaped training are those of the lock, whatever was edited since."""
    kept = {key: {**planned[key], **locked[key]} for key in PARTLY_LOCKED}
    return {**planned, **locked, **kept}


def _environment(lock: Parts) -> dict[str, Any]:
    training, git = lock["training"], lock["git"] or {}
    facts = {f"machine.{name}": value for name, value in lock["machine"].items()}
    facts |= {f"git.{name}": git.get(name) for name in ("commit", "dirty")}
    return {**facts, "tokenizer": training["tokenizer"], "world_size": training["world_size"]}


def _differing(name: str, before: Parts, after: Parts) -> Differing:
    """An entry for each key that is not the same on both sides."""
    keys = dict.fromkeys([*before, *after])
    return [{name: key, "a": before.get(key), "b": after.get(key)} for key in keys if before.get(key) != after.get(key)]


def _metrics(before: Parts, after: Parts) -> Iterator[dict[str, Any]]:
    for split in dict.fromkeys([*before, *after]):
        old, new = before.get(split) or {}, after.get(split) or {}
        was, now = old.get("metrics") or {}, new.get("metrics") or {}
        for name in dict.fromkeys([*was, *now]):
            a, b = was.get(name), now.get(name)
            yield {
                "split": split,
                "metric": name,
                "a": a,
                "b": b,
                "difference": _difference(a, b),
                "interval_a": (old.get("intervals") or {}).get(name),
                "interval_b": (new.get("intervals") or {}).get(name),
            }


def _resources(before: Parts, after: Parts) -> Differing:
    was, now = resources_of(before), resources_of(after)
    found = [{"resource": name, "a": was[name], "b": now[name], "difference": _difference(was[name], now[name])} for name in was]
    return [entry for entry in found if entry["a"] is not None or entry["b"] is not None]


def _difference(a: Any, b: Any) -> float | None:
    numbers = all(isinstance(value, (int, float)) for value in (a, b))
    return b - a if numbers else None


def _weights(before: Parts, after: Parts) -> Differing:
    was, now = _weight_files(before), _weight_files(after)
    return [{"file": name, "a": was.get(name), "b": now.get(name)} for name in dict.fromkeys([*was, *now])]


def _weight_files(results: Parts) -> dict[str, str]:
    """sha256 of the files of the weights that count, by file name."""
    found = {Path(entry["path"]): entry["sha256"] for entry in results.get("artifacts") or ()}
    return {path.name: digest for path, digest in found.items() if str(path.parent) == results["weights"]}
