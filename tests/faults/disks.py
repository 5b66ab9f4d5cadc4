"""File systems that are full or read-only, and clocks that jump."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

from tests.faults.checks import mistakable
from tests.faults.spoiled import interrupted
from tests.faults.stops import slow_steps
from tests.faults.trial import Bench, Outcome, at_some_step, fault, until, wrong_end

MIB = 2**20
SIZE = 8 * MIB


@fault("the disk is full in the middle of a run")
def full_disk(bench: Bench, generator: random.Random) -> Outcome:
    """One message, exit code 2, what is saved stays; with room again the run goes on exactly."""
    with _file_system(bench.place) as disk:
        run = bench.fresh()
        child = bench.begin(run, slow_steps())
        if not until(child, at_some_step(bench, generator, run)):
            return Outcome(0, [child.wait().said[-500:]])
        _fill(disk / "filler")
        ended = child.wait()
        if ended.code == 0:
            return Outcome(0, [])
        wrong = wrong_end(ended, 2, "No space left") or mistakable(run, bench.straight)
        (disk / "filler").unlink()
        return Outcome(1, wrong or bench.finish(run))


def _fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


@fault("the run folder is read-only at the second start")
def read_only(bench: Bench, generator: random.Random) -> Outcome:
    """As above."""
    with _file_system(bench.place) as disk:
        if (run := interrupted(bench, generator)) is None:
            return Outcome(0, [])
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        ended = bench.begin(run).wait()
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        return Outcome(1, wrong_end(ended, 2, "Read-only") or mistakable(run, bench.straight) or bench.finish(run))


@fault("the clock jumps by days, forward and back, while training")
def clock(bench: Bench, generator: random.Random) -> Outcome:
    """Nothing of the result hangs on it."""
    run = bench.fresh()
    ended = bench.begin(run, _jumping(generator.randrange(2**31))).wait()
    return Outcome(1, wrong_end(ended, 0) or bench.finish(run))


@contextmanager
def _jumping(seed: int) -> Iterator[None]:
    generator, now = random.Random(seed), time.time
    with patch.object(time, "time", lambda: now() + generator.uniform(-9e5, 9e5)):
        yield


def can_mount() -> bool:
    """Whether this process may make file systems: those of the two faults above."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    return (
        subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False).returncode
        == 0
    )


@contextmanager
def _file_system(place: Path) -> Iterator[Path]:
    """A file system of its own, in memory."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
