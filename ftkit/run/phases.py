"""Runs a recipe in phases: each earlier phase is a run of its own beside the last one's folder, and its merged export the next model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.recipe.schema import ModelSpec, Recipe
from ftkit.run.folder import check_run_folder, refuse_root
from ftkit.run.joining import meeting_of
from ftkit.run.observer import Observer
from ftkit.run.planning import make_plan_here
from ftkit.run.world import launched_world

if TYPE_CHECKING:
    from ftkit.run.train import RunResult


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """What results.json says of an earlier phase. model, decoder: what it started from."""

    model: str
    decoder: str | None
    method: str
    folder: str
    steps: int
    splits: dict[str, Any]


def train_earlier(
    recipe: Recipe,
    path: Path,
    train: Callable[..., RunResult],
    *,
    resume: bool,
    overwrite: bool,
    observer: Observer,
    allow_code: bool,
) -> tuple[Recipe, list[PhaseResult]]:
    """Trains the earlier phases and returns the last one's recipe with the model that they made.

    Every phase is planned, and every folder looked at, before anything is trained. Raises FtkitError.
    """
    world = launched_world()
    meeting = meeting_of(world)
    with meeting.agreeing():
        refuse_root(path)
        phases = [(phase, phase_folder(path, number)) for number, phase in enumerate(recipe.earlier, 1)]
        make_plan_here(recipe)
        if world.is_main:
            for folder in (*(folder for _, folder in phases), path):
                check_run_folder(folder, resume=resume, overwrite=overwrite)
    model, found = recipe.model, []
    for number, (phase, folder) in enumerate(phases, 1):
        observer.note(f"phase {number} of {len(phases) + 1}: {phase.method.name}, in {folder}")
        own = phase.model_copy(update={"model": model})
        result = train(own, output=folder, resume=resume, overwrite=overwrite, observer=observer, allow_code=allow_code)
        # The main process alone exports, and the others need what it exports.
        with meeting.agreeing() as said:
            said.update({name: result.results[name] for name in ("model", "splits", "steps") if name in result.results})
        splits = {name: split["metrics"] for name, split in said["splits"].items() if "metrics" in split}
        start = {"model": said["model"], "decoder": model.decoder}
        found.append(PhaseResult(**start, method=phase.method.name, folder=folder.name, steps=said["steps"], splits=splits))
        model = _after(recipe.model, folder / "export" / "merged")
    observer.note(f"phase {len(phases) + 1} of {len(phases) + 1}: {recipe.method.name}")
    return recipe.model_copy(update={"earlier": (), "model": model}), found


def phase_folder(path: Path, number: int) -> Path:
    """Where the run of an earlier phase lies: `runs/name.phase-1` beside `runs/name`."""
    return path.with_name(f"{path.name}.phase-{number}")


def _after(model: ModelSpec, export: Path) -> ModelSpec:
    """The recipe's model with the weights of an earlier phase. Its tokenizer, and both halves of a pair, are in the export."""
    return model.model_copy(
        update={"name": str(export), "revision": None, "decoder": None, "tokenizer": None, "weights": "pretrained"}
    )
