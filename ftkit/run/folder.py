"""The run folder: what lies where, who may write, and when it may be reused."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ftkit.errors import FtkitError, Problem, RunFolderError
from ftkit.files import json_text, read_json, sha256_of, write_json

RESULTS, METRICS, PLAN, RECIPE, LOCK, TASK, LOG, CARD, PROBE = (
    "results.json", "metrics.jsonl", "plan.yaml", "recipe.yaml", "lock.json", "task.json", "log.txt", "README.md", "probe.safetensors",
)  # fmt: skip

TASK_DIGEST = "task_sha256"
"""In results.json: sha256 of task.json, which holds the names of the labels."""

FINISHED = ("completed", "gate_not_met")
"""What results.json says is the status of a run that is over and has all its results."""

REFUSED = 2
"""Exit code of what the recipe, the data or the model make impossible."""

BEFORE_THE_RUN = {".lock", LOG}
"""All that a run leaves that ends before it has encoded its rows."""

BEGINNING = BEFORE_THE_RUN | {RECIPE, LOCK, TASK, RESULTS, PROBE}
"""What may lie in a folder before plan.yaml, the last file to be written, makes it a run."""


INNER = ("checkpoints", "export")
"""Folders inside a run folder, in which folders are made and removed."""

WEIGHTS = re.compile(r"checkpoints/(best|step)-\d{8,}")
"""What results.json says of where a run's weights are."""


@dataclass
class RunFolder:
    """A run folder held by this process.

    `recipe.yaml` as given, `plan.yaml` complete and runnable, `lock.json`, `task.json` (what the task learned from the training
    rows), `probe.safetensors` (a batch that exports are compared on), `metrics.jsonl`, `results.json`, `checkpoints/`,
    `export/`, `log.txt`, `README.md` (model card). moved_aside: where --overwrite put what was there before.
    made: whether the folder was not there before. writes: False in the other processes of a run of several, which only read.
    """

    path: Path
    resumed: bool = False
    moved_aside: Path | None = None
    made: bool = False
    writes: bool = True
    _guard: int | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """Folder of exports."""
        return self.path / "export"

    def __enter__(self) -> RunFolder:
        self._guard = _lock(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._guard is not None:
            os.close(self._guard)
            self._guard = None
        if isinstance(error, FtkitError) and error.exit_code == REFUSED:
            self._leave_no_trace()

    def _leave_no_trace(self) -> None:
        """A run that is refused before it has a plan (by what only encoding or loading shows) is none: everything is as it was."""
        left = {entry.name for entry in self.path.iterdir()}
        if not left <= {LOG, ".lock"}:
            return
        for name in left:
            (self.path / name).unlink()
        if self.made:
            self.path.rmdir()
        if self.moved_aside is not None:
            os.replace(self.moved_aside, self.path)

    def write(self, name: str, value: Any) -> None:
        """Atomically writes a JSON file of the folder."""
        write_json(self.path / name, value)

    def results(self) -> dict[str, Any] | None:
        """The content of results.json, None if there is none yet."""
        if not (self.path / RESULTS).exists():
            return None
        with readable(self.path / RESULTS):
            return dict(read_json(self.path / RESULTS))


def refuse_root(path: Path) -> None:
    """Raises RunFolderError for the root of a file system, beside which nothing can lie."""
    if not path.name:
        raise _refused(path, "is the root of the file system, not a folder for a run", "Choose another --output")


def check_run_folder(path: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether the folder already holds files. Changes nothing.

    A folder that holds anything is refused unless `resume` (it must be a run) or `overwrite` (it is moved aside, never deleted). What
    a run left that ended before it had begun does not count.
    Raises RunFolderError.
    """
    refuse_root(path)
    if path.exists() and not path.is_dir():
        raise _refused(path, "is a file", "Choose another --output")
    if not overwrite:
        refuse_links(path)
    used = path.is_dir() and not _left_before_it_began(path)
    if used and resume:
        if not (path / PLAN).is_file():
            raise _refused(path, "holds no run to resume", "Choose another --output, or --overwrite to move it aside")
    if used and not (resume or overwrite):
        raise _refused(
            path,
            "already holds files",
            "Continue it with --resume, replace it with --overwrite (it is moved aside), or give --output",
        )
    return used


def refuse_links(path: Path) -> None:
    """Raises RunFolderError for links in a run folder that is to be written to, wherever they lead: writing would follow them."""
    folders = [folder for folder in (path, *(path / name for name in INNER)) if folder.is_dir()]
    for entry in (entry for folder in folders for entry in sorted(folder.iterdir()) if entry.is_symlink()):
        hint = "Put what it leads to in its place, or remove it; a run folder as a whole may be a link"
        raise _refused(entry, f"is a link to {os.readlink(entry)!r}, through which a run would be written", hint)


def _left_before_it_began(path: Path) -> bool:
    names = {entry.name.removeprefix(".tmp-") for entry in path.iterdir()}
    if names <= BEFORE_THE_RUN:
        return True
    # Without a lock they are no files of ours: a recipe.yaml may be a person's own.
    return ".lock" in names and names <= BEGINNING | {PLAN} and not (path / PLAN).exists()


def open_run_folder(path: Path, *, resume: bool, overwrite: bool) -> RunFolder:
    """Makes or reopens a run folder under the rules of `check_run_folder`. Raises RunFolderError."""
    used = check_run_folder(path, resume=resume, overwrite=overwrite)
    if used and resume:
        return RunFolder(path, resumed=True)
    if used:
        moved = _free_name(path)
        with RunFolder(path):  # refuses while another process works in it
            os.replace(path, moved)
        return RunFolder(_made(path), moved_aside=moved, made=True)
    existed = path.is_dir()
    return RunFolder(_made(path), made=not existed)


def _made(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(path, f"cannot be made ({error.strerror})", "Choose another --output") from None
    if not os.access(path, os.W_OK):
        raise _refused(path, "cannot be written to", "Choose another --output")
    return path


def _free_name(path: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    candidates = (
        path.with_name(f"{path.name}.old-{stamp}{suffix}") for suffix in ("", *(f"-{number}" for number in range(2, 1000)))
    )
    return next(candidate for candidate in candidates if not candidate.exists())


def _refused(path: Path, message: str, hint: str) -> RunFolderError:
    return RunFolderError(Problem(message=message, place=str(path), hint=hint))


def _lock(path: Path) -> int | None:
    """Holds the folder for this process. Raises RunFolderError if another process holds it."""
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise _refused(path, "another process is working on this run", "Wait for it to end, or stop it") from None
    return descriptor


@contextmanager
def unchanging(path: Path) -> Iterator[None]:
    """Keeps ftkit from working on a run while it is read, without writing to it. Raises RunFolderError if a process works on it."""
    if sys.platform == "win32" or not (path / ".lock").is_file():
        yield
        return
    import fcntl

    with (path / ".lock").open("rb") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            raise _refused(path, "another process is working on this run", "Wait for it to end, or stop it") from None
        yield


def run_around(adapter: Path) -> Path | None:
    """The run that an adapter was exported into."""
    run = adapter.absolute().parent.parent
    return run if adapter.absolute().parent.name == "export" and (run / PLAN).is_file() and (run / RESULTS).is_file() else None


def recorded_base(run: Path) -> dict[str, str]:
    """sha256 of each file of a run's base model."""
    with readable(run / LOCK):
        return dict(read_json(run / LOCK)["model_files"])


class MetricsLog:
    """metrics.jsonl: one line a step or evaluation. Holds nothing that depends on the clock, so that a resumed run's file equals
    that of an uninterrupted one. writes: False in processes that leave the file to the main one."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self._path = path
        self._stream = path.open("ab", buffering=0) if writes else None

    def append(self, kind: str, values: dict[str, Any]) -> None:
        """Adds one line in one write."""
        if self._stream is not None:
            self._stream.write((json_text({"type": kind, **values}) + "\n").encode())

    def position(self) -> int:
        """Bytes written so far, made durable; 0 where nothing is written."""
        if self._stream is None:
            return 0
        os.fsync(self._stream.fileno())
        return self._path.stat().st_size

    def rewind(self, position: int) -> None:
        """Drops what was written after `position`. Raises RunFolderError if less than that is there."""
        if self._stream is None:
            return
        if self._path.stat().st_size < position:
            hint = "Restore it from a copy, or start anew with --overwrite"
            raise _refused(self._path, "is shorter than when the checkpoint was written", hint)
        self._stream.truncate(position)

    def close(self) -> None:
        """Closes the file."""
        if self._stream is not None:
            self._stream.close()


def read_run(path: Path) -> Path:
    """The path of a run folder that is there. Raises RunFolderError with the nearest names if it is not one."""
    if (path / PLAN).is_file():
        return path
    if path.is_dir():
        raise _refused(path, "is not a run folder (it has no plan.yaml)", "Give the folder that `ftkit train` printed")
    near = sorted(str(plan.parent) for plan in path.parent.glob(f"*/{PLAN}")) if path.parent.is_dir() else []
    raise _refused(path, "there is no such folder", f"Runs here: {', '.join(near[:8])}" if near else "Train one with `ftkit train`")


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turns what goes wrong while reading a file of a run into a RunFolderError that names the file."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not what ftkit wrote: {type(error).__name__}"
        raise _refused(
            file, f"cannot be read ({reason})", "Restore the file from a copy, or train again with --overwrite"
        ) from error


def read_learned(folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """task.json of a run: the `state` and the `calibration` of its task. Raises RunFolderError if it is not what the run wrote.

    results: results.json of the run, which knows the digest.
    """
    path = folder / TASK
    with readable(path):
        if results.get(TASK_DIGEST, (found := sha256_of(path))) != found:
            hint = "Restore the file from a copy, or train again with --overwrite"
            raise _refused(path, f"is not what the run wrote: its sha256 is {found}, {RESULTS} says {results[TASK_DIGEST]}", hint)
        return dict(read_json(path))


def finished_results(folder: Path) -> dict[str, Any]:
    """results.json of a run. Raises RunFolderError if the run has no weights to go on with."""
    with readable(folder / RESULTS):
        results = dict(read_json(folder / RESULTS)) if (folder / RESULTS).exists() else {"status": "unknown"}
        status = results["status"]
    if not isinstance(results.get("weights"), str):
        message = f"the run is not finished (status: {status})"
        raise RunFolderError(Problem(message=message, place=str(folder), hint="Continue it with `ftkit train ... --resume`"))
    if not WEIGHTS.fullmatch(results["weights"]):
        message = f"`weights` is {results['weights']!r}, expected a checkpoint of the run (checkpoints/best-00000080)"
        raise _refused(folder / RESULTS, message, "Restore the file from a copy, or train again with --overwrite")
    with readable(folder / RESULTS):
        _refuse_other_types(results)
    return results


def _refuse_other_types(results: Mapping[str, Any]) -> None:
    """Raises TypeError for an entry that those who read it could not go into."""
    splits = results.get("splits", {})
    mappings = [splits, *(results.get(key, {}) for key in ("parameters", "seconds", "exports"))]
    mappings += [part for split in dict(splits).values() for part in (split, split.get("metrics", {}))]
    lists = [results.get(key, []) for key in ("notes", "gates", "artifacts", "phases")]
    if not all(isinstance(value, dict) for value in mappings) or not all(isinstance(value, list) for value in lists):
        raise TypeError
