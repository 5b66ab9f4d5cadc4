"""One recipe on which faults are tried: its undisturbed run, and how a disturbed one is brought to its end and compared."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.cases import Case, recipe_words
from tests.faults.checks import differences, newest_step
from tests.faults.children import Child, Ended, FileOperations, proving_exports_here, start

LOOKS = 0.002
"""Seconds between two looks at a file."""


@dataclass(frozen=True)
class Outcome:
    """Of one trial. count: faults that were done. wrong: what came out otherwise than it must."""

    count: int
    wrong: list[str]


Trial = Callable[["Bench", random.Random], Outcome]
FAULTS: dict[str, Trial] = {}


def fault(name: str) -> Callable[[Trial], Trial]:
    """Enters a trial of a fault under the name that it has in the table."""

    def enter(trial: Trial) -> Trial:
        FAULTS[name] = trial
        return trial

    return enter


@dataclass
class Bench:
    """Where a recipe is tried. operations, seconds: of the undisturbed run in `straight`."""

    case: Case
    folder: Path
    words: list[str] = field(init=False)
    straight: Path = field(init=False)
    operations: int = field(init=False)
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        """Raises AssertionError if the undisturbed run does not end well."""
        self.folder.mkdir(parents=True)
        self.words, self.straight = recipe_words(self.case, self.folder), self.folder / "straight"
        run, counted, mark = self.fresh(), self.folder / "operations", time.perf_counter()
        ended = self.begin(run, FileOperations(run, counted=counted)).wait()
        assert ended.code == 0, f"{self.case.name}: {ended.said}"
        self.seconds, self.operations = time.perf_counter() - mark, int(counted.read_text(encoding="ascii"))
        run.rename(self.straight)

    def begin(self, run: Path, *inside: AbstractContextManager[Any], words: Sequence[str] = (), said: str = "said") -> Child:
        """Starts the run, or goes on with it. words: overrides besides. said: the name of the file for what it prints."""
        arguments = ["train", *self.words, *words, "--output", str(run), "--resume"]
        return start(arguments, self.folder / said, proving_exports_here(), *inside)

    @property
    def place(self) -> Path:
        """Where every run lies, always by the same name: what later phases write names the folder of the first."""
        return self.folder / "place"

    def fresh(self) -> Path:
        """A run folder that does not exist yet; nothing of earlier ones is left beside it."""
        self.place.mkdir(exist_ok=True)
        for left in self.place.iterdir():
            shutil.rmtree(left)
        return self.place / "run"

    def finish(self, run: Path) -> list[str]:
        """Goes on with a disturbed run; what is wrong with its end, or with where it went on."""
        saved = newest_step(run)
        ended = self.begin(run).wait()
        if ended.code:
            return [f"--resume ended with {ended.code}: {ended.said[-1200:]}"]
        if saved and f"continuing after step {saved:,} " not in ended.said and "already finished" not in ended.said:
            return [f"did not go on after step {saved}: {ended.said[-1200:]}"]
        return differences(run, self.straight)


def until(child: Child, happened: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Waits for something to happen; False if the process ended before."""
    limit = time.monotonic() + seconds
    while not happened():
        if child.ended():
            return False
        if time.monotonic() > limit:
            raise TimeoutError("what should have happened did not")
        time.sleep(LOOKS)
    return True


def steps_done(run: Path) -> int:
    """Lines of metrics.jsonl, of steps and evaluations."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def at_some_step(bench: Bench, generator: random.Random, run: Path) -> Callable[[], bool]:
    """Whether a run has come to a step that is drawn now from those of the undisturbed run."""
    lines = generator.randrange(1, steps_done(bench.straight))
    return lambda: steps_done(run) >= lines


def wrong_end(ended: Ended, code: int, *words: str) -> list[str]:
    """What is wrong with how a process ended: its exit code, a traceback, or what it should have said."""
    found = [f"ended with {ended.code}, expected {code}"] if ended.code != code else []
    found += ["a traceback"] if "Traceback" in ended.said else []
    found += [f"does not say {word!r}" for word in words if word not in ended.said]
    return [f"{'; '.join(found)}: {ended.said[-600:]}"] if found else []
