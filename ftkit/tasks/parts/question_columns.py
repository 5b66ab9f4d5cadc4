"""The columns of extractive question answering."""

from __future__ import annotations

from ftkit.tasks.base import Column

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
