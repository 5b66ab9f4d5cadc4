"""Numbers that are none, and memory that runs out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ftkit.training.gradients import Gradients
from tests.faults.checks import differences, mistakable
from tests.faults.trial import Bench, Outcome, fault, wrong_end


@fault("the loss of a step is not a number")
def loss(bench: Bench, generator: random.Random) -> Outcome:
    """Exit code 3 at that step; nothing is exported, and without the fault the run goes on exactly."""

    def spoil(gradients: Gradients, value: float) -> float:
        return float("nan")

    return _spoiled(bench, generator, spoil)


@fault("a gradient of a step is not a number")
def gradient(bench: Bench, generator: random.Random) -> Outcome:
    """As above."""

    def spoil(gradients: Gradients, value: float) -> float:
        next(parameter for parameter in gradients._parameters if parameter.grad is not None).grad.view(-1)[0] = float("nan")
        return value

    return _spoiled(bench, generator, spoil)


@fault("a weight of the base model is not a number")
def weight(bench: Bench, generator: random.Random) -> Outcome:
    """Exit code 2 or 3 with a message; nothing is exported."""
    from safetensors.torch import load_file, save_file

    file = bench.folder / "models" / bench.case.cell.architecture.partition(" + ")[0] / "model.safetensors"
    kept, run = file.read_bytes(), bench.fresh()
    weights = load_file(file)
    for name in weights:
        if weights[name].ndim == 1:
            weights[name][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    try:
        ended = bench.begin(run).wait()
    finally:
        file.write_bytes(kept)
    wrong = wrong_end(ended, ended.code if ended.code in (2, 3) else 3)
    return Outcome(1, [*wrong, *("something was exported" for _ in (run / "export").glob("*"))])


@fault("memory runs out in a step: batches go through in parts")
def memory(bench: Bench, generator: random.Random) -> Outcome:
    """The run ends well, says so, and every step has learned from the same rows at the same rate. A single row has no parts."""
    run = bench.fresh()
    ended = bench.begin(run, _out_of_memory(generator.randrange(1, 8), whole_batches_only=True)).wait()
    wrong = wrong_end(ended, 0, "in 2 parts")
    kept = ("step", "epoch", "learning_rate", "tokens", "examples")
    ours, theirs = ([[entry.get(key) for key in kept] for entry in _steps(folder)] for folder in (run, bench.straight))
    return Outcome(1, wrong or (["other rows, tokens or rates"] if ours != theirs else []))


@fault("memory runs out in a step, `train.out_of_memory: stop`")
def memory_at_once(bench: Bench, generator: random.Random) -> Outcome:
    """Exit code 5 with advice; with memory again the run goes on exactly."""
    run, words = bench.fresh(), ("train.out_of_memory=stop",)
    ended = bench.begin(run, _out_of_memory(generator.randrange(1, 8), whole_batches_only=False), words=words).wait()
    if wrong := wrong_end(ended, 5, "memory"):
        return Outcome(1, wrong)
    again = bench.begin(run, words=words).wait()
    return Outcome(
        1, wrong_end(again, 0) or [name for name in differences(run, bench.straight) if not name.startswith("results.json")]
    )


def _spoiled(bench: Bench, generator: random.Random, spoil: Callable[[Gradients, float], float]) -> Outcome:
    run, step = bench.fresh(), generator.randrange(1, 9)
    ended = bench.begin(run, _at_step(step, spoil)).wait()
    if wrong := wrong_end(ended, 3, "Nothing was exported") or mistakable(run, bench.straight):
        return Outcome(1, wrong)
    return Outcome(1, bench.finish(run))


@contextmanager
def _at_step(step: int, spoil: Callable[[Gradients, float], float]) -> Iterator[None]:
    """Changes what comes out of one step of this process."""
    whole, steps = Gradients.accumulate, 0

    def accumulate(self: Gradients, *arguments: Any) -> float:
        nonlocal steps
        steps += 1
        value = whole(self, *arguments)
        return spoil(self, value) if steps == step else value

    with patch.object(Gradients, "accumulate", accumulate):
        yield


@contextmanager
def _out_of_memory(step: int, *, whole_batches_only: bool) -> Iterator[None]:
    """From a step on there is no room for a batch in one piece, or for any."""
    backward, steps = Gradients._backward, 0

    def lacking(self: Gradients, loaded: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal steps
        steps += not options.get("apart")
        rows = max(len(next(iter(batch.values()))) for batch, _ in loaded)
        if steps >= step and (rows > 1 or not whole_batches_only):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return backward(self, loaded, *arguments, **options)

    with patch.object(Gradients, "_backward", lacking):
        yield


def _steps(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["type"] == "step"]
