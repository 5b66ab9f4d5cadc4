"""Compares AdapterFusion with each adapter by itself on tasks with few rows, over several seeds, and makes a table of it.

    python scripts/benchmarks/fusion.py --data FOLDER

For each target task: an adapter trained on the target's few rows; the adapters of the other tasks, each trained once on all their
rows; and a fusion of these three. An adapter of another task by itself is a fusion of it with itself: it stays frozen, a map of its
output and a new head are trained, as in a fusion. Every training is a process of its own and is kept in OUTPUT; a script that was
killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records import check_place, fill_place, machine_line, run_child, shell_line, table
from tasks import RECIPES, link_data

METRIC = "accuracy"
OWN, FUSION = "own adapter", "fusion"


@dataclass(frozen=True)
class Task:
    """A task: its recipe's name, and how many training rows it has as a target."""

    name: str
    few: int

    @property
    def recipe(self) -> Path:
        """The recipe, with a bottleneck adapter."""
        return RECIPES / "fusion" / f"{self.name}.yaml"

    def rows(self) -> str:
        """The override that leaves few rows."""
        return f"data.train.path=../data/{self.name}/train.jsonl#{self.few}"


TASKS = (Task("sick", 300), Task("sentiment_mr", 300), Task("covid_question_pairs", 312))


class Trainings:
    """Finished runs in a folder."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self._threads = folder.absolute(), threads

    def run(self, name: str, recipe: Path, overrides: Sequence[str]) -> Path:
        """The run folder of this name, trained first where it is not complete."""
        run = self._folder / name
        words = [str(recipe), *overrides, "--output", str(run), "--quiet"]
        run_child(["-m", "ftkit", "train", *words, *(["--resume"] if run.exists() else [])], self._threads)
        print(f"{name}: {METRIC} {score(run):.4f}", file=sys.stderr, flush=True)
        return run

    def source(self, task: Task) -> Path:
        """The adapter of a task by all its rows."""
        return self.run(f"{task.name}-source", task.recipe, [])

    def target(self, task: Task, seed: int) -> dict[str, float]:
        """Test scores on a task with few rows by what was trained: own adapter, other adapters, fusion."""
        few = [task.rows(), f"seed={seed}"]
        own = self.run(f"{task.name}-own-{seed}", task.recipe, few)
        others = {other.name: self.source(other) for other in TASKS if other != task}
        scores = {OWN: score(own)}
        for name, source in others.items():
            scores[name] = score(self.run(f"{task.name}-by-{name}-{seed}", task.recipe, [*few, fused([source, source])]))
        scores[FUSION] = score(self.run(f"{task.name}-fusion-{seed}", task.recipe, [*few, fused([own, *others.values()])]))
        return scores


def fused(members: Sequence[Path]) -> str:
    """The override that makes a recipe fuse these runs."""
    return "method=" + json.dumps({"name": "adapter-fusion", "adapters": [str(member) for member in members]})


def score(run: Path) -> float:
    """The test metric of a finished run."""
    return float(json.loads((run / "results.json").read_text(encoding="utf-8"))["splits"]["test"]["metrics"][METRIC])


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", help=f"target tasks (default: all): {', '.join(task.name for task in TASKS)}")
    parser.add_argument("--data", type=Path, help="folder of the data sets; linked as scripts/benchmarks/recipes/data")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each training (default 2)")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/fusion"), help="folder of the runs")
    parser.add_argument("--fresh", action="store_true", help="train again what was trained before")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document, at `results:fusion`")
    return parser.parse_args(given)


def markdown(found: dict[str, list[dict[str, float]]], words: Sequence[str], threads: int) -> str:
    """The table: a row for each target, a column for each way."""
    heads = ["Target", "Rows", OWN.capitalize(), *[f"Adapter of {task.name}" for task in TASKS], FUSION.capitalize()]
    rows = [[task.name, str(task.few), *_cells(task, found[task.name])] for task in TASKS if task.name in found]
    return "\n\n".join([f"`{shell_line('fusion.py', words)}`", machine_line(threads), table(heads, rows)])


def _cells(task: Task, scores: Sequence[dict[str, float]]) -> list[str]:
    ways = [OWN, *[other.name for other in TASKS], FUSION]
    return ["-" if way == task.name else _spread([found[way] for found in scores]) for way in ways]


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def main(given: Sequence[str] | None = None) -> None:
    """Trains what is missing and shows or writes the table."""
    options = arguments(given)
    if unknown := sorted({*options.targets} - {task.name for task in TASKS}):
        sys.exit(f"no such target: {', '.join(unknown)}; there are {', '.join(task.name for task in TASKS)}")
    if options.write:
        check_place(options.write, "fusion")
    link_data(options.data)
    if options.fresh:
        shutil.rmtree(options.output, ignore_errors=True)
    trainings = Trainings(options.output, options.threads)
    chosen = [task for task in TASKS if not options.targets or task.name in options.targets]
    found: dict[str, Any] = {task.name: [trainings.target(task, seed) for seed in range(options.seeds)] for task in chosen}
    words = ["--data", "FOLDER", *options.targets, "--seeds", str(options.seeds), "--threads", str(options.threads)]
    text = markdown(found, words, options.threads)
    print(text)
    if options.write:
        fill_place(options.write, "fusion", text)


if __name__ == "__main__":
    main()
