"""Trains recipes over several seeds, as `ftkit train` does it, and makes one table of them.

    python scripts/benchmarks/methods.py recipes/text-classification/bbc-news-*.yaml --seeds 3 --threads 2
    python scripts/benchmarks/methods.py my-recipe.yaml --methods all

With `--methods`, each recipe is trained by each of these methods with its default settings; those that refuse the model or the task are
left out, with the reason.

Each training is a process of its own, one after the other. Results are kept line by line in OUTPUT/NAME.jsonl: a run that was killed
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records import Records, check_place, fill_place, key_of, machine_line, run_child, shell_line, table

import ftkit
from ftkit.errors import RecipeError
from ftkit.registry import METHODS
from ftkit.run.planning import make_plan_here

GATE_MISSED = 4
"""Exit code of a run that trained to its end but missed a gate of `expect:`; its figures are as good as any."""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="+", type=Path, help="recipe files")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="as on ftkit's command line; again")
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="train each recipe by these methods, or by all")
    parser.add_argument("--metrics", nargs="+", default=["accuracy", "f1_macro"], help="metrics of the test split to show")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each training (default 2)")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="folder of the results")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document, at `results:NAME`")
    parser.add_argument("--name", default="methods", help="the place in the document (default methods)")
    return parser.parse_args(given)


@dataclass(frozen=True)
class Training:
    """A recipe file and what a row of the table changes of it."""

    recipe: Path
    overrides: tuple[str, ...]

    def measure(self, records: Records, seed: int, threads: int) -> dict[str, Any]:
        """The figures of one training, from an earlier run of this script where there is one."""
        what = {"recipe": self.recipe.stem, "overrides": list(self.overrides), "seed": seed, "threads": threads}
        key = key_of(text=self.recipe.read_text(encoding="utf-8"), **what)
        found = records.get(key)
        if found is None:
            found = {"key": key, **what, **figures(self._train(seed, threads))}
            records.add(found)
            told = f"{found['training_seconds']:.1f} s of training"
        else:
            told = "measured before (--fresh measures again)"
        print(f"{self.recipe.stem}, {found['method']}: seed {seed}: {told}", file=sys.stderr, flush=True)
        return found

    def _train(self, seed: int, threads: int) -> dict[str, Any]:
        """results.json of a training in a process of its own; the run folder is not kept."""
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            words = [str(self.recipe), *self.overrides, f"seed={seed}", "--output", str(run), "--quiet"]
            run_child(["-m", "ftkit", "train", *words], threads, accepted=(0, GATE_MISSED))
            return json.loads((run / "results.json").read_text(encoding="utf-8"))

    def refusal(self) -> str:
        """Why the method cannot train this recipe; '' if it can."""
        try:
            make_plan_here(ftkit.load_recipe(self.recipe, list(self.overrides)))
        except RecipeError as error:
            return error.problems[0].message
        return ""


def trainings(options: argparse.Namespace) -> list[Training]:
    """A training for each row of the table."""
    given = tuple(options.override)
    if not options.methods:
        return [Training(recipe, given) for recipe in options.recipes]
    everything = [name for name in METHODS.names() if not METHODS.get(name).needs]
    found = []
    for recipe in options.recipes:
        for name in everything if options.methods == ["all"] else options.methods:
            exported = "export=[adapter]" if METHODS.get(name).capabilities.adapter else "export=[]"
            training = Training(recipe, (*given, f"method={name}", exported))
            if reason := training.refusal():
                print(f"{recipe.stem}, {name}: left out: {reason}", file=sys.stderr, flush=True)
            else:
                found.append(training)
    return found


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of a results.json."""
    test, parameters = results["splits"].get("test"), results["parameters"]
    if test is None:
        sys.exit(f"{results['recipe']} has no test split")
    weights = [entry["bytes"] for entry in results["artifacts"] if entry["path"].startswith("export/adapter/adapter_model")]
    return {
        "method": results["method"],
        "metrics": test["metrics"],
        "intervals": test["intervals"],
        "trainable": parameters["trainable"],
        "total": parameters["total"],
        "steps": results["steps"],
        "training_seconds": results["seconds"]["training"],
        "run_seconds": results["seconds"]["this_process"],
        "tokens_per_second": results["tokens_per_second"],
        "peak_memory_mib": results["peak_memory_mib"],
        "adapter_bytes": sum(weights) or None,
    }


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(recipes: Sequence[Sequence[dict[str, Any]]], options: argparse.Namespace) -> str:
    """The table: a row for each recipe, made of its runs by seed."""
    heads = ["Recipe", "Method", *[f"Test {name}" for name in options.metrics], "Trained share"]
    heads += ["Training s", "Whole run s", "Tokens/s", "Peak MiB", "Adapter KiB"]
    rows = [_row(runs, options.metrics) for runs in recipes]
    words = [
        *[recipe.as_posix() for recipe in options.recipes],
        *[word for text in options.override for word in ("--override", text)],
        *(["--methods", *options.methods] if options.methods else []),
    ]
    words += ["--seeds", str(options.seeds), "--threads", str(options.threads)]
    return "\n\n".join([f"`{shell_line('methods.py', words)}`", machine_line(options.threads), table(heads, rows)])


def _row(runs: Sequence[dict[str, Any]], metrics: Sequence[str]) -> list[str]:
    first = runs[0]
    adapter = first["adapter_bytes"]
    return [
        first["recipe"],
        first["method"],
        *[_metric(runs, name) for name in metrics],
        f"{100 * first['trainable'] / first['total']:.2f} %",
        f"{_mean(runs, 'training_seconds'):.0f}",
        f"{_mean(runs, 'run_seconds'):.0f}",
        f"{_mean(runs, 'tokens_per_second'):,.0f}",
        f"{_mean(runs, 'peak_memory_mib'):,.0f}",
        f"{adapter / 1024:,.0f}" if adapter else "-",
    ]


def _metric(runs: Sequence[dict[str, Any]], name: str) -> str:
    """Mean and standard deviation over the seeds, then the bootstrap interval of the first."""
    values = [run["metrics"][name] for run in runs]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    interval = runs[0]["intervals"].get(name)
    return f"{statistics.fmean(values):.4f}{spread}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def _mean(runs: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.fmean(run[name] for run in runs)


def main(given: Sequence[str] | None = None) -> None:
    """Trains what is missing and prints the table."""
    options = arguments(given)
    if missing := [str(recipe) for recipe in options.recipes if not recipe.is_file()]:
        sys.exit(f"there is no recipe {', '.join(missing)}")
    if options.write:
        check_place(options.write, options.name)
    records = Records(options.output / f"{options.name}.jsonl", fresh=options.fresh)
    chosen = trainings(options)
    runs = [[training.measure(records, seed, options.threads) for seed in range(options.seeds)] for training in chosen]
    text = markdown(runs, options)
    print(text)
    if options.write:
        fill_place(options.write, options.name, text)


if __name__ == "__main__":
    main()
