"""What must be true of a run folder: after a fault, and once the run has come to its end all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ftkit.errors import FtkitError
from ftkit.files import sha256_of
from ftkit.run.folder import FINISHED, finished_results
from ftkit.training.checkpoint import BEST, RESUMABLE, complete_checkpoints

VOLATILE = {"started", "seconds", "tokens_per_second", "examples_per_second", "peak_memory_mib", "notes", "folder"}
"""Entries of results.json that hang on the clock, the machine or the number of starts."""
OWN = {
    "log.txt",
    "results.json",
    "lock.json",
    "README.md",
    "plan.yaml",
    "recipe.yaml",
    ".lock",
    "state.json",
    "manifest.json",
    "provenance.json",
}
"""Files that name times or places; what they say of the training is compared otherwise."""


def newest_step(run: Path) -> int:
    """The step of the newest complete checkpoint, 0 without one."""
    found, _ = complete_checkpoints(run / "checkpoints", RESUMABLE)
    return found[-1].step if found else 0


def mistakable(run: Path, straight: Path) -> list[str]:
    """What a reader of an interrupted run could take for more than it is.

    A complete checkpoint must be that of the undisturbed run, and so must an export that stands under its name; a run that is not
    finished says so.
    """
    kept = [path for kind in (RESUMABLE, BEST) for path in _complete(run, kind) if (straight / path.relative_to(run)).exists()]
    whole = [*kept, *(path for path in (run / "export").glob("[!.]*"))]
    found = [
        f"{path.relative_to(run)} is not whole" for path in whole if _digests(path) != _digests(straight / path.relative_to(run))
    ]
    try:
        status = finished_results(run)["status"]
    except FtkitError:
        return found
    if status not in FINISHED:
        return [*found, f"results.json says {status}, and names weights"]
    return found + differences(run, straight)


def differences(run: Path, straight: Path) -> list[str]:
    """Files and entries in which a finished run is not the undisturbed one, bit by bit. Checkpoints that a signal made are its own."""
    ours, theirs = ({str(path.relative_to(folder)): path for path in _files(folder)} for folder in (run, straight))
    extra = {path.name for path in _complete(run, RESUMABLE)} - {path.name for path in _complete(straight, RESUMABLE)}
    ours = {name: path for name, path in ours.items() if path.parent.name not in extra}
    found = [f"only one has {name}" for name in sorted(ours.keys() ^ theirs.keys())]
    both = sorted(ours.keys() & theirs.keys())
    found += [name for name in both if ours[name].name not in OWN and sha256_of(ours[name]) != sha256_of(theirs[name])]
    results = [_lasting(json.loads((folder / "results.json").read_text(encoding="utf-8"))) for folder in (run, straight)]
    found += [f"results.json: {key}" for key in results[0].keys() | results[1].keys() if results[0].get(key) != results[1].get(key)]
    states, expected = _states(run), _states(straight)
    found += [f"{name}: state" for name in expected if states.get(name) != expected[name]]
    return found


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _complete(run: Path, kind: str) -> list[Path]:
    return [checkpoint.path for checkpoint in complete_checkpoints(run / "checkpoints", kind)[0]]


def _digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in _files(folder) if path.name not in OWN}


def _lasting(results: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in results.items() if key not in VOLATILE}
    for entry in kept.get("phases", []):
        entry.pop("folder", None), entry.pop("model", None)
    for entry in kept.get("artifacts", []):
        if entry["path"].rpartition("/")[2] in OWN:
            entry.clear()
    return kept


def _states(run: Path) -> dict[str, Any]:
    """The states of resumable checkpoints without their times."""
    found = {}
    for path in _complete(run, RESUMABLE):
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        state["totals"] = {key: value for key, value in state["totals"].items() if not key.endswith("seconds")}
        found[path.name] = state
    return found
