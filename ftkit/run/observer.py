"""What a run tells whoever watches it. The base class watches in silence; the command line has one that draws."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ftkit.secrets import redacted

if TYPE_CHECKING:
    from ftkit.training.events import EvaluationEvent, StepEvent


class Observer:
    """Methods are called in the main process only, in the order in which things happen."""

    def stage(self, name: str) -> None:
        """A part of the run begins: `reading data`, `encoding train`, `loading the model`, `training`, `exporting merged` ..."""

    def part(self, name: str) -> None:
        """A part of the current stage begins, where it has some: `reading train`, `checking train`, `dividing rows` ..."""

    def progress(self, done: int, total: int | None, share: float | None = None) -> None:
        """Rows done of the current stage or part, of `total`. total: None while a file is read, whose rows nobody has counted; then
        `share` is the share of its bytes that is read (0 to 1), if that is known. Called often."""

    def note(self, text: str) -> None:
        """Something the user should know; also written to log.txt."""

    def training_starts(self, *, total_steps: int, first_step: int, metrics: list[str], best_metric: str, unit: str) -> None:
        """Training begins after `first_step` finished steps; `metrics` are those that evaluations will report,
        `unit` what the speed of a step is counted in."""

    def step(self, event: StepEvent, *, tokens_per_second: float, seconds_left: float) -> None:
        """An optimizer step is done."""

    def evaluation(self, event: EvaluationEvent) -> None:
        """The validation split was evaluated."""

    def finished(self, results: dict[str, Any]) -> None:
        """The run is over; `results` is the content of results.json."""


class RecordingObserver(Observer):
    """Passes everything on to another observer, and writes stages, notes and evaluations to the `ftkit` log."""

    def __init__(self, inner: Observer, notes: list[str]) -> None:
        self._inner, self._notes = inner, notes
        self._log = logging.getLogger("ftkit")

    def stage(self, name: str) -> None:
        """See Observer."""
        self._log.info(name)
        self._inner.stage(name)

    def part(self, name: str) -> None:
        """See Observer."""
        self._inner.part(name)

    def progress(self, done: int, total: int | None, share: float | None = None) -> None:
        """See Observer."""
        self._inner.progress(done, total, share)

    def note(self, text: str) -> None:
        """See Observer; also kept for the results."""
        text = redacted(text)
        self._log.info(text)
        self._notes.append(text)
        self._inner.note(text)

    def training_starts(self, *, total_steps: int, first_step: int, metrics: list[str], best_metric: str, unit: str) -> None:
        """See Observer."""
        self._log.info("%d steps, beginning after step %d; best by %s", total_steps, first_step, best_metric)
        self._inner.training_starts(
            total_steps=total_steps, first_step=first_step, metrics=metrics, best_metric=best_metric, unit=unit
        )

    def step(self, event: StepEvent, *, tokens_per_second: float, seconds_left: float) -> None:
        """See Observer."""
        self._inner.step(event, tokens_per_second=tokens_per_second, seconds_left=seconds_left)

    def evaluation(self, event: EvaluationEvent) -> None:
        """See Observer."""
        self._log.info("step %d: %s%s", event.step, event.metrics, " (best)" if event.is_best else "")
        self._inner.evaluation(event)

    def finished(self, results: dict[str, Any]) -> None:
        """See Observer."""
        self._inner.finished(results)
