"""SQuAD 1.1 and 2.0: articles of paragraphs of questions, a row for each question.

{"data": [{"title": "...", "paragraphs": [{"context": "...", "qas": [
    {"id": "...", "question": "...", "answers": [{"text": "...", "answer_start": 17}], "is_impossible": false}]}]}]}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ftkit.data.problems import Problems, shorten
from ftkit.data.readers.source_file import CHUNK_BYTES, CHUNK_ROWS, SourceFile
from ftkit.data.table import Table
from ftkit.errors import Problem

PARAGRAPHS = "paragraphs"

HINTS = {
    PARAGRAPHS: "An article is {title, paragraphs: [{context, qas}]}; rows with question and context need no `format: squad`.",
    "context": "A paragraph is {context, qas: [{question, answers}]}.",
    "qas": "A paragraph is {context, qas: [{question, answers}]}.",
    "answers": "Answers are [{text, answer_start}], an empty list where there is none.",
}


def is_article(value: dict[str, Any]) -> bool:
    """Whether an element of `data` is an article of paragraphs and not a row."""
    return isinstance(value.get(PARAGRAPHS), list)


def read_articles(file: SourceFile, articles: Iterable[dict[str, Any]]) -> Table:
    """The questions of all articles, counted as rows: `id`, `title`, `context`, `question`, `answers` ({"text": [...], "answer_start":
    [...]}) and `is_impossible` (false where SQuAD 1.1 does not say). What a question lacks is null; plausible answers are left out.

    Raises DataError with up to 20 places that are not as SQuAD has them.
    """
    problems = Problems()
    rows: list[dict[str, Any]] = []
    first = count = size = 0
    with file.builder("row") as builder:
        for number, article in enumerate(articles, start=1):
            for row in _questions(article, f"{file.label}, article {number}", problems):
                rows.append(row)
                count, size = count + 1, size + len(row["context"])
                if len(rows) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                    builder.add_rows(rows, range(first + 1, count + 1))
                    rows, first, size = [], count, 0
        problems.raise_if_any()
        if rows:
            builder.add_rows(rows, range(first + 1, count + 1))
        return builder.finish()


def _questions(article: dict[str, Any], place: str, problems: Problems) -> Iterator[dict[str, Any]]:
    for at, paragraph in _objects(article, PARAGRAPHS, place, "paragraph", problems):
        context = paragraph.get("context")
        if not isinstance(context, str):
            problems.add(Problem(message=f"{shorten(context)} is not text", place=at, key="context", hint=HINTS["context"]))
            continue
        for where, question in _objects(paragraph, "qas", at, "question", problems):
            yield {
                "id": question.get("id"),
                "title": article.get("title"),
                "context": context,
                "question": question.get("question"),
                **_answers(question, where, problems),
            }


def _answers(question: dict[str, Any], place: str, problems: Problems) -> dict[str, Any]:
    """`answers` and `is_impossible`; nothing for a question to predict, which has neither."""
    if "answers" not in question:
        return {"is_impossible": question["is_impossible"]} if "is_impossible" in question else {}
    found = [answer for _, answer in _objects(question, "answers", place, "answer", problems)]
    answers = {key: [answer.get(key) for answer in found] for key in ("text", "answer_start")}
    return {"answers": answers, "is_impossible": question.get("is_impossible", False)}


def _objects(parent: dict[str, Any], key: str, place: str, name: str, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in a list of the parent, each with its place; what is none is noted and left out."""
    items = parent.get(key)
    if not isinstance(items, list):
        problems.add(Problem(message=f"{shorten(items)} is not a list of objects", place=place, key=key, hint=HINTS[key]))
        return
    for number, item in enumerate(items, start=1):
        where = f"{place}, {name} {number}"
        if isinstance(item, dict):
            yield where, item
        else:
            problems.add(Problem(message=f"{shorten(item)} is not an object", place=where, key=key, hint=HINTS[key]))
