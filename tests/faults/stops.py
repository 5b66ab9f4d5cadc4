"""Signals that a process can answer, and a second process on the same folder."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ftkit.run.observer import RecordingObserver
from tests.faults.checks import mistakable, newest_step
from tests.faults.children import Child
from tests.faults.trial import Bench, Outcome, at_some_step, fault, until, wrong_end


@fault("SIGTERM while training")
def terminated(bench: Bench, generator: random.Random) -> Outcome:
    """Ends with 143 after a checkpoint of the step that was under way."""
    return _signalled(bench, generator, signal.SIGTERM)


@fault("SIGINT (Ctrl-C) while training")
def interrupted(bench: Bench, generator: random.Random) -> Outcome:
    """Ends with 130 after a checkpoint of the step that was under way."""
    return _signalled(bench, generator, signal.SIGINT)


@fault("two signals, the second while the checkpoint is written")
def impatient(bench: Bench, generator: random.Random) -> Outcome:
    """Ends at once; what was complete before is kept."""
    run, child, wrong = _training(bench, generator)
    if wrong:
        return Outcome(0, wrong)
    child.kill(signal.SIGTERM)
    child.kill(signal.SIGINT)
    ended = child.wait()
    if ended.code not in (130, 143):
        return Outcome(1, wrong_end(ended, 130))
    return Outcome(1, mistakable(run, bench.straight) or bench.finish(run))


@fault("a second process on the same run folder")
def two_at_once(bench: Bench, generator: random.Random) -> Outcome:
    """The second is refused, and the first does not notice."""
    run, first, wrong = _training(bench, generator)
    if wrong:
        return Outcome(0, wrong)
    # However long the second takes to begin, the first is still there.
    first.kill(signal.SIGSTOP)
    second = bench.begin(run, said="second").wait()
    first.kill(signal.SIGCONT)
    wrong = wrong_end(second, 2, "another process is working on this run")
    ended = first.wait()
    return Outcome(1, wrong or wrong_end(ended, 0) or bench.finish(run))


def _signalled(bench: Bench, generator: random.Random, number: signal.Signals) -> Outcome:
    run, child, wrong = _training(bench, generator)
    if wrong:
        return Outcome(0, wrong)
    child.kill(number)
    ended = child.wait()
    if ended.code == 0:
        return Outcome(0, [])
    wrong = wrong_end(ended, 128 + number, "--resume") or mistakable(run, bench.straight)
    if not wrong and not newest_step(run):
        wrong = ["no checkpoint was written"]
    return Outcome(1, wrong or bench.finish(run))


def _training(bench: Bench, generator: random.Random) -> tuple[Path, Child, list[str]]:
    """A run folder, the process that trains there and has come to some step, and what is wrong if it ended before."""
    run = bench.fresh()
    child = bench.begin(run, slow_steps())
    if until(child, at_some_step(bench, generator, run)):
        return run, child, []
    return run, child, [f"it ended before anything could be done: {child.wait().said[-500:]}"]


@contextmanager
def slow_steps() -> Iterator[None]:
    """Steps that last long enough to be met by what comes from outside."""
    step = RecordingObserver.step

    def slowly(self: RecordingObserver, *arguments: Any, **options: Any) -> None:
        time.sleep(0.05)
        step(self, *arguments, **options)

    with patch.object(RecordingObserver, "step", slowly):
        yield
