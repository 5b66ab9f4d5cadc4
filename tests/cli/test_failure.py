from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ftkit import api
from ftkit.cli.failure import print_problems
from ftkit.errors import (
    DataError,
    DivergedError,
    EndedElsewhereError,
    ExportError,
    FtkitError,
    GateError,
    InterruptedRunError,
    MemoryExhaustedError,
    ModelError,
    Problem,
    RecipeError,
    RunFolderError,
)
from tests.cli.conftest import Run, Terminal

PROBLEMS = [
    Problem(message="is wrong", place="recipe.yaml:3:5", key="train.epochs", hint="Make it right"),
    Problem(message="is missing"),
]
ERRORS = [
    (RecipeError(PROBLEMS), 2),
    (DataError(PROBLEMS), 2),
    (ModelError(PROBLEMS), 2),
    (RunFolderError(PROBLEMS), 2),
    (DivergedError(PROBLEMS), 3),
    (GateError(PROBLEMS), 4),
    (MemoryExhaustedError(PROBLEMS), 5),
    (InterruptedRunError(PROBLEMS, exit_code=130), 130),
    (InterruptedRunError(PROBLEMS, exit_code=143), 143),
    (ExportError(PROBLEMS), 1),
]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(api, "validate", fail)


def test_every_kind_of_error_is_tried() -> None:
    # The one that is never told, since another process tells it.
    assert {type(error) for error, _ in ERRORS} == set(FtkitError.__subclasses__()) - {EndedElsewhereError}


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda item: type(item).__name__ if isinstance(item, Exception) else None)
def test_an_error_is_printed_and_gives_its_exit_code(
    error: FtkitError, code: int, ftkit: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, error)
    ended = ftkit("validate", recipe)
    assert (ended.code, ended.out) == (code, "")
    assert ended.err == "error: recipe.yaml:3:5: train.epochs: is wrong\n  Make it right\nerror: is missing\n"


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda item: type(item).__name__ if isinstance(item, Exception) else None)
def test_an_error_is_a_json_document(
    error: FtkitError, code: int, ftkit: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, error)
    ended = ftkit("validate", recipe, "--json")
    assert (ended.code, ended.err) == (code, "")
    assert ended.document() == {
        "error": {"kind": type(error).__name__, "exit_code": code, "problems": [problem.to_json() for problem in PROBLEMS]}
    }


def test_an_interrupt_gives_130(ftkit: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    ended = ftkit("validate", recipe)
    assert (ended.code, ended.err) == (130, "error: interrupted\n")


def test_a_termination_gives_143(ftkit: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminate(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(api, "validate", terminate)
    ended = ftkit("validate", recipe)
    assert (ended.code, ended.err) == (143, "error: terminated\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_internal_error_is_one_line_and_a_kept_traceback(ftkit: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("by nothing"))
    ended = ftkit("validate", recipe)
    assert ended.code == 1
    assert ended.err.startswith("error: internal error: ZeroDivisionError: by nothing\n")
    assert "ftkit env" in ended.err
    assert "Traceback" not in ended.err
    kept = Path(re.search(r"The traceback is in (\S+)", ended.err)[1])  # type: ignore[index]
    assert "ZeroDivisionError: by nothing" in kept.read_text(encoding="utf-8")
    kept.unlink()


def test_debugging_shows_the_traceback(ftkit: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTKIT_DEBUG", "1")
    failing(monkeypatch, EOFError("early"))
    ended = ftkit("validate", recipe, "--json")
    assert "Traceback (most recent call last)" in ended.err
    assert ended.document()["error"]["kind"] == "InternalError"


def test_control_characters_in_messages_do_not_reach_the_terminal(
    ftkit: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, DataError(Problem(message="the label '\x1b[2J\x9b31m\u202e' is new", place="\x1b]0;x\x07")))
    for arguments in ((), ("--json",)):
        ended = ftkit("validate", recipe, *arguments)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", ended.err + ended.out)
    assert ended.document()["error"]["problems"][0]["place"] == "\x1b]0;x\x07"


def test_in_a_terminal_the_place_is_bold_and_the_hint_dimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    print_problems([Problem(message="has [bold]brackets[/]", place="a.yaml:1:2", hint="Do :smile: so")])
    shown = terminal.getvalue()
    assert re.search(r"\x1b\[1(;39)?ma\.yaml:1:2", shown)
    assert re.search(r"\x1b\[2(;39)?m\s*Do :smile: so", shown)
    assert "has [bold]brackets[/]" in re.sub(r"\x1b\[[0-9;]*m", "", shown)


@pytest.mark.parametrize(
    "arguments", [["methods"], ["methods", "--json"], ["predict", "--help"], ["tasks", "nothing", "--json"], ["--version"]]
)
def test_a_full_device_on_standard_output_is_named_once(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ftkit", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: standard output: cannot be written to (No space left on device)\n  Free space, or redirect it\n"
