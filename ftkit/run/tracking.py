"""Experiment trackers: programs and servers of others, which may fail at any time and must not end a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator

from ftkit.errors import Problem, RecipeError
from ftkit.run.observer import Observer
from ftkit.secrets import redacted

PROJECT = "ftkit"


class Tracking:
    """Sends numbers to the trackers that a recipe names; none for none. They get the names of recipe and method, losses and metrics.

    A tracker that cannot be started ends the run before it trains; one that fails later is left out from then on, with a note.
    """

    def __init__(self, accelerator: Accelerator, names: Sequence[str], observer: Observer) -> None:
        self._accelerator, self._names, self._observer = accelerator, list(names), observer
        self._running = False

    @contextmanager
    def running(self, facts: Mapping[str, str]) -> Iterator[None]:
        """From their start to their end. Raises RecipeError if they cannot be started."""
        if not self._names:
            yield
            return
        try:
            self._accelerator.init_trackers(PROJECT, config=dict(facts))
        except Exception as error:  # each has errors of its own
            message = f"the trackers cannot be started: {_reason(error)}"
            hint = f"Log in to them, or leave them out: trackers=[] (they are {', '.join(self._names)})"
            raise RecipeError(Problem(message=message, key="trackers", hint=hint)) from error
        self._running = True
        try:
            yield
        finally:
            self._attempt(self._finish)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Sends the numbers of a step."""
        if self._running:
            self._attempt(lambda: self._accelerator.log(dict(values), step=step))

    def _finish(self) -> None:
        # Accelerate's `end_training` also ends the process group, which is still needed.
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def _attempt(self, call: Any) -> None:
        try:
            call()
        except Exception as error:
            if self._running:
                self._running = False
                self._observer.note(f"the trackers ({', '.join(self._names)}) failed and get nothing from now on: {_reason(error)}")


def _reason(error: Exception) -> str:
    text = redacted(str(error).strip()).splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else 'no details'}"
