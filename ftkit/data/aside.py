"""Places for files that are being written: no reader takes them for whole, and what a killed process left there is removed."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ftkit.errors import Problem, RunFolderError
from ftkit.files import refuse_filled, sync

PREFIX = ".writing-"
LOCK = ".lock"
ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which a folder without a lock is taken for left over."""
SECONDS_BETWEEN_LOOKS = 0.05


class Aside:
    """A new folder inside `parent`, held by this process until `remove` or `release`. Raises OSError.

    Folders of the same kind that nobody holds any more are removed on the way.
    """

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        # Under a name that is not swept until the lock is held.
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        self._guard = _lock(made / LOCK, create=True)
        self.path = made.rename(parent / made.name.replace(".new-", PREFIX, 1))

    def release(self) -> Path:
        """Lets go of the folder, which is then only a folder, and returns it."""
        (self.path / LOCK).unlink(missing_ok=True)
        self._let_go()
        return self.path

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._let_go()

    def _let_go(self) -> None:
        if self._guard is not None:
            os.close(self._guard)
            self._guard = None


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """One process at a time: whoever comes second finds what the first has made. Where there are no such locks, nobody waits."""
    guard = None
    try:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            guard = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            while _is_held_elsewhere(guard):
                time.sleep(SECONDS_BETWEEN_LOOKS)
        yield
    finally:
        if guard is not None:
            # Two that race for the name do the same work twice, which harms nothing.
            with suppress(OSError):
                path.unlink()
            os.close(guard)


def _is_held_elsewhere(descriptor: int) -> bool:
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


@contextmanager
def written_whole(target: Path, option: str = "--to") -> Iterator[Path]:
    """A new folder to fill, which becomes `target` when the block ends: there is a whole one or none.

    It lies in `.tmp-NAME` beside the target, where what a killed process left is removed. option: with which the user named the target.
    Raises RunFolderError if the target holds files, or another process is writing it.
    """
    refuse_filled(target, option)
    around = target.with_name(f".tmp-{target.name}")
    around.mkdir(parents=True, exist_ok=True)
    with _held(around, target, option):
        refuse_filled(target, option)
        inner = around / target.name
        shutil.rmtree(inner, ignore_errors=True)
        try:
            inner.mkdir()
            yield inner
            for path in inner.rglob("*"):
                sync(path)
            refuse_filled(target, option)
            if target.exists():
                target.rmdir()
            os.replace(inner, target)
            sync(target.parent)
        finally:
            shutil.rmtree(around, ignore_errors=True)


@contextmanager
def _held(around: Path, target: Path, option: str) -> Iterator[None]:
    guard = os.open(around / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                hint = f"Wait for it, or choose another folder with {option}"
                raise RunFolderError(
                    Problem(message="is being written by another process", place=str(target), hint=hint)
                ) from error
            except OSError:
                # A file system without locks.
                pass
        yield
    finally:
        os.close(guard)


def _sweep(parent: Path) -> None:
    """Removes folders whose process has ended, and what it waited its turn by."""
    for turn in parent.glob(".turn-*"):
        with suppress(OSError):
            if (held := _lock(turn)) is not None:
                turn.unlink()
                os.close(held)
    for folder in [*parent.glob(f"{PREFIX}*"), *parent.glob(".new-*")]:
        with suppress(OSError):
            guard = _lock(folder / LOCK) if folder.name.startswith(PREFIX) and (folder / LOCK).exists() else None
            if guard is not None or time.time() - folder.stat().st_mtime > ABANDONED_AFTER:
                shutil.rmtree(folder, ignore_errors=True)
            if guard is not None:
                os.close(guard)


def _lock(path: Path, *, create: bool = False) -> int | None:
    """Holds a lock file; None where it is held by another process, or where there are no such locks."""
    descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0) | getattr(os, "O_CLOEXEC", 0), 0o644)
    if sys.platform != "win32":
        import fcntl

        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    os.close(descriptor)
    return None
