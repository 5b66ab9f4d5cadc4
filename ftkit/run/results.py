"""results.json: what a run found, for people and scripts."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ftkit import __version__
from ftkit.files import sha256_of
from ftkit.recipe.plan import Plan
from ftkit.registry import TASKS
from ftkit.run.machine import peak_resident_mib
from ftkit.run.training import Outcome

SCHEMA_VERSION = 1


class Clock:
    """When the run began, and for how long this process has worked on it."""

    def __init__(self) -> None:
        self.started = datetime.now(timezone.utc)
        self._mark = time.perf_counter()

    def seconds(self) -> float:
        """Seconds since this process began the run."""
        return time.perf_counter() - self._mark


def opening(plan: Plan, clock: Clock, folder: Path) -> dict[str, Any]:
    """The part of the results that is known before training."""
    recipe = plan.recipe
    return {
        "schema_version": SCHEMA_VERSION,
        "ftkit_version": __version__,
        "status": "running",
        "exit_code": None,
        "folder": str(folder),
        "recipe": recipe.origin.name,
        "model": recipe.model.name,
        "task": recipe.task.name,
        "length_unit": TASKS.get(recipe.task.name).length_unit,
        "method": recipe.method.name,
        "seed": recipe.seed,
        "precision": recipe.train.precision,
        "started": clock.started.isoformat(timespec="seconds"),
        "notes": [],
    }


def training_facts(outcome: Outcome, parameters: dict[str, Any], clock: Clock, world_size: int) -> dict[str, Any]:
    """Steps, speed, memory, parameters and the best evaluation. Times in seconds, memory in MiB."""
    totals = outcome.totals
    return {
        "world_size": world_size,
        "steps": outcome.steps,
        "total_steps": outcome.total_steps,
        "epochs": outcome.epochs,
        "stopped_early": outcome.stopped_early,
        "best": {"step": outcome.best_step, "value": outcome.best_value},
        "weights": f"checkpoints/{outcome.weights.path.name}",
        "parameters": parameters,
        "seconds": {
            "training": totals.training_seconds,
            "evaluation": totals.evaluation_seconds,
            "this_process": clock.seconds(),
        },
        "tokens": totals.tokens,
        "tokens_per_second": totals.tokens / totals.training_seconds if totals.training_seconds else None,
        "examples_per_second": totals.examples / totals.training_seconds if totals.training_seconds else None,
        "peak_memory_mib": peak_memory_mib(),
    }


def peak_memory_mib() -> float:
    """Largest memory this process has held, in MiB: of the GPU where it computes on one, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident_mib()


def artifacts(folder: Path) -> list[dict[str, Any]]:
    """Every exported file and the weights that count, with size in bytes and sha256."""
    files = [path for part in ("export", "checkpoints") for path in sorted((folder / part).rglob("*.safetensors"))]
    files += sorted(path for path in (folder / "export").rglob("*.json"))
    kept = [path for path in files if not path.name.startswith("optimizer") and "step-" not in path.parent.name]
    return [
        {"path": str(path.relative_to(folder)), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(set(kept))
    ]
