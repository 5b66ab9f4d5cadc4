"""Processes that encode rows, seen from the process that gives them rows."""

from __future__ import annotations

import builtins
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from ftkit import errors
from ftkit.children import command
from ftkit.data.messages import receive, send
from ftkit.data.table import Table
from ftkit.errors import FtkitError, InterruptedRunError, MemoryExhaustedError, Problem
from ftkit.models.processor import save_processor
from ftkit.recipe.schema import Auto
from ftkit.registry import PLUGIN_FILES, TASKS
from ftkit.tasks.base import Task
from ftkit.tasks.parts.sources import with_sources

MOST_WORKERS = 16
"""Of `auto`. Each takes about 100 MiB of memory, and more of them give their features faster than one process writes them down."""

AHEAD = 3
"""Chunks that may be on their way or waiting for an earlier one, for each process."""

BYTES_UNDER_WAY = 64 * 2**20
"""Rows of all chunks together that are on their way or waiting, beyond which no further one is given away."""

ENDING_SECONDS = 10.0
_LOG = logging.getLogger("ftkit")
_PLACE = "\0row "
_REBUILT = {cls.__name__: cls for cls in (errors.RecipeError, errors.DataError, errors.ModelError)}


def number_of_workers(wanted: int | Auto) -> int:
    """`data.num_workers` as a number. auto: one for each processor that this process may use."""
    if sys.platform == "win32":
        return 1
    return min(usable_processors(), MOST_WORKERS) if wanted == "auto" else wanted


def usable_processors() -> int:
    """Processors that this process may use: those it is bound to, within the share that its control group has (Linux)."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(bound, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return bound


def place_mark(row: int) -> str:
    """Stands for the place of a row, in a process that does not know it."""
    return f"{_PLACE}{row}"


class Pool:
    """Encoding processes for one task. `close` ends them; they end by themselves when this process does."""

    @classmethod
    def for_task(cls, task: Task, processor: Any, processor_key: str, *, training: bool, count: int) -> Pool | None:
        """Starts so many processes, without waiting for them; None where they could not have this task and processor.

        processor: is given to them as the files that it saves, or None. processor_key: see `ftkit.models.processor.processor_key`.
        """
        if not _is_known(task) or not (processor is None or type(processor).__module__.startswith("transformers.")):
            return None
        job: dict[str, Any] = {
            "task": task.name,
            "source_column": task.source_column,
            "options": task.options.model_dump_json(),
            "state": json.loads(json.dumps(task.state())),
            "training": training,
            "processor": None,
            "plugins": [str(path) for path in PLUGIN_FILES],
        }
        folder = tempfile.TemporaryDirectory(prefix="ftkit-processor-")
        try:
            if processor is not None:
                save_processor(processor, Path(folder.name))
                names = {"module": type(processor).__module__, "class": type(processor).__name__}
                job["processor"] = {**names, "folder": folder.name, "key": processor_key}
            return cls(job, count, folder)
        except Exception as error:  # a processor that cannot be saved, too many processes: it costs time, and no run
            folder.cleanup()
            if isinstance(error, InterruptedRunError):
                raise
            _LOG.warning("no encoding processes could be started: %s: %s", type(error).__name__, error)
            return None

    def __init__(self, job: dict[str, Any], count: int, folder: tempfile.TemporaryDirectory[str]) -> None:
        """folder: what the processes read of; it goes with the pool."""
        self._selector, self._folder = selectors.DefaultSelector(), folder
        self._members: list[_Member] = []
        try:
            for _ in range(count):
                self._members.append(_Member(job))
                self._selector.register(self._members[-1].answers, selectors.EVENT_READ, self._members[-1])
        except BaseException:
            self.close()
            raise

    def ready(self) -> bool:
        """Whether a process waits for work. Does not wait itself. Those that cannot do the task are let go, with a line in the log."""
        for member in self._answering(0.0):
            self._greet(member)
        return any(member.free for member in self._members)

    def encode(self, table: Table, chunks: Iterator[tuple[int, int]]) -> Iterator[tuple[pa.RecordBatch | None, int]]:
        """The features of each chunk (first row, row after the last) in order, and the row after it. One process must be ready.

        Raises what encoding a row raised, FtkitError if a process ended.
        """
        under_way: deque[tuple[int, int]] = deque()
        found: dict[int, tuple[dict[str, Any], list[pa.RecordBatch]]] = {}
        pending = next(chunks, None)
        while pending or under_way:
            for member in self._members:
                if pending and member.free and self._has_room(under_way):
                    start, stop = pending
                    under_way.append((stop, member.ask(table, start, stop)))
                    pending = next(chunks, None)
            for member in self._answering(None):
                if member.greeted:
                    stop, answer = member.answer()
                    found[stop] = answer
                else:
                    self._greet(member)
            while under_way and under_way[0][0] in found:
                stop, _ = under_way.popleft()
                head, batches = found.pop(stop)
                if "error" in head:
                    raise _rebuilt(head, table)
                yield (batches[0] if batches else None), stop

    def _has_room(self, under_way: deque[tuple[int, int]]) -> bool:
        return len(under_way) < AHEAD * len(self._members) and sum(size for _, size in under_way) < BYTES_UNDER_WAY

    def _greet(self, member: _Member) -> None:
        if not member.greet():
            self._selector.unregister(member.answers)
            self._members.remove(member)
            _LOG.warning("an encoding process could not be used: %s", member.end() or "it ended")

    def close(self) -> None:
        """Ends all processes at once."""
        for member in self._members:
            member.end()
        self._members = []
        self._selector.close()
        self._folder.cleanup()

    def _answering(self, timeout: float | None) -> list[_Member]:
        return [key.data for key, _ in self._selector.select(timeout)]


class _Member:
    """One process. free: greeted and without work."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._messages = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command("ftkit.data.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            env=_environment(),
            # Ctrl-C in a terminal reaches every process of its group; this one alone decides what it means.
            start_new_session=True,
        )
        self._questions, self.answers = cast("BinaryIO", self._process.stdin), cast("BinaryIO", self._process.stdout)
        self.greeted, self._chunk, self._refusal = False, 0, ""
        self._send(job)

    @property
    def free(self) -> bool:
        return self.greeted and not self._chunk

    def greet(self) -> bool:
        """Takes the first message; whether the process can do the task."""
        beginning = receive(self.answers)
        self._refusal = "" if beginning is None else beginning[0]["refused"]
        self.greeted = beginning is not None and not self._refusal
        return self.greeted

    def ask(self, table: Table, start: int, stop: int) -> int:
        """Gives the process the rows from `start` to `stop`; returns their size in bytes."""
        rows, batches = table.packed(start, stop)
        self._chunk = stop
        self._send({"rows": rows, "start": start}, batches)
        return sum(batch.nbytes for batch in batches)

    def answer(self) -> tuple[int, tuple[dict[str, Any], list[pa.RecordBatch]]]:
        """The end of its chunk, and what became of it. Raises FtkitError if the process has ended."""
        if (found := receive(self.answers)) is None:
            raise self._death()
        stop, self._chunk = self._chunk, 0
        return stop, found

    def end(self) -> str:
        """Ends the process; returns why it was of no use, if it was not."""
        self._process.kill()
        self._process.wait()
        reason = self._refusal or self._last_words()
        for stream in (self._questions, self.answers, self._messages):
            try:
                stream.close()
            except BrokenPipeError:
                continue
        return reason

    def _send(self, head: dict[str, Any], batches: list[pa.RecordBatch] | None = None) -> None:
        try:
            send(self._questions, head, batches or [])
        except BrokenPipeError:
            # It has ended; whoever waits for its answer will learn it.
            return

    def _death(self) -> FtkitError:
        """What to tell of a process that ended by itself."""
        try:
            code = self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        fewer = "Set data.num_workers to a smaller number; 1 encodes in one process"
        if code == -signal.SIGKILL:
            message = "a process that encodes rows was killed (SIGKILL), as the system does when memory runs out"
            return MemoryExhaustedError(Problem(message=message, key="data.num_workers", hint=fewer))
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        message = f"a process that encodes rows ended {how}: {self._last_words() or 'it said nothing'}"
        return FtkitError(Problem(message=message, key="data.num_workers", hint=fewer))

    def _last_words(self) -> str:
        self._messages.seek(0)
        lines = self._messages.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


def _is_known(task: Task) -> bool:
    """Whether another process finds the class of a task by its name."""
    try:
        return with_sources(TASKS.get(task.name), task.source_column) is type(task)
    except KeyError:
        return False


def _environment() -> dict[str, str]:
    """One thread for each process, since there is one process for each processor; and nothing is looked up in the net."""
    single = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    return {**os.environ, **single, "HF_HUB_OFFLINE": "1"}


def _rebuilt(head: dict[str, Any], table: Table) -> Exception:
    """The error that another process met, with the places of its rows."""
    name = head["error"]
    if "problems" in head:
        problems = [Problem(**problem) for problem in head["problems"]]
        return _REBUILT.get(name, FtkitError)([replace(problem, place=_placed(problem.place, table)) for problem in problems])
    cls = getattr(builtins, name, None)
    if isinstance(cls, type) and issubclass(cls, Exception) and not issubclass(cls, UnicodeError):
        error: Exception = cls(head["text"])
    else:
        error = RuntimeError(f"{name}: {head['text']}")
    error.__cause__ = RuntimeError(f"in an encoding process:\n{head['traceback']}")
    return error


def _placed(place: str, table: Table) -> str:
    return table.place(int(place.removeprefix(_PLACE))) if place.startswith(_PLACE) else place
