"""SIGKILL at random moments, and between two file operations, so that every stage of a save is met."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.checks import mistakable, newest_step
from tests.faults.children import Ended, FileOperations
from tests.faults.trial import Bench, Outcome, fault


@fault("SIGKILL at a random moment, up to three times in a run")
def at_a_moment(bench: Bench, generator: random.Random) -> Outcome:
    """Moments are drawn evenly over the time of the undisturbed run."""

    def begin(run: Path) -> Ended:
        child = bench.begin(run)
        time.sleep(generator.uniform(0.0, bench.seconds))
        child.kill()
        return child.wait()

    return _killed(bench, generator, begin)


@fault("SIGKILL before a random file operation, up to three times in a run")
def at_a_file_operation(bench: Bench, generator: random.Random) -> Outcome:
    """Operations are opening, moving and removing files of the run folder, drawn evenly from those of the undisturbed run."""
    return _killed(
        bench, generator, lambda run: bench.begin(run, FileOperations(run, last=generator.randrange(1, bench.operations))).wait()
    )


def _killed(bench: Bench, generator: random.Random, begin: Callable[[Path], Ended]) -> Outcome:
    run, saved, kills = bench.fresh(), 0, 0
    for _ in range(generator.choice((1, 1, 2, 3))):
        ended = begin(run)
        if ended.code not in (0, -signal.SIGKILL):
            return Outcome(kills, [f"ended with {ended.code}: {ended.said[-500:]}"])
        kills += ended.code != 0
        if found := mistakable(run, bench.straight):
            return Outcome(kills, found)
        if newest_step(run) < saved:
            return Outcome(kills, [f"the checkpoint of step {saved} is lost"])
        saved = newest_step(run)
    return Outcome(kills, bench.finish(run))
