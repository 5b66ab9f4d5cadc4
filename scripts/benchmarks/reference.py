"""Measures ftkit against transformers' Trainer (with PEFT for LoRA): same model, rows, splits, hyperparameters and seeds.

    python scripts/benchmarks/reference.py --recipe recipes/text-classification/tweets-lora.yaml --seeds 3 --threads 2

Tasks are those with a file in scripts/benchmarks/sides/.

Each training is a process of its own; the two sides take turns, so that a machine that grows slower does so for both. Results are
kept line by line in OUTPUT/<recipe>.jsonl: a run that was killed goes on where it was. OUTPUT/<recipe>.json has the whole.
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

from records import Records, check_place, files_hash, fill_place, key_of, machine_line, run_child, shell_line, table

from ftkit.files import write_json

SIDE = Path(__file__).with_name("side.py")
SIDES = Path(__file__).with_name("sides")
START_TOLERANCE = 1e-5
CONFIDENCE = 0.95


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", action="append", required=True, type=Path, help="a recipe file; may be given again")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="as on ftkit's command line; again")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each training (default 2)")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32"], help="of ftkit; the Trainer has fp32")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/reference"), help="folder of the results")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the tables into this document, at `results:reference-<recipe>`"
    )
    return parser.parse_args(given)


def measure(records: Records, recipe: Path, options: argparse.Namespace, side: str, seed: int, precision: str) -> dict[str, Any]:
    """One measurement, from an earlier run of this script where there is one."""
    what = {
        "side": side,
        "overrides": options.override,
        "seed": seed,
        "precision": precision,
        "threads": options.threads,
    }
    code = files_hash([SIDE, *SIDES.glob("*.py")])
    key = key_of(recipe=recipe.read_text(encoding="utf-8"), sides=code, **what)
    found = records.get(key)
    if found is None:
        found = {"key": key, **what, **_in_child({"recipe": str(recipe), **what}, options.threads)}
        records.add(found)
        told = "measured" if side == "start" else _told(found)
    else:
        told = "measured before (--fresh measures again)"
    print(f"{recipe.stem}: seed {seed}, {side} {precision}: {told}", file=sys.stderr, flush=True)
    return found


def _told(found: dict[str, Any]) -> str:
    name, value = next(iter(found["metrics"].items()))
    return f"{found['seconds']:.1f} s, {name} {value:.4f}"


def _in_child(request: dict[str, Any], threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        run_child([str(SIDE), str(asked), str(answered)], threads)
        return json.loads(answered.read_text(encoding="utf-8"))


def compare(recipe: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All measurements of a recipe and what they say."""
    records = Records(options.output / f"{recipe.stem}.jsonl", fresh=options.fresh)
    start = measure(records, recipe, options, "start", 0, "fp32")
    check_start(start)
    seeds = []
    for seed in range(options.seeds):
        ours = {precision: measure(records, recipe, options, "ftkit", seed, precision) for precision in options.precision}
        theirs = measure(records, recipe, options, "trainer", seed, "fp32")
        check_same_work(theirs, list(ours.values()))
        seeds.append({"seed": seed, "ftkit": ours, "trainer": theirs})
    return {
        "recipe": recipe.name,
        "overrides": options.override,
        "threads": options.threads,
        "machine": machine_line(options.threads),
        "start": start,
        "seeds": seeds,
        "summary": {precision: summary(seeds, precision) for precision in options.precision},
    }


def check_start(start: dict[str, Any]) -> None:
    """Ends the script if the two sides do not begin with the same model, or would train different weights or numbers of steps."""
    ours, theirs = start["ftkit"], start["trainer"]
    close = all(
        abs(ours[name] - theirs[name]) <= START_TOLERANCE * max(1.0, abs(theirs[name])) for name in ("loss", "gradient_norm")
    )
    if not close or any(ours[name] != theirs[name] for name in ("trainable", "steps")):
        sys.exit(f"the two sides do not start with the same model; nothing to compare.\nftkit:   {ours}\nTrainer: {theirs}")


def check_same_work(theirs: dict[str, Any], ours: Sequence[dict[str, Any]]) -> None:
    """Ends the script if the sides took different numbers of steps or trained different numbers of weights."""
    for mine in ours:
        for name in ("steps", "trainable"):
            if mine[name] != theirs[name]:
                sys.exit(f"different work: ftkit has {mine[name]} {name}, the Trainer {theirs[name]}")


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean = statistics.fmean(values)
    reach = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return mean - reach, mean + reach


def summary(seeds: Sequence[dict[str, Any]], precision: str) -> dict[str, Any]:
    """Metrics of ftkit against the Trainer's interval, and ratios of time and memory (above 1: ftkit needs less)."""
    pairs = [(seed["ftkit"][precision], seed["trainer"]) for seed in seeds]
    metrics = [(ours["metrics"], theirs["metrics"]) for ours, theirs in pairs]
    ratios = {name: [theirs[name] / ours[name] for ours, theirs in pairs] for name in ("seconds", "cpu_seconds", "peak_memory_mib")}
    return {
        "metrics": {
            name: _against([ours[name] for ours, _ in metrics], [side[name] for _, side in metrics]) for name in metrics[0][1]
        },
        "ratios": ratios,
        "median_ratios": {name: statistics.median(values) for name, values in ratios.items()},
    }


def _against(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    interval = t_interval(theirs)
    mean = statistics.fmean(ours)
    within = [None if interval is None else interval[0] <= value <= interval[1] for value in (mean, *ours)]
    return {
        "ftkit_mean": mean,
        "trainer_mean": statistics.fmean(theirs),
        "trainer_interval": interval,
        "mean_within": within[0],
        "seeds_within": within[1:],
    }


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(found: dict[str, Any], command: str) -> str:
    """The tables of a recipe."""
    start = found["start"]
    both = start["ftkit"], start["trainer"]
    losses = " and ".join(f"{side['loss']:.6f}" for side in both)
    norms = " and ".join(f"{side['gradient_norm']:.6f}" for side in both)
    train, test = start["examples"]["train"], start["examples"]["test"]
    intro = (
        f"{train['rows']:,} training and {test['rows']:,} test rows{_made(train)}, {both[1]['steps']:,} steps, method "
        f"`{start['method']}`, {both[0]['trainable']:,} weights train on both sides. Before the first step (ftkit and Trainer): loss "
        f"{losses}, gradient norm {norms}."
    )
    ratios = " ".join(
        f"Trainer over ftkit {precision}, medians over the seeds: {facts['median_ratios']['seconds']:.2f} in time, "
        f"{facts['median_ratios']['cpu_seconds']:.2f} in processor time, {facts['median_ratios']['peak_memory_mib']:.2f} in memory."
        for precision, facts in found["summary"].items()
    )
    parts = [f"`{command}`", found["machine"], intro, ratios, _summary_table(found), _seed_table(found)]
    return "\n\n".join(parts)


def _made(train: dict[str, int]) -> str:
    """What became of the training rows, unless every row is one example and the same on both sides."""
    sizes = {train["rows"], train["ftkit"], train["trainer"], train["same"]}
    if len(sizes) == 1:
        return ""
    return (
        f" ({train['ftkit']:,} and {train['trainer']:,} training examples, ftkit and Trainer, {train['same']:,} of them the same)"
    )


def _summary_table(found: dict[str, Any]) -> str:
    rows = []
    for precision, facts in found["summary"].items():
        for name, title in found["start"]["metrics"].items():
            value = facts["metrics"][name]
            interval = value["trainer_interval"]
            rows.append(
                [
                    f"{title}, ftkit {precision}",
                    f"{value['ftkit_mean']:.4f}",
                    f"{value['trainer_mean']:.4f}",
                    f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "-",
                    {True: "yes", False: "no", None: "-"}[value["mean_within"]],
                    f"{value['seeds_within'].count(True)} of {len(value['seeds_within'])}" if interval else "-",
                ]
            )
    heads = ["Test metric", "ftkit mean", "Trainer mean", "Trainer's 95 % interval", "ftkit's mean within", "seeds within"]
    return table(heads, rows)


def _seed_table(found: dict[str, Any]) -> str:
    rows, titles = [], found["start"]["metrics"]
    for entry in found["seeds"]:
        theirs = entry["trainer"]
        sides = [(f"ftkit {precision}", ours) for precision, ours in entry["ftkit"].items()] + [("Trainer fp32", theirs)]
        for name, side in sides:
            rows.append(
                [
                    f"{entry['seed']}, {name}",
                    *[f"{side['metrics'][metric]:.4f}" for metric in titles],
                    f"{side['seconds']:.1f}",
                    f"{side['cpu_seconds']:.1f}",
                    f"{theirs['seconds'] / side['seconds']:.2f}",
                    f"{side['peak_memory_mib']:.0f}",
                ]
            )
    return table(["Seed, side", *titles.values(), "Training s", "Processor s", "Times the Trainer's speed", "Peak MiB"], rows)


def _words(recipe: Path, options: argparse.Namespace) -> list[str]:
    overrides = [word for override in options.override for word in ("--override", override)]
    counts = ["--seeds", str(options.seeds), "--threads", str(options.threads)]
    return ["--recipe", recipe.as_posix(), *overrides, *counts, "--precision", *options.precision]


def main(given: Sequence[str] | None = None) -> None:
    """Measures every recipe and prints its tables."""
    options = arguments(given)
    for recipe in options.recipe:
        if not recipe.is_file():
            sys.exit(f"there is no recipe {recipe}")
        if options.write:
            check_place(options.write, f"reference-{recipe.stem}")
    for recipe in options.recipe:
        found = compare(recipe, options)
        write_json(options.output / f"{recipe.stem}.json", found)
        text = markdown(found, shell_line("reference.py", _words(recipe, options)))
        print(f"## {recipe.stem}\n\n{text}\n")
        if options.write:
            fill_place(options.write, f"reference-{recipe.stem}", text)


if __name__ == "__main__":
    main()
