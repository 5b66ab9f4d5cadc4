"""How a run ends is written down, however it ends: log.txt, and the status in results.json."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from ftkit.errors import DivergedError, EndedElsewhereError, FtkitError, InterruptedRunError, MemoryExhaustedError
from ftkit.run.compiling import compile_failure
from ftkit.run.joining import is_loss_of_another
from ftkit.run.signals import raising_signals
from ftkit.run.world import ANOTHER_HAS_ENDED, World
from ftkit.secrets import redacted
from ftkit.training.memory import lacks_memory

STATUS_OF_EXIT = {2: "refused", 3: "diverged", 4: "gate_not_met", 5: "out_of_memory", 130: "interrupted", 143: "interrupted"}

Record = Callable[[str, int, str], None]
"""Writes down that a run ended with this status, exit code and text."""


@contextmanager
def recorded(log: Path | None, record: Record, world: World) -> Iterator[None]:
    """Keeps a log, and records how what happens inside ends if it does not end well.

    log: None in processes that write nothing. Raises what is raised inside, as an FtkitError where a user can be told.
    """
    with nullcontext() if log is None else _logging_to(log):
        try:
            with raising_signals():
                yield
        except FtkitError as error:
            record(STATUS_OF_EXIT.get(error.exit_code, "failed"), error.exit_code, str(error) or "another process ended the run")
            raise _for_this_process(error, world) from error
        except Exception as error:
            if (explained := _explained(error, world)) is not None:
                record(STATUS_OF_EXIT.get(explained.exit_code, "failed"), explained.exit_code, str(explained))
                raise _for_this_process(explained, world) from error
            logging.getLogger("ftkit").error("internal error\n%s", traceback.format_exc())
            record("failed", 2 if isinstance(error, OSError) else 1, f"{type(error).__name__}: {error}")
            raise


def _explained(error: Exception, world: World) -> FtkitError | None:
    if world.several and is_loss_of_another(error):
        return FtkitError(ANOTHER_HAS_ENDED, hint="Its own message says why. What is saved is kept: continue with --resume")
    return _as_memory_error(error) or compile_failure(error)


def _for_this_process(error: FtkitError, world: World) -> FtkitError:
    """The error as this process tells it: what all processes find out together, the main one alone tells."""
    if world.is_main:
        return error
    if isinstance(error, DivergedError | InterruptedRunError | EndedElsewhereError):
        return EndedElsewhereError(error.exit_code)
    error.problems = [
        replace(problem, message=f"process {world.rank} of 0 to {world.size - 1}: {problem.message}") for problem in error.problems
    ]
    return error


def _as_memory_error(error: Exception) -> MemoryExhaustedError | None:
    if not lacks_memory(error):
        return None
    text = str(error)
    hint = "Halve train.batch_size and double train.gradient_accumulation_steps, or set train.gradient_checkpointing"
    return MemoryExhaustedError(f"out of memory: {text.splitlines()[0] if text else 'no details'}", hint=hint)


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("ftkit")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        handler.close()
