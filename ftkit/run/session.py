"""An interactive session with a run: one row after the other, text while it is written."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ftkit.errors import DataError, Problem, RecipeError
from ftkit.tasks.base import Features, RowError
from ftkit.training.evaluation import evaluating

if TYPE_CHECKING:
    from ftkit.run.predictor import Predictor

TURN = "message"
"""What is asked for where there is a conversation."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What there is to an answer besides the text that was streamed.

    result: what `predict` gives for the row; None where a text was streamed. remark: what to know of that text, '' for nothing.
    """

    result: dict[str, Any] | None = None
    remark: str = ""


class Session:
    """Answers what a person types. Make one with `Predictor.session()`.

    asked: what a person gives for one answer, in turn: the columns of a row under the task's names, or the next turn of a conversation.
    commands: what the conversation can be told to do, and what that does.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self._task = predictor, predictor.task
        self._dialogue = self._task.dialogue(predictor.prepared.processor)
        needed = [name for name, column in self._task.columns().items() if column.required and not column.target]
        if not needed and self._dialogue is None:
            raise RecipeError(
                f"{self._task.name} of this run says of no column that a row needs it", hint="Give rows by --input FILE"
            )
        self.asked: tuple[str, ...] = tuple(needed) if self._dialogue is None else (TURN,)
        self.commands: Mapping[str, str] = {} if self._dialogue is None else self._dialogue.commands

    def command(self, name: str, argument: str = "") -> str:
        """Obeys one of `commands`; returns what to tell the person. Raises DataError if that cannot be done."""
        if self._dialogue is None or name not in self.commands:
            raise KeyError(name)
        try:
            return self._dialogue.command(name, argument)
        except RowError as error:
            raise _explained(error) from None

    def answer(
        self, typed: Mapping[str, str] | str, *, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[str, None, Answer]:
        """Pieces of the answer's text as they come, and what there is besides; no pieces where the task writes no text.

        typed: a text for each entry of `asked`, or the only one. stopped: becomes true to end the text with its next token; what was
        written counts as the answer. Raises DataError for what cannot be used.
        """
        row = {self.asked[0]: typed} if isinstance(typed, str) else dict(typed)
        if not self._task.streams:
            return Answer(result=next(iter(self._predictor.predict([row], batch_size=1))))
        model, processor = self._predictor.bare_model, self._predictor.prepared.processor
        with evaluating(model):
            prediction = yield from self._task.stream(model, self._features(row), processor, stopped=stopped)
        remarks = [self._dialogue.answered(prediction)] if self._dialogue else []
        if not prediction.get("complete", True) and not stopped():
            remarks.append("the text is as long as it may be (task.generation.max_new_tokens)")
        return Answer(remark="; ".join(filter(None, remarks)))

    def _features(self, row: Mapping[str, str]) -> list[Features]:
        if self._dialogue is None:
            store = self._predictor.encode(row)
            return store.take(np.arange(len(store)))
        if not row[TURN].strip():
            raise DataError(Problem(message="the text is empty", place="input"))
        try:
            return self._dialogue.ask(row[TURN])
        except RowError as error:
            raise _explained(error) from None


def _explained(error: RowError) -> DataError:
    return DataError(Problem(message=error.message, place="input", key=error.column, hint=error.hint))
