"""The processes that train in a smoke test: one that kills itself in the middle of a step, and one that resumes it.

A process runs `main` with the path of a request. What happens in it, and how it ends if it does not end well, lies beside that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit import errors
from ftkit.children import command
from ftkit.data.splits import Splits
from ftkit.errors import FtkitError, Problem
from ftkit.files import json_text, parse_json, read_json, write_json
from ftkit.recipe.load import parse_recipe
from ftkit.registry import PLUGIN_FILES, load_plugin
from ftkit.run import signals
from ftkit.run.observer import Observer
from ftkit.run.planning import make_plan_here
from ftkit.run.smoke_slice import slice_of
from ftkit.tasks.base import Task

if TYPE_CHECKING:
    from ftkit.training.events import StepEvent

Event = dict[str, Any]
"""`event`, its `time`, and what belongs to it."""

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a process is to train.

    text: the recipe, `name` what messages call it, `base` the folder its paths start from. kill: `phase` (from 1) and `step` in which the
    process kills itself, once the step is in metrics.jsonl; None: it does not.
    """

    text: str
    name: str
    base: str
    run: str
    resume: bool
    kill: tuple[int, int] | None
    allow_code: bool


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended: its exit code (of one that was killed, minus the signal), what happened in it, and its last words."""

    code: int
    events: Sequence[Event]
    error: Mapping[str, Any] | None
    last_words: str

    def of(self, event: str) -> list[Event]:
        """The events of a kind."""
        return [found for found in self.events if found["event"] == event]


def run_process(request: Request, folder: Path) -> Ended:
    """Runs `main` for a request in a new process, which ends when this returns or raises. folder: an empty one, for all that it writes."""
    question, log = folder / "request.json", folder / "output.txt"
    write_json(question, {"request": asdict(request), "plugins": [str(path) for path in PLUGIN_FILES]})
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(__name__, [str(question)]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # What it leaves behind when it is killed lies in the folder, too.
            env={**environment, "TMPDIR": str(folder), signals.LAUNCHER: str(os.getpid())},
            # Signals of the terminal reach the parent alone, which ends the child and what the child has started.
            start_new_session=True,
        )
        try:
            code = process.wait()
        finally:
            _end(process)
    error = folder / "error.json"
    return Ended(
        code=code,
        events=[parse_json(line) for line in _lines(folder / "events.jsonl")],
        error=read_json(error) if error.is_file() else None,
        last_words=(_lines(log) or [""])[-1],
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def raise_error(ended: Ended) -> None:
    """Raises what ended a process, as it would have ended a run in this one."""
    error = ended.error
    if error is None:
        how = f"by {signal.Signals(-ended.code).name}" if ended.code < 0 else f"with {ended.code}"
        message = f"the process that trains ended {how}" + (f": {ended.last_words}" if ended.last_words else "")
        raise FtkitError(message, hint="If nobody ended it, it may have run out of memory, or a library crashed")
    if error["kind"] == "OSError":
        raise OSError(error["errno"], error["message"], error["file"])
    if error["problems"] is not None:
        kind = getattr(errors, error["kind"], FtkitError)
        known = kind.__new__(kind)
        FtkitError.__init__(known, [Problem(**problem) for problem in error["problems"]])
        known.exit_code = error["exit_code"]
        raise known
    raise type(error["kind"], (RuntimeError,), {})(error["message"]) from RuntimeError("\n" + error["traceback"])


# --- in the process ----------------------------------------------------------------------------------------------------


class _Watching(Observer):
    """Writes down what happens, and kills the process when it is time."""

    def __init__(self, file: Path, kill: tuple[int, int] | None) -> None:
        self._stream = file.open("a", encoding="utf-8")
        self._kill, self._phase = kill, 0

    def _note(self, event: str, **facts: Any) -> None:
        self._stream.write(json_text({"event": event, "time": time.time(), **facts}) + "\n")
        self._stream.flush()

    def stage(self, name: str) -> None:
        """See Observer."""
        self._note("stage", name=name)

    def training_starts(self, *, total_steps: int, first_step: int, metrics: list[str], best_metric: str, unit: str) -> None:
        """See Observer."""
        self._phase += 1
        self._note("training", phase=self._phase, first_step=first_step, total_steps=total_steps)

    def step(self, event: StepEvent, *, tokens_per_second: float, seconds_left: float) -> None:
        """See Observer."""
        self._note("step", phase=self._phase, step=event.step)
        if self._kill == (self._phase, event.step):
            self._note("kill")
            os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: Sequence[str]) -> None:
    """Trains what the request says whose path is the only argument."""
    from ftkit.models.quiet import quiet_libraries

    quiet_libraries()
    signals.end_with_launcher()
    question = Path(arguments[0])
    asked = read_json(question)
    request = Request(**asked["request"])
    kill = None if request.kill is None else (request.kill[0], request.kill[1])
    try:
        for path in asked["plugins"]:
            load_plugin(Path(path))
        _train(replace(request, kill=kill), question.parent)
    except Exception as error:
        write_json(question.parent / "error.json", _described(error))
        raise SystemExit(1) from error


def _train(request: Request, folder: Path) -> None:
    from ftkit.run.train import train

    recipe = parse_recipe(request.text, request.name, base=Path(request.base))
    take: Callable[[Splits, Task], Splits] = partial(slice_of, plan=make_plan_here(recipe))
    watching = _Watching(folder / "events.jsonl", request.kill)
    train(recipe, output=Path(request.run), resume=request.resume, observer=watching, allow_code=request.allow_code, take=take)


def _described(error: Exception) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": type(error).__name__, "message": str(error), "problems": None}
    if isinstance(error, FtkitError):
        return {**found, "problems": [problem.to_json() for problem in error.problems], "exit_code": error.exit_code}
    if isinstance(error, OSError):
        return {**found, "kind": "OSError", "errno": error.errno, "message": error.strerror or str(error), "file": error.filename}
    return {**found, "traceback": traceback.format_exc()}
