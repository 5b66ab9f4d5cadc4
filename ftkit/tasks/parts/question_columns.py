"""Columns and usual metrics of extractive question answering."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ftkit.errors import DataError, Problem
from ftkit.tasks.base import Column

ANSWER_METRICS = ["f1", "exact_match"]
NO_ANSWER_METRICS = ["has_answer_f1", "has_answer_exact_match", "no_answer_accuracy"]
USUAL_METRICS = [*ANSWER_METRICS, *NO_ANSWER_METRICS]

QUESTION_COLUMNS = {
    "question": Column(summary="The question.", names=("question", "query")),
    "context": Column(summary="The text that may hold the answer.", names=("context", "passage", "paragraph", "document")),
    "answers": Column(
        summary='The acceptable answers: {"text": [...], "answer_start": [...]}, a list of {"text", "answer_start"}, or a text.',
        target=True,
        names=("answers", "answer", "answer_text"),
    ),
    "answer_start": Column(
        summary="Characters of the context before the answer, where `answers` is a text.",
        required=False,
        target=True,
        names=("answer_start",),
    ),
    "is_impossible": Column(summary="Whether the question has no answer.", required=False, target=True, names=("is_impossible",)),
}


def check_counted_on(counted_on: Mapping[str, str], *, no_answer: bool) -> None:
    """Raises DataError if the recipe counts on a metric that has no value where every question has an answer.

    counted_on: the metrics and the keys that name them.
    """
    undefined = NO_ANSWER_METRICS[-1]
    if undefined in counted_on and not no_answer:
        message = f"{undefined} is over questions without an answer, and every training row has one"
        hint = f"Name another metric: {', '.join(USUAL_METRICS[:-1])}"
        raise DataError(Problem(message=message, key=counted_on[undefined], hint=hint))


def telling(chosen: Sequence[str], *, no_answer: bool, counted_on: Collection[str]) -> list[str]:
    """The chosen metrics; of the usual ones not those that repeat others where every question has an answer, unless the recipe counts on
    them."""
    usual = list(chosen[: len(USUAL_METRICS)]) == USUAL_METRICS
    return [name for name in chosen if no_answer or not usual or name not in NO_ANSWER_METRICS or name in counted_on]
