"""Trains every task on public data, full and with LoRA, and makes one table of the results.

    python scripts/benchmarks/tasks.py --data FOLDER [NAME ...]

FOLDER holds a folder for each data set; docs/benchmarks.md says where each comes from. The recipes lie in scripts/benchmarks/recipes/ and
train as any other (`ftkit train scripts/benchmarks/recipes/wnut17.yaml`). A run that is complete is not repeated; one that was killed
goes on. `--fresh` trains all anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records import check_place, fill_place, machine_line, run_child, shell_line, table

RECIPES = Path(__file__).resolve().parent / "recipes"
RUNS = RECIPES / "runs"


@dataclass(frozen=True)
class Entry:
    """A training: its recipe, the name of its run, what it changes of the recipe, and the test metrics to show."""

    recipe: str
    variant: str
    metrics: tuple[str, ...]
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name: recipe and variant."""
        return f"{self.recipe}-{self.variant}"


def full(rate: str, *others: str) -> tuple[str, ...]:
    """Overrides that turn a LoRA recipe into one that trains every weight."""
    return ("method=full", f"train.learning_rate={rate}", *others)


def pair(recipe: str, metrics: tuple[str, ...], *, rate: str) -> tuple[Entry, Entry]:
    """A recipe by full fine-tuning and as it is written, with LoRA."""
    return Entry(recipe, "full", metrics, full(rate)), Entry(recipe, "lora", metrics)


def back(recipe: str, metrics: tuple[str, ...]) -> Entry:
    """LoRA on what the full run learned, for the other direction of translation."""
    model = f"model={{name: runs/{recipe}-full/export/merged}}"
    return Entry(recipe, "lora", metrics, (model, "task.translation_keys=[de, en]", "method=lora"))


def after(recipe: str, first: str) -> Entry:
    """LoRA on a ViT that learned another set of images: random weights are nothing to adapt."""
    overrides = (f"model={{name: runs/{first}-full/export/merged}}", "method=lora", "train.learning_rate=3e-3")
    return Entry(recipe, "lora", ("accuracy", "f1_macro"), overrides)


ENTRIES = (
    *pair("wnut17", ("f1", "precision", "recall"), rate="2e-4"),
    *pair("squad_en", ("exact_match", "f1"), rate="1e-4"),
    *pair("covidqa", ("exact_match", "f1"), rate="5e-5"),
    *pair("sick", ("accuracy", "f1_macro"), rate="2e-4"),
    *pair("sick_relatedness", ("pearson", "spearman"), rate="2e-4"),
    *pair("cooking_multilabel", ("f1_micro", "f1_macro"), rate="2e-4"),
    *pair("banking77", ("accuracy", "f1_macro"), rate="3e-4"),
    *pair("tinyshakespeare", ("perplexity", "bits_per_byte"), rate="2e-5"),
    *pair("gsm8k", ("perplexity", "answer_match"), rate="2e-5"),
    *pair("instruct_human", ("perplexity", "rougeL"), rate="2e-5"),
    *pair("scitldr", ("rouge1", "rouge2", "rougeL"), rate="2e-4"),
    *pair("tatoeba_en_de", ("bleu", "chrf"), rate="2e-4"),
    Entry("tatoeba_t5", "full", ("bleu", "chrf")),
    back("tatoeba_t5", ("bleu", "chrf")),
    Entry("tatoeba_bart", "full", ("bleu", "chrf"), ("train.learning_rate=1e-3",)),
    back("tatoeba_bart", ("bleu", "chrf")),
    Entry("fashion_mnist", "full", ("accuracy", "f1_macro")),
    Entry("digits", "full", ("accuracy", "f1_macro")),
    after("fashion_mnist", "digits"),
    after("digits", "fashion_mnist"),
)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="data sets or runs (default: all): wnut17, squad_en-lora ...")
    parser.add_argument("--data", type=Path, help="folder of the data sets; linked as scripts/benchmarks/recipes/data")
    parser.add_argument("--threads", type=int, default=2, help="threads of each training (default 2)")
    parser.add_argument("--fresh", action="store_true", help="train again what was trained before")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document, at `results:tasks`")
    return parser.parse_args(given)


def chosen(names: Sequence[str]) -> list[Entry]:
    """The entries of these names. Ends the program if a name fits none."""
    unknown = [name for name in names if not any(name in (entry.recipe, entry.name) for entry in ENTRIES)]
    if unknown:
        sys.exit(f"no such data set or run: {', '.join(unknown)}; there are {', '.join(entry.name for entry in ENTRIES)}")
    return [entry for entry in ENTRIES if not names or entry.recipe in names or entry.name in names]


def link_data(folder: Path | None) -> None:
    """Makes the recipes find the data. Ends the program if they cannot."""
    place = RECIPES / "data"
    if folder is not None:
        place.unlink(missing_ok=True)
        place.symlink_to(folder.resolve(strict=True), target_is_directory=True)
    if not place.is_dir():
        sys.exit(f"give the folder of the data sets with --data, or link it as {place}")


def trained(entry: Entry, options: argparse.Namespace) -> dict[str, Any]:
    """results.json of an entry's run, trained first where it is not complete."""
    run = RUNS / entry.name
    if options.fresh:
        shutil.rmtree(run, ignore_errors=True)
    words = [str(RECIPES / f"{entry.recipe}.yaml"), *entry.overrides, "--output", str(run), "--quiet"]
    run_child(["-m", "ftkit", "train", *words, *(["--resume"] if run.exists() else [])], options.threads, accepted=(0,))
    results: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    print(f"{entry.name}: {results['seconds']['training']:.0f} s of training", file=sys.stderr, flush=True)
    return results


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(entries: Sequence[Entry], results: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table: a row for each run."""
    heads = ["Data", "Task", "Method", "Test metrics", "Before training", "Rows (train / test)"]
    heads += ["Trained share", "Steps", "Training s", "Tokens/s", "Export within"]
    rows = [_row(entry, found) for entry, found in zip(entries, results, strict=True)]
    command = shell_line("tasks.py", [*options.names, "--data", "FOLDER", "--threads", str(options.threads)])
    return "\n\n".join([f"`{command}`", machine_line(options.threads), table(heads, rows)])


def _row(entry: Entry, results: dict[str, Any]) -> list[str]:
    test, parameters = results["splits"]["test"], results["parameters"]
    before = test.get("before") or {}
    return [
        entry.recipe,
        results["task"],
        results["method"],
        "; ".join(_with_interval(test, name) for name in entry.metrics),
        "; ".join(f"{name} {before[name]:.4g}" for name in entry.metrics if before.get(name) is not None) or "-",
        f"{results['splits']['train']['rows']:,} / {test['rows']:,}",
        f"{100 * parameters['trainable'] / parameters['total']:.2f} %",
        f"{results['steps']:,}",
        f"{results['seconds']['training']:,.0f}",
        f"{results['tokens_per_second']:,.0f}",
        f"{max(export['max_abs_difference'] for export in results['exports'].values()):.0e}",
    ]


def _with_interval(split: dict[str, Any], name: str) -> str:
    interval = split["intervals"].get(name)
    return f"{name} {split['metrics'][name]:.4g}" + (f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else "")


def main() -> None:
    """Trains what is asked for and shows or writes the table."""
    options = arguments()
    if options.write:
        check_place(options.write, "tasks")
    entries = chosen(options.names)
    link_data(options.data)
    text = markdown(entries, [trained(entry, options) for entry in entries], options)
    if options.write:
        fill_place(options.write, "tasks", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
