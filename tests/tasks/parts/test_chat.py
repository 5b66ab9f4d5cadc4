"""Layouts of instruction data: what becomes of rows, and what is said of bad ones."""

from __future__ import annotations

from typing import Any

import pytest

from ftkit.tasks.base import Row, RowError
from ftkit.tasks.parts.chat import Conversation, chat_columns, layout_of, read_conversation

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello!"}


def read(row: Row, layout: Any = None, *, system: str | None = None, may_ask: bool = False) -> Conversation:
    return read_conversation(row, layout, system=system, may_ask=may_ask)


def problem(row: Row, layout: Any = None, **options: Any) -> tuple[str, str]:
    with pytest.raises(RowError) as caught:
        read(row, layout, **options)
    return caught.value.column, caught.value.message


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"messages": [{**USER, "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, ANSWER]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
        {"conversations": [USER, ANSWER]},
        {"instruction": "Hi", "input": None, "output": "Hello!"},
        {"instruction": "Hi", "input": " ", "output": "Hello!"},
        {"prompt": "Hi", "completion": "Hello!"},
        {"prompt": "Hi", "completion": "Hello!", "system": "", "tools": "[]", "messages": None},
    ],
)
def test_every_layout_gives_the_same_turns(row: Row) -> None:
    found = read(row)
    assert found.messages == [USER, ANSWER]
    assert found.tools is None
    assert found.answered
    assert found.question == [USER]
    assert found.answer == "Hello!"


def test_alpaca_puts_the_input_after_the_instruction() -> None:
    found = read({"instruction": "Translate.", "input": "Hi", "output": "Salut"})
    assert found.messages[0]["content"] == "Translate.\n\nHi"
    assert found.column == "instruction"


def test_the_first_layout_of_several_counts_unless_the_recipe_names_one() -> None:
    row = {"messages": [USER, ANSWER], "instruction": "Other", "output": "Thing"}
    assert layout_of(row, None) == "messages"
    assert read(row, "alpaca").messages[0]["content"] == "Other"


def test_roles_have_other_names_elsewhere_and_further_keys_stay() -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    row = {
        "messages": [
            {"role": "system", "content": "S"},
            USER,
            {"role": "assistant", "content": None, "tool_calls": calls, "name": None},
            {"role": "tool", "content": "", "tool_call_id": "7"},
            {"role": "function_call", "content": "{}"},
            {"role": "observation", "content": "3"},
            ANSWER,
        ],
        "tools": '[{"name": "f"}]',
    }
    found = read(row)
    assert [message["role"] for message in found.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert found.messages[2] == {"role": "assistant", "content": "", "tool_calls": calls}
    assert found.messages[3]["tool_call_id"] == "7"
    assert found.tools == [{"name": "f"}]
    assert read({"messages": row["messages"][:3]}).answer.startswith('[{"type": "function"')


def test_system_messages_come_from_the_conversation_the_row_or_the_recipe() -> None:
    talk = [USER, ANSWER]
    assert read({"messages": talk, "system": "Row."}, system="Recipe.").messages[0] == {"role": "system", "content": "Row."}
    assert read({"messages": talk, "system": " "}, system="Recipe.").messages[0] == {"role": "system", "content": "Recipe."}
    own = [{"role": "system", "content": "Own."}, *talk]
    assert read({"messages": own}, system="Recipe.").messages == own
    assert read({"prompt": "Hi", "completion": "Hello!"}, system="Recipe.").messages[0]["content"] == "Recipe."


def test_rows_to_predict_end_before_the_answer_or_are_a_text() -> None:
    for row in ({"messages": "Hi"}, {"messages": [USER]}, {"conversations": "Hi"}, {"instruction": "Hi"}, {"prompt": "Hi"}):
        found = read(row, may_ask=True)
        assert found.messages == found.question == [USER]
        assert not found.answered
    again = read({"messages": [USER, ANSWER]}, may_ask=True)
    assert again.question == [USER]


# --- columns ----------------------------------------------------------------------------------------------------------


def test_columns_of_a_named_layout_are_required() -> None:
    found = chat_columns("alpaca", [])
    assert [(name, column.required, column.target) for name, column in found.items()] == [
        ("instruction", True, False),
        ("input", False, False),
        ("output", True, True),
        ("system", False, False),
        ("tools", False, False),
    ]
    assert "response" in found["output"].names


@pytest.mark.parametrize(
    ("seen", "needed"), [([], []), (["messages"], ["messages"]), (["alpaca"], ["instruction"]), (["alpaca", "messages"], [])]
)
def test_columns_are_required_once_the_layout_is_known(seen: list[str], needed: list[str]) -> None:
    found = chat_columns(None, seen)
    assert [name for name, column in found.items() if column.required and not column.target] == needed


def test_usual_names_belong_to_one_layout_each_where_none_is_named() -> None:
    names = [name for key, column in chat_columns(None, []).items() for name in (key, *column.names)]
    assert len(names) == len(set(names))


# --- bad rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({}, "messages", "the row has none of `messages`, `conversations`, `instruction`, `prompt`"),
        ({"messages": "Hi"}, "messages", "the conversation is 'Hi', expected a list of turns"),
        ({"messages": {"role": "user"}}, "messages", "expected a list of turns"),
        ({"messages": []}, "messages", "the conversation has no turns"),
        ({"messages": [USER, "Hello!"]}, "messages", "turn 2 is 'Hello!', expected an object with `role` and `content`"),
        ({"messages": [USER, {"content": "x"}]}, "messages", "turn 2: `role` is None, expected system, user, assistant or tool"),
        ({"messages": [{**USER, "role": "boss"}]}, "messages", "turn 1: `role` is 'boss', expected system, user"),
        (
            {"conversations": [{"from": "alien", "value": "x"}]},
            "conversations",
            "turn 1: `from` is 'alien', expected system, human",
        ),
        ({"messages": [USER, {**ANSWER, "content": " "}]}, "messages", "turn 2 (assistant): `content` is empty, expected text"),
        ({"messages": [{"role": "user"}, ANSWER]}, "messages", "turn 1 (user): `content` is missing, expected text"),
        ({"messages": [USER, {**ANSWER, "content": 7}]}, "messages", "turn 2: `content` is 7, expected text"),
        ({"messages": [{**USER, "content": [{"type": "image", "url": "x"}]}]}, "messages", "turn 1: `content` is [{'type'"),
        ({"messages": [{**USER, "content": [{"type": "text", "text": None}]}]}, "messages", "turn 1: `content` is"),
        ({"messages": [USER]}, "messages", "there is no turn of the assistant, so there is no answer to learn"),
        ({"messages": [USER, ANSWER, USER]}, "messages", "the last turn is of the user, so there is no answer to learn"),
        (
            {"messages": [ANSWER]},
            "messages",
            "turn 1 is of the role 'assistant', expected system or developer or user at the beginning",
        ),
        ({"messages": [USER, USER, ANSWER]}, "messages", "turn 2 is of the role 'user', expected assistant after user"),
        (
            {"messages": [USER, ANSWER, ANSWER]},
            "messages",
            "turn 3 is of the role 'assistant', expected user or tool after assistant",
        ),
        (
            {"messages": [USER, ANSWER, {"role": "system", "content": "x"}]},
            "messages",
            "turn 3 is of the role 'system', expected user or tool after assistant",
        ),
        (
            {"messages": [{"role": "system", "content": "a"}, USER, ANSWER], "system": "b"},
            "messages",
            "another one in its own column",
        ),
        ({"messages": [USER, ANSWER], "system": 7}, "system", "the text is 7, expected text"),
        ({"messages": [USER, ANSWER], "tools": "{oops"}, "tools", "'{oops' is not JSON"),
        ({"messages": [USER, ANSWER], "tools": '{"name": "f"}'}, "tools", "is not a list of tools"),
        ({"messages": [USER, ANSWER], "tools": ["f"]}, "tools", "['f'] is not a list of tools"),
        ({"instruction": "", "output": "x"}, "instruction", "the text is empty"),
        ({"instruction": "a", "input": 5, "output": "x"}, "input", "the text is 5, expected text"),
        ({"instruction": "a", "output": None}, "output", "the answer is missing"),
        ({"instruction": "a"}, "output", "the answer is missing"),
        ({"prompt": "a", "completion": " "}, "completion", "the answer is empty"),
        ({"prompt": ["a"], "completion": "x"}, "prompt", "the text is ['a'], expected text"),
    ],
)
def test_rows_that_do_not_fit(row: Row, column: str, message: str) -> None:
    found = problem(row)
    assert found[0] == column
    assert message in found[1]


def test_rows_to_predict_are_checked_too() -> None:
    assert problem({"messages": " "}, may_ask=True) == ("messages", "the text is empty")
    assert problem({"messages": None}, "messages", may_ask=True) == (
        "messages",
        "the conversation is missing, expected a list of turns",
    )
    assert problem({"instruction": "a", "output": None}, may_ask=True) == ("output", "the answer is missing")


def test_messages_say_the_named_layout_s_column() -> None:
    assert problem({"messages": [USER, ANSWER]}, "sharegpt")[0] == "conversations"
    assert problem({"messages": [USER, ANSWER]}, "prompt_completion") == ("prompt", "the text is missing")
