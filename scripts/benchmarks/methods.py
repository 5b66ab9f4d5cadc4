"""Trains recipes over several seeds, as `ftkit train` does it, and makes one table of them.

    python scripts/benchmarks/methods.py recipes/text-classification/bbc-news-*.yaml --seeds 3 --threads 2

Each training is a process of its own, one after the other. Results are kept line by line in OUTPUT/methods.jsonl: a run that was
killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from records import Records, check_place, fill_place, key_of, machine_line, run_child, shell_line, table

GATE_MISSED = 4
"""Exit code of a run that trained to its end but missed a gate of `expect:`; its figures are as good as any."""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="+", type=Path, help="recipe files")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="as on ftkit's command line; again")
    parser.add_argument("--metrics", nargs="+", default=["accuracy", "f1_macro"], help="metrics of the test split to show")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each training (default 2)")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="folder of the results")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document, at `results:NAME`")
    parser.add_argument("--name", default="methods", help="the place in the document (default methods)")
    return parser.parse_args(given)


def measure(records: Records, recipe: Path, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The figures of one training, from an earlier run of this script where there is one."""
    what = {"recipe": recipe.stem, "overrides": options.override, "seed": seed, "threads": options.threads}
    key = key_of(text=recipe.read_text(encoding="utf-8"), **what)
    found = records.get(key)
    if found is None:
        found = {"key": key, **what, **figures(train(recipe, options, seed))}
        records.add(found)
        told = f"{found['training_seconds']:.1f} s of training"
    else:
        told = "measured before (--fresh measures again)"
    print(f"{recipe.stem}: seed {seed}: {told}", file=sys.stderr, flush=True)
    return found


def train(recipe: Path, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """results.json of a training in a process of its own; the run folder is not kept."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = [str(recipe), *options.override, f"seed={seed}", "--output", str(run), "--quiet"]
        run_child(["-m", "ftkit", "train", *words], options.threads, accepted=(0, GATE_MISSED))
        return json.loads((run / "results.json").read_text(encoding="utf-8"))


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
    runs = [[measure(records, recipe, options, seed) for seed in range(options.seeds)] for recipe in options.recipes]
    text = markdown(runs, options)
    print(text)
    if options.write:
        fill_place(options.write, options.name, text)


if __name__ == "__main__":
    main()
