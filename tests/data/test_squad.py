from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftkit.data.readers import squad
from tests.data.files import failure, read

CONTEXT = "Anna lives in Oslo. Ben does not."

ARTICLES: list[dict[str, Any]] = [
    {
        "title": "People",
        "paragraphs": [
            {
                "context": CONTEXT,
                "qas": [
                    {"id": "a", "question": "Who lives?", "answers": [{"text": "Anna", "answer_start": 0}], "is_impossible": False},
                    {
                        "id": "b",
                        "question": "Who dies?",
                        "answers": [],
                        "is_impossible": True,
                        "plausible_answers": [{"text": "Ben", "answer_start": 20}],
                    },
                ],
            },
            {"context": "Nobody asks about this.", "qas": []},
        ],
    },
    {
        "paragraphs": [
            {
                "context": "Two.",
                "qas": [
                    {
                        "id": "c",
                        "question": "How many?",
                        "answers": [{"text": "Two", "answer_start": 0}, {"text": "Two.", "answer_start": 0}],
                    }
                ],
            }
        ],
    },
]

ROWS = [
    {
        "id": "a",
        "title": "People",
        "context": CONTEXT,
        "question": "Who lives?",
        "answers": {"text": ["Anna"], "answer_start": [0]},
        "is_impossible": False,
    },
    {
        "id": "b",
        "title": "People",
        "context": CONTEXT,
        "question": "Who dies?",
        "answers": {"text": [], "answer_start": []},
        "is_impossible": True,
    },
    {
        "id": "c",
        "title": None,
        "context": "Two.",
        "question": "How many?",
        "answers": {"text": ["Two", "Two."], "answer_start": [0, 0]},
        "is_impossible": False,
    },
]


def write(content: Any, name: str = "dev.json") -> str:
    Path(name).write_text(json.dumps(content), encoding="utf-8")
    return name


@pytest.mark.parametrize("options", [{}, {"format": "json"}, {"format": "squad"}])
@pytest.mark.parametrize("content", [{"version": "2.0", "data": ARTICLES}, ARTICLES])
def test_nested_articles_become_rows(options: dict[str, str], content: Any) -> None:
    table = read(write(content), **options)
    assert list(table) == ROWS
    assert [table.place(index) for index in range(3)] == ["dev.json, row 1", "dev.json, row 2", "dev.json, row 3"]


def test_only_wanted_columns_are_kept() -> None:
    table = read(write({"data": ARTICLES}), columns={"question", "answers"})
    assert table.column_names == ["question", "answers"]
    assert set(table.source_columns) == set(ROWS[0])


def test_a_json_list_of_rows_stays_what_it_is() -> None:
    rows = [{"question": "x", "paragraphs": "none"}]
    assert list(read(write({"data": rows}))) == rows
    assert "holds no rows" in failure(write({"data": []}))


def test_questions_to_predict_have_no_answers() -> None:
    qas = [{"id": 1, "question": "Who?"}]
    table = read(write({"data": [{"title": "t", "paragraphs": [{"context": "x", "qas": qas}]}]}))
    assert table.source_columns == ["id", "title", "context", "question"]


def test_many_questions_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squad, "CHUNK_ROWS", 3)
    articles = [{"title": str(number), "paragraphs": ARTICLES[0]["paragraphs"]} for number in range(10)]
    table = read(write({"data": articles}))
    assert [row["title"] for row in table] == [str(number) for number in range(10) for _ in range(2)]
    assert table.place(19) == "dev.json, row 20"


@pytest.mark.parametrize(
    ("articles", "message"),
    [
        ([{"title": "x"}], "dev.json, article 1: paragraphs: None is not a list of objects"),
        ([{"paragraphs": [7]}], "dev.json, article 1, paragraph 1: paragraphs: 7 is not an object"),
        ([{"paragraphs": [{"qas": []}]}], "dev.json, article 1, paragraph 1: context: None is not text"),
        ([{"paragraphs": [{"context": "x", "qas": "y"}]}], "dev.json, article 1, paragraph 1: qas: 'y' is not a list of objects"),
        (
            [{"paragraphs": [{"context": "x", "qas": [{"question": "q", "answers": {"text": "x"}}]}]}],
            "dev.json, article 1, paragraph 1, question 1: answers: {'text': 'x'} is not a list of objects",
        ),
        (
            [{"paragraphs": [{"context": "x", "qas": [{"question": "q", "answers": ["x"]}]}]}],
            "dev.json, article 1, paragraph 1, question 1, answer 1: answers: 'x' is not an object",
        ),
        ([{"paragraphs": []}], "dev.json: holds no rows"),
    ],
)
def test_what_is_not_squad(articles: list[Any], message: str) -> None:
    assert message in failure(write({"data": articles}), format="squad")


def test_all_problems_come_at_once() -> None:
    message = failure(write({"data": [{"paragraphs": [number]} for number in range(25)]}))
    assert message.count("is not an object") == 3
    assert "and 22 more" in message


def test_broken_json_has_its_place() -> None:
    Path("dev.json").write_text('{"data": [{"paragraphs": []},\n oops]}', encoding="utf-8")
    assert "dev.json:2:2" in failure("dev.json")
