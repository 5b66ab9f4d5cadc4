from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest

from ftkit.cli import display as displays
from ftkit.cli.display import Display, PlainDisplay, QuietDisplay, RichDisplay, make_display, make_progress, summary_panel
from ftkit.cli.output import console
from ftkit.cli.pace import Pace
from ftkit.cli.summary import metric_table, run_facts
from ftkit.registry import TASKS
from ftkit.training.events import EvaluationEvent, StepEvent
from tests.cli.conftest import Terminal

RESULTS: dict[str, Any] = {
    "folder": "/runs/one",
    "status": "gate_not_met",
    "exit_code": 4,
    "task": "text-classification",
    "method": "lora",
    "steps": 40,
    "total_steps": 60,
    "stopped_early": True,
    "best": {"step": 20, "value": 0.9},
    "parameters": {"trainable": 750, "total": 100_000},
    "seconds": {"training": 100.0, "evaluation": 5.0, "this_process": 110.0},
    "tokens_per_second": 5120.0,
    "peak_memory_mib": 853.25,
    "splits": {
        "validation": {"rows": 50, "metrics": {"accuracy": 0.9, "auroc": None}, "intervals": {}},
        "test": {"rows": 70, "metrics": {"accuracy": 0.875, "auroc": 0.5}, "intervals": {"accuracy": (0.8, 0.95)}},
        "train": {"rows": 500},
    },
    "gates": [{"metric": "accuracy", "split": "test", "expected": ">= 0.9", "value": 0.875, "passed": False}],
    "exports": {"adapter": {"path": "export/adapter", "bytes": 2**20, "max_abs_difference": 1e-7, "tolerance": 1e-4}},
}


def step(number: int) -> StepEvent:
    return StepEvent(step=number, epoch=number / 10, loss=1 / number, learning_rate=1e-4, grad_norm=1.0, tokens=100, examples=8)


def evaluation(number: int, accuracy: float | None, *, is_best: bool, stop: bool = False) -> EvaluationEvent:
    metrics = {"accuracy": accuracy, "f1": 0.5, "loss": 0.25}
    return EvaluationEvent(step=number, epoch=number / 10, metrics=metrics, is_best=is_best, stop=stop)


def watch(display: Display, steps: int = 100, unit: str = "tokens") -> None:
    """A whole run, as training tells it."""
    with display:
        display.stage("encoding train")
        display.progress(50, 100)
        display.stage("training")
        display.note("a note with \x1b[31mcolor")
        display.training_starts(
            total_steps=steps, first_step=0, metrics=["accuracy", "f1", "loss"], best_metric="accuracy", unit=unit
        )
        for number in range(1, steps + 1):
            display.step(step(number), tokens_per_second=5120.0, seconds_left=100.0)
        display.evaluation(evaluation(steps // 2, 0.875, is_best=True))
        display.evaluation(evaluation(steps, None, is_best=False, stop=True))
        display.finished(RESULTS)


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    watch(PlainDisplay())
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["encoding train", "training", "note: a note with \\x1b[31mcolor"]
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == [f"{number}/100" for number in range(10, 101, 10)]
    assert steps[0] == "step 10/100  loss 0.1000  lr 1.0e-04  5,120 tokens/s  1 min 40 s left"
    assert "evaluation at step 50 (epoch 5.00)  accuracy 0.8750  loss 0.2500  f1 0.5000  ★ best" in lines
    assert "evaluation at step 100 (epoch 10.00)  accuracy undefined  loss 0.2500  f1 0.5000  stopping early" in lines
    assert "test (70 rows)  accuracy  0.8750 [0.8000, 0.9500]" in lines
    assert "gate accuracy: 0.8750 on test, expected >= 0.9: NOT MET" in lines
    assert lines[-1] == "run folder: /runs/one"


def test_speed_is_counted_in_what_the_task_counts(capsys: pytest.CaptureFixture[str]) -> None:
    watch(PlainDisplay(), unit="images")
    assert "5,120 images/s" in capsys.readouterr().out
    assert TASKS.get("image-classification").length_unit == "images"
    assert run_facts({**RESULTS, "tokens_per_second": 7.0, "length_unit": "images"})["speed"] == "7 images/s"


def test_plain_step_lines_also_come_every_ten_seconds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(displays.time, "monotonic", lambda: next(clock))
    display = PlainDisplay()
    display.training_starts(total_steps=1000, first_step=0, metrics=["loss"], best_metric="loss", unit="tokens")
    for number in range(1, 10):
        display.step(step(number), tokens_per_second=1.0, seconds_left=1.0)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["3/1,000", "6/1,000", "9/1,000"]


def test_plain_lines_about_rows_are_few(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(displays.time, "monotonic", lambda: now)
    display = PlainDisplay()
    display.stage("encoding train")
    for second in range(1, 301):
        now = float(second)
        display.progress(second * 1000, 300_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["encoding train", "encoding train: 10,000/300,000  1,000 rows/s  4 min 50 s left"]
    # Every tenth of the rows, and the end.
    shown = [int(line.split()[2].split("/")[0].replace(",", "")) for line in lines[2:]]
    assert shown == [*range(40_000, 300_000, 30_000), 300_000]
    display.part("checking train")
    now += 5
    display.progress(5, 5)
    assert capsys.readouterr().out == ""


def test_plain_lines_about_rows_that_nobody_has_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(displays.time, "monotonic", lambda: now)
    display = PlainDisplay()
    display.stage("reading data")
    display.part("reading train")
    for second in range(1, 200):
        now = float(second)
        display.progress(second * 50, None, second / 1000)
    display.part("reading test")
    for second in range(200, 300):
        now = float(second)
        display.progress(second * 50, None)
    assert capsys.readouterr().out.splitlines() == [
        "reading data",
        "reading train: 500 rows  50 rows/s  16 min 30 s left",
        "reading train: 3,500 rows  50 rows/s  15 min 30 s left",
        "reading train: 6,500 rows  50 rows/s  14 min 30 s left",
        "reading train: 9,500 rows  50 rows/s  13 min 30 s left",
        "reading test: 10,450 rows  1,045 rows/s",
        "reading test: 13,450 rows  50 rows/s",
    ]


def test_a_reader_that_goes_away_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    watch(PlainDisplay())


def test_drawn_in_a_terminal() -> None:
    terminal = Terminal()
    display = RichDisplay(terminal)
    watch(display)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "✓ encoding train" in shown
    assert "50/100" in shown
    assert "! a note with \\x1b[31mcolor" in shown
    assert "100/100  loss 0.0100  lr 1.0e-04  5,120 tokens/s  1 min 40 s left" in shown
    rows = [line.split() for line in shown.splitlines() if re.match(r" +(step|50|100) ", line)]
    assert rows == [
        ["step", "epoch", "accuracy", "loss", "f1"],
        ["50", "5.00", "0.8750", "0.2500", "0.5000", "★", "best"],
        ["100", "10.00", "undefined", "0.2500", "0.5000"],
    ]
    assert "no improvement in accuracy: stopping early" in shown
    assert "✓ training" in shown
    assert "ftkit predict /runs/one --input FILE" in shown


def test_the_bar_of_rows_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(displays, "Pace", lambda: Pace(lambda: next(clock)))
    terminal = Terminal()
    with RichDisplay(terminal) as display:
        display.stage("reading data")
        display.part("checking train again")
        display.progress(4_000_000, 10_000_000)
        display._live.refresh()
        display.part("reading test")
        display.progress(1000, None, 0.25)
        display._live.refresh()
        display.progress(2000, None)
    shown = terminal.getvalue()
    assert "checking train again" in shown
    assert "4,000,000/10,000,000  400,000 rows/s  15.0 s left" in shown
    assert "1,000 rows  100 rows/s  30.0 s left" in shown
    assert "reading test" in shown
    assert re.search(r"2,000 rows  100 rows/s(?!  )", shown)
    assert "✓ reading data" in shown
    assert "✓ reading test" not in shown


def test_a_row_of_figures_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    display = RichDisplay(terminal)
    with display:
        display.stage("training")
        display.training_starts(total_steps=1000, first_step=0, metrics=["loss"], best_metric="loss", unit="tokens")
        display.step(step(999), tokens_per_second=5120.0, seconds_left=100.0)
    assert "999/1,000  loss 0.0010  lr 1.0e-04  5,120 tokens/s  1 min 40 s left" in terminal.getvalue()


def test_a_stage_that_fails_is_marked() -> None:
    terminal = Terminal()
    display = RichDisplay(terminal)
    display.stage("loading the model")
    display.__exit__(ValueError, ValueError("broken"), None)
    assert "✗ loading the model" in terminal.getvalue()
    assert "✓" not in terminal.getvalue()


def test_the_panel_shows_metrics_and_facts() -> None:
    screen = console(Terminal())
    screen.record = True
    screen.print(summary_panel(RESULTS))
    shown = screen.export_text()
    for text in (
        "text-classification · lora",
        "0.8750 [0.8000, 0.9500]",
        "750 of 100,000 (0.75 %) parameters",
        "training 1 min 40 s, evaluation 5.0 s",
        "853.2 MiB",
        "NOT MET",
        "/runs/one/export/adapter (1.0 MiB, logits within 1.0e-07 of the trained model)",
        "gate not met, stopped early after 40 steps",
    ):
        assert text in shown


def test_the_table_of_metrics_puts_test_first_and_leaves_train_out() -> None:
    columns, rows = metric_table(RESULTS["splits"])
    assert columns == ["metric", "test (70 rows)", "validation (50 rows)"]
    assert rows == [["accuracy", "0.8750 [0.8000, 0.9500]", "0.9000"], ["auroc", "0.5000", "undefined"]]


def test_metrics_before_training_stand_beside_those_after() -> None:
    columns, rows = metric_table({"test": {**RESULTS["splits"]["test"], "before": {"accuracy": 0.25, "auroc": None}}})
    assert columns == ["metric", "test (70 rows)", "test before training"]
    assert rows == [["accuracy", "0.8750 [0.8000, 0.9500]", "0.2500"], ["auroc", "0.5000", "undefined"]]


def test_a_warning_stands_below_the_status() -> None:
    facts = run_facts({"folder": "x", "warning": "the loss rose"})
    assert list(facts.items())[:2] == [("status", "completed"), ("warning", "the loss rose")]


def test_a_summary_of_little_is_little() -> None:
    assert run_facts({"folder": "x"}) == {"status": "completed", "run folder": "x"}


def test_quiet_prints_the_folder_only(capsys: pytest.CaptureFixture[str]) -> None:
    watch(QuietDisplay(sys.stdout))
    assert capsys.readouterr().out == "/runs/one\n"


def test_who_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(make_display(quiet=False, as_json=False)) is PlainDisplay
    assert type(make_progress()) is Display
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(make_display(quiet=False, as_json=False)) is RichDisplay
    assert type(make_progress()) is RichDisplay
    assert type(make_progress(as_json=True)) is Display
    assert type(make_display(quiet=True, as_json=False)) is QuietDisplay
    monkeypatch.setenv("CI", "true")
    assert type(make_display(quiet=False, as_json=False)) is PlainDisplay


def test_with_json_the_folder_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    watch(make_display(quiet=False, as_json=True))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "/runs/one\n")
