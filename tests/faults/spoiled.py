"""What lies on disk is changed while a run is interrupted: its checkpoints, its rows, its base model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ftkit.training.checkpoint import RESUMABLE, complete_checkpoints
from tests.faults.checks import newest_step
from tests.faults.children import FileOperations
from tests.faults.trial import Bench, Outcome, fault, wrong_end


def truncated(file: Path, generator: random.Random) -> None:
    """Cuts a file at a random place."""
    content = file.read_bytes()
    file.write_bytes(content[: generator.randrange(len(content))])


def flipped(file: Path, generator: random.Random) -> None:
    """Flips one bit."""
    content = bytearray(file.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)


def removed(file: Path, generator: random.Random) -> None:
    """Removes a file."""
    file.unlink()


@fault("a file of the newest checkpoint is truncated")
def cut(bench: Bench, generator: random.Random) -> Outcome:
    """The checkpoint is passed over with a note; the run goes on from the one before, exactly."""
    return _damaged(bench, generator, truncated)


@fault("one bit of the newest checkpoint is flipped")
def bit(bench: Bench, generator: random.Random) -> Outcome:
    """As above."""
    return _damaged(bench, generator, flipped)


@fault("a file of the newest checkpoint is missing")
def missing(bench: Bench, generator: random.Random) -> Outcome:
    """As above."""
    return _damaged(bench, generator, removed)


@fault("a data file is changed between two starts")
def other_rows(bench: Bench, generator: random.Random) -> Outcome:
    """Refused, naming what changed; with the old rows the run goes on exactly."""
    rows = bench.folder / "data" / bench.case.cell.task / "train.jsonl"
    return _refused(bench, generator, rows, "data")


@fault("the base model is another one at the second start")
def other_base(bench: Bench, generator: random.Random) -> Outcome:
    """Refused, naming what changed; with the old model the run goes on exactly."""
    name = bench.case.cell.architecture.partition(" + ")[0]
    return _refused(bench, generator, bench.folder / "models" / name / "model.safetensors", "model")


def _refused(bench: Bench, generator: random.Random, file: Path, what: str) -> Outcome:
    if (run := interrupted(bench, generator)) is None:
        return Outcome(0, [])
    before = {
        path: path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in ("log.txt", "results.json")
    }
    with _changed(file):
        ended = bench.begin(run).wait()
    wrong = wrong_end(ended, 2, what)
    if {path: path.read_bytes() for path in before if path.exists()} != before:
        wrong.append("the refusal changed the run folder")
    return Outcome(1, wrong or bench.finish(run))


@contextmanager
def _changed(file: Path) -> Iterator[None]:
    kept = file.read_bytes()
    if file.suffix == ".jsonl":
        lines = kept.decode().splitlines()
        file.write_text("\n".join([*lines[1:], lines[0]]), encoding="utf-8")
    else:
        content = bytearray(kept)
        content[-1] ^= 1
        file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(kept)


def _damaged(bench: Bench, generator: random.Random, damage: Callable[[Path, random.Random], None]) -> Outcome:
    if (run := interrupted(bench, generator)) is None:
        return Outcome(0, [])
    checkpoint = complete_checkpoints(run / "checkpoints", RESUMABLE)[0][-1]
    damage(generator.choice(sorted(path for path in checkpoint.path.iterdir() if path.stat().st_size)), generator)
    if newest_step(run) == checkpoint.step:
        return Outcome(1, ["the damage is not seen"])
    return Outcome(1, bench.finish(run))


def interrupted(bench: Bench, generator: random.Random) -> Path | None:
    """A run that was killed after a checkpoint; None if it came to its end each time."""
    for _ in range(20):
        run = bench.fresh()
        last = generator.randrange(bench.operations // 3, bench.operations)
        ended = bench.begin(run, FileOperations(run, last=last)).wait()
        if ended.code and newest_step(run):
            return run
    return None
