"""Why a run may not begin in a folder, or not again. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftkit.errors import ModelError, Problem, RecipeError, RunFolderError
from ftkit.files import read_json
from ftkit.recipe.plan import Plan
from ftkit.registry import METHODS
from ftkit.run.folder import LOCK, PLAN, RunFolder, readable, recorded_base, run_around
from ftkit.run.lockfile import differences

SECONDS_TO_APPEAR = 60.0
"""A network file system may show a new folder to other machines late."""


def refuse_moving_inputs(plan: Plan, path: Path) -> None:
    """Raises RunFolderError if the folder that --overwrite would move aside holds the model or data of the recipe."""
    recipe = plan.recipe
    sources = [*recipe.data.train, *(recipe.data.validation or []), *(recipe.data.test or [])]
    names = [recipe.model.name, recipe.model.tokenizer or "", recipe.model.decoder or "", *(source.path for source in sources)]
    names += [str(folder) for folder in _earlier_adapters(plan)]
    inside = [name for name in names if name and Path(name).is_absolute() and Path(name).resolve().is_relative_to(path.resolve())]
    if inside:
        message = f"--overwrite would move away what the recipe needs: {inside[0]}"
        raise RunFolderError(Problem(message=message, place=str(path), hint="Choose another --output"))


def refuse_other_bases(plan: Plan, model_files: Mapping[str, str]) -> None:
    """Raises ModelError for each adapter that the method builds on (`adapter_options`) and that was trained on other base files.

    model_files: sha256 of those of this recipe's base. Of an adapter that lies outside its run nothing is known.
    """
    problems = []
    for folder in _earlier_adapters(plan):
        run = folder if (folder / PLAN).is_file() else run_around(folder)
        recorded = recorded_base(run) if run else {}
        if (
            changed := sorted(name for name in {*recorded, *model_files} if recorded.get(name) != model_files.get(name))
            if run
            else []
        ):
            message = f"was trained on another base than {plan.recipe.model.name}: other files: {', '.join(changed)}"
            hint = "Give adapters of this base, or set `model` to theirs"
            problems.append(Problem(message=message, place=str(folder), hint=hint))
    if problems:
        raise ModelError(problems)


def _earlier_adapters(plan: Plan) -> list[Path]:
    """The folders of trained adapters that the method's options name."""
    method = plan.recipe.method
    found: list[Path] = []
    for name in METHODS.get(method.name).adapter_options:
        value = getattr(method.options, name) or []
        found += [Path(text) for text in ([value] if isinstance(value, str) else value)]
    return found


def refuse_another_run(folder: RunFolder, lock: dict[str, Any]) -> list[str]:
    """What to know before a run is continued, one sentence each.

    Raises RunFolderError if it cannot be: what it was begun with is not what `lock` says.
    """
    path = folder.path / LOCK
    with readable(path):
        before = read_json(path)
        found = differences(before, lock)
        then, now = before["training"]["world_size"], lock["training"]["world_size"]
    if found:
        raise RunFolderError(
            Problem(
                message=f"cannot be continued: not the same as when it began: {', '.join(found)}",
                place=str(folder.path),
                hint="Restore what changed, or start anew with --overwrite or another --output",
            )
        )
    if then == now:
        return []
    return [f"begun in {then} and continued in {now} processes: the order of the rows stays, rounding and dropout differ"]


def refuse_another_machine(first: dict[str, Any], lock: dict[str, Any], run: Path) -> None:
    """Raises RecipeError if a process was started with something else than the first one, as machines allow, or sees another disk.

    first, lock: of the first process and of this one.
    """
    if first is lock:
        return
    if found := differences(first, lock):
        hint = "Give all machines the same files; a shared file system is the surest way"
        raise RecipeError(Problem(message=f"not the same as for the first process: {', '.join(found)}", hint=hint))
    until = time.monotonic() + SECONDS_TO_APPEAR
    while not run.is_dir():
        if time.monotonic() > until:
            hint = "Name a folder of a file system that all machines share with --output"
            raise RunFolderError(Problem(message="the first process made it, and here it is not seen", place=str(run), hint=hint))
        time.sleep(0.1)


def refuse_other_inputs(run: Path, before: dict[str, Any], lock: dict[str, Any]) -> None:
    """Raises RunFolderError if a run with the lock `before` cannot be trained again: what there is now has the lock `lock`."""
    if found := differences(before, lock):
        message = f"cannot be run again: not the same as when it was trained: {', '.join(found)}"
        raise RunFolderError(
            Problem(message=message, place=str(run), hint="Restore what changed, or train anew with `ftkit train`")
        )
