"""Columns and usual metrics of extractive question answering."""

from __future__ import annotations

from collections.abc import Sequence

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


def telling(chosen: Sequence[str], *, no_answer: bool) -> list[str]:
    """The chosen metrics; of the usual ones not those that repeat others where every question has an answer."""
    usual = list(chosen[: len(USUAL_METRICS)]) == USUAL_METRICS
    return [name for name in chosen if no_answer or not usual or name not in NO_ANSWER_METRICS]
