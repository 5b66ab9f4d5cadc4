"""Everything a user can be told went wrong, in one tree.

    FtkitError                exit code
    ├── RecipeError           2   the recipe, or a command line override of it
    ├── DataError             2   a data file or a row of it
    ├── ModelError            2   a model folder, an adapter, or a method that does not fit the model
    ├── RunFolderError        2   a run folder that exists, is busy, or is not one
    ├── DivergedError         3   the loss or a gradient stopped being a finite number
    ├── GateError             4   a value that `expect:` names missed its bound
    ├── MemoryExhaustedError  5   the device ran out of memory
    ├── InterruptedRunError   130 (SIGINT) or 143 (SIGTERM), after a checkpoint
    ├── EndedElsewhereError   *   another process of the run ended it, and tells why
    └── ExportError           1   an export that does not compute what the run computed

The command line catches only `FtkitError`; anything else is an internal error and exits with 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from ftkit.secrets import redacted

EXIT_CODES = {
    0: "done",
    1: "internal error, or an export that failed its check",
    2: "the recipe, the data, the model or the run folder is not usable as given",
    3: "training diverged (a loss or gradient that is not a finite number)",
    4: "a gate of `expect:` was not met, or a rerun or a replay came out otherwise",
    5: "out of memory",
    130: "interrupted (SIGINT); training that had begun wrote a checkpoint",
    143: "terminated (SIGTERM); training that had begun wrote a checkpoint",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    message: what is wrong, with the offending value and what was expected.
    place: `file:line:column`, `file, row 17` or `command line`; empty where there is none.
    key: the dotted recipe key or the data column; empty where there is none.
    hint: one way out.
    Secrets (see `ftkit.secrets`) are left out of all of them: problems are printed, logged and kept in reports.
    """

    message: str
    place: str = ""
    key: str = ""
    hint: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, redacted(str(getattr(self, field.name))))

    def __str__(self) -> str:
        parts = [part for part in (self.place, self.key, self.message) if part]
        text = ": ".join(parts)
        return f"{text}. {self.hint}" if self.hint else text

    def to_json(self) -> dict[str, str]:
        """The parts by name."""
        return asdict(self)


class FtkitError(Exception):
    """Base of all errors that ftkit explains to its user.

    Takes one or several problems (a plain string is a problem without a place).
    """

    exit_code = 1

    def __init__(self, problems: str | Problem | Sequence[Problem], *, hint: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem(message=problems, hint=hint)
        if isinstance(problems, Problem):
            problems = [problems]
        self.problems: list[Problem] = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RecipeError(FtkitError):
    """The recipe is not valid."""

    exit_code = 2


class DataError(FtkitError):
    """A data source cannot be read, or a row does not fit the task."""

    exit_code = 2


class ModelError(FtkitError):
    """A model or adapter cannot be loaded, or does not fit the method."""

    exit_code = 2


class RunFolderError(FtkitError):
    """The run folder cannot be used as asked."""

    exit_code = 2


class DivergedError(FtkitError):
    """The loss or a gradient is not a finite number."""

    exit_code = 3


class GateError(FtkitError):
    """A value named under `expect:` missed its bound."""

    exit_code = 4


class MemoryExhaustedError(FtkitError):
    """The device ran out of memory."""

    exit_code = 5


class InterruptedRunError(FtkitError):
    """A signal ended the run after a checkpoint was written."""

    def __init__(self, problems: str | Problem | Sequence[Problem], *, exit_code: int) -> None:
        super().__init__(problems)
        self.exit_code = exit_code


class EndedElsewhereError(FtkitError):
    """Another process of this run ended it and says why; this one ends with the same exit code and nothing to add."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(())
        self.exit_code = exit_code


class ExportError(FtkitError):
    """An exported model does not compute what the run computed."""
