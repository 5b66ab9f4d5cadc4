"""Processes of ftkit made by fork: they start in no time, so that hundreds of them can be ended."""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

DEFECT = 99
"""Exit code of a process that ended with anything but ftkit's own errors."""

TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.utime", "os.chmod"}


@dataclass(frozen=True)
class Ended:
    """code: the exit code; negative: the signal that killed it. said: standard output and standard error."""

    code: int
    said: str


@dataclass(frozen=True)
class Child:
    """A process under way."""

    pid: int
    said: Path

    def ended(self) -> bool:
        """Whether it has come to its end; it can still be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal; one that has ended does not mind."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Waits for its end."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Ended(code, self.said.read_text(encoding="utf-8", errors="replace"))


def start(words: Sequence[str], said: Path, *inside: AbstractContextManager[Any]) -> Child:
    """Starts `ftkit WORDS`. said: receives what it prints. inside: entered in the new process before, left after."""
    said.write_bytes(b"")
    sys.stdout.flush()
    if pid := os.fork():
        return Child(pid, said)
    code = DEFECT
    try:
        code = _run(words, said, inside)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(words: Sequence[str], said: Path, inside: Sequence[AbstractContextManager[Any]]) -> int:
    import torch

    from ftkit.cli.app import main

    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(descriptor, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # What a run draws must not hang on what its process drew before.
    torch.manual_seed(os.getpid())
    random.seed(os.getpid())
    try:
        with ExitStack() as stack:
            for manager in inside:
                stack.enter_context(manager)
            main(list(words))
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else DEFECT


class FileOperations(AbstractContextManager["FileOperations"]):
    """Hears every file that this process opens, moves or removes below a folder; ends it by SIGKILL before the operation `last`.

    counted: a file that gets their number at the end.
    """

    def __init__(self, folder: Path, *, last: int | None = None, counted: Path | None = None) -> None:
        self._folder, self._last, self._counted, self._heard = str(folder), last, counted, 0

    def __enter__(self) -> FileOperations:
        sys.addaudithook(self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None) -> None:
        heard, self._last = self._heard, None
        if self._counted:
            self._counted.write_text(str(heard), encoding="ascii")

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in TOUCHES and self._folder in os.fsdecode(arguments[0] if not isinstance(arguments[0], int) else ""):
            self._heard += 1
            if self._heard == self._last:
                os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def proving_exports_here() -> Iterator[None]:
    """Exports are proved in the process itself, where a run starts a new one, which costs seconds."""
    from ftkit.run import exporting
    from tests.matrix.cell import verify_here

    with patch.object(exporting, "verify", verify_here):
        yield
