"""How a command ends: problems on standard error (or as a JSON document), and the exit code."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import typer

from ftkit.cli.output import STANDARD_OUTPUT, clean, console, emit, is_terminal, say, standard_output_for_documents
from ftkit.errors import FtkitError, Problem
from ftkit.files import json_text
from ftkit.secrets import redacted

USAGE_ERROR = 2
BROKEN_PIPE = 141
"""What a shell reports for a program that ends by SIGPIPE."""

# Typer brings its own copy of Click since 0.2x and used the real one before; this finds the class in either.
_UsageError: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing else answers it."""

    def __str__(self) -> str:
        return "terminated"


@contextmanager
def raising_termination() -> Iterator[None]:
    """While it lasts, SIGTERM raises Terminated, as SIGINT raises KeyboardInterrupt, unless this process was told to ignore it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def guarded(command: Callable[[], int], *, as_json: bool) -> int:
    """The exit code of `command`, every failure reported."""
    try:
        with raising_termination():
            return command()
    except typer.Exit as ending:
        return ending.exit_code
    except FtkitError as error:
        return _report(type(error).__name__, error.problems, error.exit_code, as_json)
    except _UsageError as error:
        return _report("UsageError", [_usage_problem(error)], USAGE_ERROR, as_json)
    except Terminated:
        return _report("Terminated", [Problem(message="terminated")], 143, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _report("Interrupted", [Problem(message="interrupted")], 130, as_json)
    except BrokenPipeError:
        abandon_standard_output()
        return BROKEN_PIPE
    except UnicodeEncodeError as error:
        text = error.object[max(0, error.start - 20) : error.end + 20]
        problem = Problem(message=f"{text!r} holds what is no character", hint="Use names and texts that are valid UTF-8")
        return _report("UsageError", [problem], USAGE_ERROR, as_json)
    except OSError as error:
        return _report("FileSystemError", [_file_system_problem(error)], USAGE_ERROR, as_json)
    except Exception as error:
        return _report("InternalError", [_internal_problem(error)], 1, as_json)


def abandon_standard_output() -> None:
    """Sends what is still to be written to standard output nowhere, after its reader has gone."""
    if sys.stdout is sys.stderr:
        # Only documents go to standard output at the moment, and nothing of them is left.
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):
        return
    finally:
        os.close(nowhere)


def print_problems(problems: Sequence[Problem], *, kind: str = "error") -> None:
    """Each problem on standard error: the place in bold and the hint dimmed in a terminal. GitHub Actions gets annotations, too."""
    from ftkit.cli.github import annotate

    draw = is_terminal(sys.stderr)
    annotate(problems, kind)
    for problem in problems:
        if draw:
            _draw(problem, kind)
        else:
            say(": ".join(part for part in (kind, problem.place, problem.key, problem.message) if part), to=sys.stderr)
            if problem.hint:
                say(f"  {problem.hint}", to=sys.stderr)


def _draw(problem: Problem, kind: str) -> None:
    from rich.text import Text

    line = Text(f"{kind}: ", style="bold red")
    for part, style in ((problem.place, "bold"), (problem.key, "cyan")):
        if part:
            line.append(f"{clean(part)}: ", style=f"not bold default {style}" if style != "bold" else "bold default")
    line.append(clean(problem.message), style="not bold default")
    if problem.hint:
        line.append(f"\n  {clean(problem.hint)}", style="not bold dim default")
    console(sys.stderr).print(line, soft_wrap=True)


def _tell_launcher(problems: Sequence[Problem]) -> None:
    """Leaves what this process says where torch's launchers look for it: those of other machines tell it, too."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or not problems:
        return
    text = "\n".join(str(problem) for problem in problems)
    with suppress(OSError):
        Path(file).write_text(json_text({"message": text, "timestamp": int(time.time())}), encoding="utf-8")


def _report(kind: str, problems: Sequence[Problem], exit_code: int, as_json: bool) -> int:
    _tell_launcher(problems)
    if not as_json or any(problem.place == STANDARD_OUTPUT for problem in problems):
        print_problems(problems)
        return exit_code
    from ftkit.cli.github import annotate

    annotate(problems)
    document = {"kind": kind, "exit_code": exit_code, "problems": [problem.to_json() for problem in problems]}
    with standard_output_for_documents():
        emit({"error": document})
    return exit_code


def _usage_problem(error: Exception) -> Problem:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "ftkit"
    message: str = error.format_message()  # type: ignore[attr-defined]
    return Problem(message=message.rstrip(".").removeprefix("Invalid value: "), place="command line", hint=f"See `{path} --help`")


def _file_system_problem(error: OSError) -> Problem:
    """What the file system refused: a full disk, a folder where a file should be, a missing permission."""
    place = str(error.filename2 or error.filename or "")
    if place == STANDARD_OUTPUT:
        return unwritable_output(error)
    hint = "Check the path, its permissions and the free space"
    return Problem(message=f"the file system refused: {error.strerror or error}", place=place, hint=hint)


def unwritable_output(error: OSError) -> Problem:
    """What keeps standard output from being written to. What is still to be written there goes nowhere from now on."""
    abandon_standard_output()
    message = f"cannot be written to ({error.strerror or error})"
    return Problem(message=message, place=STANDARD_OUTPUT, hint="Free space, or redirect it")


def _internal_problem(error: Exception) -> Problem:
    text = redacted(traceback.format_exc())
    if os.environ.get("FTKIT_DEBUG") == "1":
        say(text, to=sys.stderr)
        where = "The traceback is above"
    else:
        where = f"The traceback is in {_kept(text)}"
    from ftkit.run.tested_versions import untested

    message = f"internal error: {type(error).__name__}: {error}"
    advice = next((f"{line[:1].upper()}{line[1:]}. " for line in untested()), "")
    return Problem(message=message, hint=f"{advice}Please report this with the output of `ftkit env`. {where}")


def _kept(text: str) -> str:
    with tempfile.NamedTemporaryFile(
        "w", prefix="ftkit-traceback-", suffix=".txt", encoding="utf-8", errors="replace", delete=False
    ) as stream:
        stream.write(text)
    return stream.name
