"""Watches a run: drawn in a terminal, plain lines elsewhere, or nothing but the folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from ftkit.cli.failure import abandon_standard_output
from ftkit.cli.output import clean, console, drawn_table, is_terminal, one_line, say, shown_number, shown_seconds
from ftkit.cli.pace import Pace
from ftkit.cli.summary import WARNING, metric_table, next_commands, run_facts
from ftkit.run.observer import Observer

if TYPE_CHECKING:
    from ftkit.training.events import EvaluationEvent, StepEvent

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_FAR_LINES = 60.0
SHARE_BETWEEN_LINES = 0.1
METRICS_SHOWN = 5
"""Metrics in a row of the table of evaluations; the summary has all."""
WIDE = 110
"""Columns of a terminal that has room for a long bar."""


class Display(Observer):
    """Watches in silence. A context manager: leaving it ends whatever is drawn.

    closed_with_results: whether `finished` was called.
    """

    closed_with_results = False

    def finished(self, results: dict[str, Any]) -> None:
        """The run is over."""
        self.closed_with_results = True

    def close(self) -> None:
        """Ends what is being drawn."""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class QuietDisplay(Display):
    """Prints the folder of the finished run, nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def finished(self, results: dict[str, Any]) -> None:
        """Prints the folder."""
        super().finished(results)
        say(results["folder"], to=self._stream)


class PlainDisplay(Display):
    """A line for each stage and evaluation, one for a step every 10 seconds or 10 % of the steps, and some for rows that take long.

    A reader that goes away (`ftkit train ... | head`) does not end the run.
    """

    def __init__(self) -> None:
        self._rows = _RowLines("")
        self._total = self._step_of_last_line = 0
        self._time_of_last_line = 0.0
        self._best_metric, self._unit = "", "tokens"

    def stage(self, name: str) -> None:
        """Prints the stage."""
        self._rows = _RowLines(name)
        self._say(name)

    def part(self, name: str) -> None:
        """Counts anew."""
        self._rows = _RowLines(name)

    def progress(self, done: int, total: int | None, share: float | None = None) -> None:
        """Prints a line if one is due."""
        if line := self._rows.line(done, total, share):
            self._say(line)

    def note(self, text: str) -> None:
        """Prints the note."""
        self._say(f"note: {one_line(text)}")

    def training_starts(self, *, total_steps: int, first_step: int, metrics: list[str], best_metric: str, unit: str) -> None:
        """Prints how far it is."""
        self._total, self._step_of_last_line, self._best_metric, self._unit = total_steps, first_step, best_metric, unit
        self._time_of_last_line = time.monotonic()
        start = f" from step {first_step:,}" if first_step else ""
        self._say(f"{total_steps:,} steps{start}; the best weights are those with the best {best_metric}")

    def step(self, event: StepEvent, *, tokens_per_second: float, seconds_left: float) -> None:
        """Prints the step if a line is due."""
        now = time.monotonic()
        far = event.step - self._step_of_last_line >= SHARE_BETWEEN_LINES * self._total
        if not far and now - self._time_of_last_line < SECONDS_BETWEEN_LINES:
            return
        self._step_of_last_line, self._time_of_last_line = event.step, now
        self._say(f"step {event.step:,}/{self._total:,}  {step_figures(event, tokens_per_second, seconds_left, self._unit)}")

    def evaluation(self, event: EvaluationEvent) -> None:
        """Prints the metrics."""
        shown = chosen_metrics(list(event.metrics), self._best_metric)
        figures = "  ".join(f"{name} {shown_number(event.metrics[name])}" for name in shown)
        marks = f"{'  ★ best' if event.is_best else ''}{'  stopping early' if event.stop else ''}"
        self._say(f"evaluation at step {event.step:,} (epoch {event.epoch:.2f})  {figures}{marks}")

    def finished(self, results: dict[str, Any]) -> None:
        """Prints the summary."""
        super().finished(results)
        columns, rows = metric_table(results.get("splits") or {})
        for number, split in enumerate(columns[1:], start=1):
            for row in rows:
                self._say(f"{split}  {row[0]}  {row[number]}")
        for name, value in run_facts(results).items():
            self._say(f"{name}: {one_line(value)}")

    def _say(self, text: str) -> None:
        try:
            say(text)
            sys.stdout.flush()
        except BrokenPipeError:
            abandon_standard_output()


class _RowLines:
    """The lines about the rows of a stage or part: the first after 10 seconds, then every 10 % or minute, and one at the end."""

    def __init__(self, name: str) -> None:
        self._name, self._pace = name, Pace(time.monotonic)
        self._last, self._share, self._any = time.monotonic(), 0.0, False

    def line(self, done: int, total: int | None, share: float | None) -> str:
        """A line, '' if none is due."""
        now, known = time.monotonic(), done / total if total else share or 0.0
        figures = self._pace.figures(done, total, share)
        waited = now - self._last
        far = not self._any or known - self._share > SHARE_BETWEEN_LINES - 1e-9 or waited >= SECONDS_BETWEEN_FAR_LINES
        if not (waited >= SECONDS_BETWEEN_LINES and far) and not (self._any and done == total):
            return ""
        self._last, self._share, self._any = now, known, True
        return f"{self._name}: {figures}"


class RichDisplay(Display):
    """Spinners, a progress bar with figures, a row for each evaluation, and a closing panel."""

    def __init__(self, stream: TextIO) -> None:
        self._console = console(stream)
        self._live: Any = None
        self._task: Any = None
        self._stage = ""
        self._started = 0.0
        self._pace = Pace()
        self._total = 0
        self._best_metric = ""
        self._metrics: list[str] = []
        self._unit = "tokens"
        self._head_printed = False

    def stage(self, name: str) -> None:
        """Marks the last stage as done and spins for this one."""
        self._end_stage()
        self._stage, self._started, self._pace = one_line(name), time.monotonic(), Pace()
        self._live = _progress(self._console)
        self._task = self._live.add_task(self._stage, total=None, figures="")
        self._live.start()

    def part(self, name: str) -> None:
        """Shows the part in place of the stage, and counts anew."""
        self._pace = Pace()
        if self._live is not None:
            self._live.remove_task(self._task)
            self._task = self._live.add_task(one_line(name), total=None, figures="")

    def progress(self, done: int, total: int | None, share: float | None = None) -> None:
        """Moves the bar of the current stage or part."""
        if self._live is not None:
            completed, whole = (done, total) if total is not None or share is None else (share, 1.0)
            self._live.update(self._task, completed=completed, total=whole, figures=self._pace.figures(done, total, share))

    def note(self, text: str) -> None:
        """Prints the note above what moves."""
        self._print(f"! {one_line(text)}", "yellow")

    def training_starts(self, *, total_steps: int, first_step: int, metrics: list[str], best_metric: str, unit: str) -> None:
        """Shows how far it is."""
        self._total = total_steps
        self._best_metric, self._metrics, self._unit = best_metric, chosen_metrics(metrics, best_metric), unit
        if self._live is not None:
            self._live.update(self._task, total=total_steps, completed=first_step)

    def step(self, event: StepEvent, *, tokens_per_second: float, seconds_left: float) -> None:
        """Moves the bar."""
        if self._live is not None:
            figures = step_figures(event, tokens_per_second, seconds_left, self._unit)
            self._live.update(self._task, completed=event.step, figures=f"{event.step:,}/{self._total:,}  {figures}")

    def evaluation(self, event: EvaluationEvent) -> None:
        """Adds a row to the table, under a head if it is the first."""
        head = ["step", "epoch", *self._metrics]
        if not self._head_printed:
            self._print(_row(head), "bold")
            self._head_printed = True
        values = [shown_number(event.metrics.get(name)) for name in self._metrics]
        row = _row([f"{event.step:,}", f"{event.epoch:.2f}", *values], head)
        self._print(f"{row}{'  ★ best' if event.is_best else ''}", "bold green" if event.is_best else "")
        if event.stop:
            self._print(f"no improvement in {self._best_metric}: stopping early", "yellow")

    def finished(self, results: dict[str, Any]) -> None:
        """Draws the closing panel."""
        super().finished(results)
        self.close()
        self._console.print(summary_panel(results))
        for command in next_commands(results):
            self._console.print(f"  {command}", style="dim", soft_wrap=True)

    def close(self) -> None:
        """Stops what moves."""
        self._end_stage()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self._live is not None:
            self._live.stop()
            self._live = None
            self._print(f"✗ {self._stage}", "red")
        self.close()

    def _end_stage(self) -> None:
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        self._print(f"✓ {self._stage}  {shown_seconds(time.monotonic() - self._started)}", "dim")

    def _print(self, text: str, style: str) -> None:
        self._console.print(clean(text), style=style or None, soft_wrap=True)


def step_figures(event: StepEvent, tokens_per_second: float, seconds_left: float, unit: str) -> str:
    """`loss 0.2314  lr 5.1e-05  5,120 tokens/s  1 min 40 s left`."""
    return (
        f"loss {shown_number(event.loss)}  lr {event.learning_rate:.1e}  {tokens_per_second:,.0f} {unit}/s  "
        f"{shown_seconds(seconds_left)} left"
    )


def chosen_metrics(metrics: Sequence[str], best_metric: str) -> list[str]:
    """The few metrics that a row shows: the one that decides, the loss, then the others in their order."""
    order = [best_metric, "loss", *metrics]
    return [name for name in dict.fromkeys(order) if name in metrics][:METRICS_SHOWN]


def summary_panel(results: Mapping[str, Any]) -> Any:
    """A rich panel with the metrics and facts of a finished run."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    columns, rows = metric_table(results.get("splits") or {})
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in run_facts(results).items():
        alarming = name == WARNING or "NOT MET" in value
        grid.add_row(Text(one_line(name)), Text(one_line(value), style="bold red" if alarming else ""))
    parts = [drawn_table(columns, rows, right=columns[1:]), grid] if rows else [grid]
    title = Text(one_line(f"{results.get('task', '')} · {results.get('method', '')}").strip(" ·"))
    return Panel(Group(*parts), title=title, border_style="green" if results.get("exit_code") in (0, None) else "red")


def make_display(*, quiet: bool, as_json: bool) -> Display:
    """The display of a training run: on standard output, or with `--json` on standard error."""
    if as_json:
        return QuietDisplay(sys.stderr)
    if quiet:
        return QuietDisplay(sys.stdout)
    return RichDisplay(sys.stdout) if is_terminal(sys.stdout) else PlainDisplay()


def make_progress(*, as_json: bool = False) -> Display:
    """The display of verbs whose result goes to standard output: spinners on standard error if that is a terminal, else nothing."""
    return RichDisplay(sys.stderr) if is_terminal(sys.stderr) and not as_json else Display()


def _progress(on: Any) -> Any:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30 if on.width >= WIDE else 10),
        TextColumn("{task.fields[figures]}", markup=False),
        console=on,
        transient=True,
        refresh_per_second=5,
    )


def _row(cells: Sequence[str], heads: Sequence[str] | None = None) -> str:
    """Cells aligned to the right under their heads."""
    return "  ".join(cell.rjust(max(9, len(head))) for cell, head in zip(cells, heads or cells, strict=True))
