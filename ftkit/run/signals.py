"""SIGINT and SIGTERM ask a run to stop at its next safe place; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ftkit.errors import InterruptedRunError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_BETWEEN_LOOKS = 1.0
LAUNCHER = "FTKIT_LAUNCHER"
"""The environment variable in which a process finds the number of the launcher that started it."""


class SignalGuard:
    """While active, remembers the first signal in `received` instead of dying of it. Does nothing outside the main thread."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalGuard:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)


@contextmanager
def raising_signals(remark: str = "nothing is lost. Continue with --resume") -> Iterator[None]:
    """While it lasts, SIGINT and SIGTERM end what runs with an InterruptedRunError: where nothing is half done, as in loading and
    exporting, there is nothing to wait for. Does nothing outside the main thread. remark: what to say of the state of things."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    raised: list[InterruptedRunError] = []

    def end(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        raised.append(InterruptedRunError(f"{name} received; {remark}", exit_code=128 + number))
        raise raised[0]

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    except Exception as error:
        # Some libraries (torch's compiler) make an error of their own of whatever ends them.
        if raised and error is not raised[0]:
            raise raised[0] from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_launcher() -> None:
    """From now on, if the launcher that started this process ends before it, this process is asked to stop, and the run with it."""
    launcher = os.environ.get(LAUNCHER, "")
    if launcher and launcher == str(os.getppid()):
        threading.Thread(target=_stop_when_alone, args=(int(launcher),), name="launcher-watch", daemon=True).start()


def _stop_when_alone(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
