"""Rows of instruction data in their usual layouts, as conversations.

messages            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "tools": [...]}
sharegpt            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}
alpaca              {"instruction": "Translate.", "input": "Hi", "output": "Salut"}
prompt_completion   {"prompt": "1 + 1 =", "completion": " 2"}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ftkit.tasks.base import Column, Row, RowError
from ftkit.tasks.parts.labels import shown

Layout = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]
Message = dict[str, Any]

KEY_COLUMNS: dict[Layout, str] = {
    "messages": "messages",
    "sharegpt": "conversations",
    "alpaca": "instruction",
    "prompt_completion": "prompt",
}
"""The column that tells a layout; of several in one row the first counts."""

ANSWER_COLUMNS: dict[Layout, str] = {"alpaca": "output", "prompt_completion": "completion"}

ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response"), "tool"),
}
"""Names of roles in data, and what templates call them."""

MAY_FOLLOW = {
    "": ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Roles that may come after a role ('': at the beginning)."""

_COLUMNS = {
    "messages": Column(summary="Turns, each with `role` and `content`.", names=("chat", "dialogue")),
    "conversations": Column(summary="Turns, each with `from` and `value`.", names=("conversation",)),
    "instruction": Column(summary="What to do."),
    "input": Column(summary="What to do it with; follows the instruction after an empty line.", required=False),
    "output": Column(summary="The answer to the instruction.", target=True),
    "prompt": Column(summary="What comes before the answer.", names=("question", "query", "problem")),
    "completion": Column(summary="The answer to the prompt.", target=True, names=("answer", "response", "solution")),
    "system": Column(summary="System message of the row.", required=False, names=("system_prompt",)),
    "tools": Column(summary="Tools for the template: a list, or one as JSON text.", required=False),
}
_OF_ALL = ("system", "tools")
_OF_LAYOUT: dict[Layout, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "input", "output"),
    "prompt_completion": ("prompt", "completion"),
}
# Where the recipe names the layout, its columns cannot be taken for those of another one.
_MORE_NAMES = {
    "input": ("context",),
    "output": ("response", "answer", "completion"),
    "prompt": ("instruction", "input"),
    "completion": ("output", "target"),
}


@dataclass(frozen=True)
class Conversation:
    """The turns of a row, as templates take them.

    column: where they come from, for messages. answered: whether the last turn is the assistant's.
    """

    messages: list[Message]
    tools: list[Any] | None
    column: str

    @property
    def answered(self) -> bool:
        """Whether there is an answer to learn, or to compare with."""
        return bool(self.messages[-1]["role"] == "assistant")

    @property
    def question(self) -> list[Message]:
        """The turns before the last answer; all of them where the last turn is no answer."""
        return self.messages[:-1] if self.answered else self.messages

    @property
    def answer(self) -> str:
        """The text of the last answer; of one that only calls tools, the calls as JSON."""
        last = self.messages[-1]
        return str(last["content"] or json.dumps(last.get("tool_calls"), ensure_ascii=False))


def chat_columns(layout: Layout | None, seen: Sequence[str]) -> dict[str, Column]:
    """The columns of a layout, of all layouts where it is not known (None).

    seen: layouts of the training rows. Columns are required where there is only one layout that they can belong to.
    """
    if layout is not None:
        names = [*_OF_LAYOUT[layout], *_OF_ALL]
        return {name: _column(name, more=_MORE_NAMES.get(name, ())) for name in names}
    only = _OF_LAYOUT[seen[0]] if len(seen) == 1 else ()  # type: ignore[index]
    return {name: _column(name, required=name in only) for name in _COLUMNS}


def _column(name: str, *, required: bool = True, more: tuple[str, ...] = ()) -> Column:
    column = _COLUMNS[name]
    names = (*column.names, *more)
    return Column(summary=column.summary, required=column.required and required, target=column.target, names=names)


def layout_of(row: Row, layout: Layout | None) -> Layout:
    """The layout of a row: the given one, else by the columns that hold something. Raises RowError if none does."""
    if layout is not None:
        return layout
    found = next((name for name, column in KEY_COLUMNS.items() if row.get(column) is not None), None)
    empty = [name for name, column in KEY_COLUMNS.items() if column in row]
    if found is None and len(empty) == 1:
        return empty[0]
    if found is None:
        columns = ", ".join(f"`{column}`" for column in KEY_COLUMNS.values())
        hint = "Set `task.layout`, and name the columns of the data under data.columns"
        raise RowError("messages", f"no layout is known that fits: the row has none of {columns}", hint)
    return found


def read_conversation(row: Row, layout: Layout | None, *, system: str | None, may_ask: bool) -> Conversation:
    """The conversation of a row.

    system: system message for rows without one. may_ask: rows may end before the answer, to be continued by the model; `messages` or
    `conversations` may then be a plain text, one turn of the user. Raises RowError with the turn and what was expected.
    """
    kind = layout_of(row, layout)
    column = KEY_COLUMNS[kind]
    if kind in ("messages", "sharegpt"):
        messages = _read_turns(row.get(column), column, may_ask)
    else:
        messages = _read_pair(row, kind, may_ask)
    messages = _with_system(row, messages, column, system)
    _check_order(messages, column)
    if not may_ask and messages[-1]["role"] != "assistant":
        answers = any(message["role"] == "assistant" for message in messages)
        found = f"the last turn is of the {messages[-1]['role']}" if answers else "there is no turn of the assistant"
        raise RowError(column, f"{found}, so there is no answer to learn", "Add the answer, or remove the row")
    return Conversation(messages, _read_tools(row.get("tools")), column)


def _read_pair(row: Row, layout: Layout, may_ask: bool) -> list[Message]:
    ask, answer = KEY_COLUMNS[layout], ANSWER_COLUMNS[layout]
    text = _text(row.get(ask), ask, "the text")
    if layout == "alpaca" and row.get("input") is not None:
        extra = _text(row["input"], "input", "the text", may_be_empty=True)
        text = f"{text}\n\n{extra}" if extra.strip() else text
    messages: list[Message] = [{"role": "user", "content": text}]
    if answer in row or not may_ask:
        messages.append({"role": "assistant", "content": _text(row.get(answer), answer, "the answer")})
    return messages


def _text(value: Any, column: str, what: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        found = "missing" if value is None else f"{shown(value)}, expected text"
        raise RowError(column, f"{what} is {found}", "Correct the row, or map another column under data.columns")
    if not value.strip() and not may_be_empty:
        raise RowError(column, f"{what} is empty", "Fill it in, or remove the row")
    return value


def _read_turns(value: Any, column: str, may_ask: bool) -> list[Message]:
    if may_ask and isinstance(value, str):
        return [{"role": "user", "content": _text(value, column, "the text")}]
    if not isinstance(value, list):
        found = "missing" if value is None else shown(value)
        written = isinstance(value, str) and value.lstrip().startswith(("[", "{"))
        hint = "Each turn is {role, content}, or {from, value}"
        hint = "A list that was written as text is not read; give the rows as jsonl or parquet" if written else hint
        raise RowError(column, f"the conversation is {found}, expected a list of turns", hint)
    if not value:
        raise RowError(column, "the conversation has no turns", "Fill it in, or remove the row")
    return [_read_turn(turn, number, column) for number, turn in enumerate(value, start=1)]


def _read_turn(turn: Any, number: int, column: str) -> Message:
    if not isinstance(turn, Mapping):
        hint = "Write each turn as {role, content}, or {from, value}"
        raise RowError(column, f"turn {number} is {shown(turn)}, expected an object with `role` and `content`", hint)
    keys = ("from", "value") if ("from" in turn or "value" in turn) and "role" not in turn else ("role", "content")
    role = turn.get(keys[0])
    if not isinstance(role, str) or role not in ROLES:
        known = "system, user, assistant or tool" if keys[0] == "role" else "system, human, gpt or observation"
        hint = "Name the role so, or remove the row"
        raise RowError(column, f"turn {number}: `{keys[0]}` is {shown(role)}, expected {known}", hint)
    # Parquet gives every turn the keys of all turns, with nulls.
    rest = {key: item for key, item in turn.items() if key not in keys and item is not None}
    content = _read_content(turn.get(keys[1]), number, keys[1], column)
    message = {"role": ROLES[role], "content": content, **rest}
    _check_calls(message.get("tool_calls"), number, column)
    calls_tools = message["role"] == "assistant" and message.get("tool_calls")
    if not content.strip() and message["role"] != "tool" and not calls_tools:
        found = "missing" if turn.get(keys[1]) is None else "empty"
        raise RowError(column, f"turn {number} ({role}): `{keys[1]}` is {found}, expected text", "Fill it in, or remove the row")
    return message


def _read_content(value: Any, number: int, key: str, column: str) -> str:
    """Text, or the text of parts `{"type": "text", "text": ...}` one after the other."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        texts = [part.get("text") for part in value if part.get("type") == "text"]
        if len(texts) == len(value) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    hint = 'Give text, or parts {"type": "text", "text": ...}; images are not read'
    raise RowError(column, f"turn {number}: `{key}` is {shown(value)}, expected text", hint)


def _check_calls(calls: Any, number: int, column: str) -> None:
    """Raises RowError unless calls are a list of {"function": {"name", "arguments"}} or {"name", "arguments"}, arguments an object,
    also one as JSON text (OpenAI writes them so)."""
    hint = 'A call is {"type": "function", "function": {"name": ..., "arguments": {...}}}'
    if calls is not None and not isinstance(calls, list):
        raise RowError(column, f"turn {number}: `tool_calls` is {shown(calls)}, expected a list of calls", hint)
    for call in calls or ():
        function = call.get("function") or call if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError(column, f"turn {number}: `tool_calls` holds {shown(call)}, expected a function with its `name`", hint)
        arguments = function.get("arguments")
        if not isinstance(_from_json(arguments), Mapping | None):
            message = (
                f"turn {number}: the `arguments` of {function['name']!r} are {shown(arguments)}, expected an object, or one as JSON"
            )
            raise RowError(column, message, hint)


def _from_json(value: Any) -> Any:
    """What JSON text stands for, None for blank text; the value itself where it is no JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value


def _with_system(row: Row, messages: list[Message], column: str, system: str | None) -> list[Message]:
    own = _text(row["system"], "system", "the text", may_be_empty=True) if row.get("system") is not None else ""
    has_one = messages[0]["role"] in ("system", "developer")
    if own.strip() and has_one:
        message = "turn 1 is a system message, and the row has another one in its own column"
        raise RowError(column, message, "Remove one of the two")
    text = own if own.strip() else system
    return messages if has_one or not text else [{"role": "system", "content": text}, *messages]


def _check_order(messages: Iterable[Message], column: str) -> None:
    before = ""
    for number, message in enumerate(messages, start=1):
        role, allowed = message["role"], MAY_FOLLOW[before]
        if role not in allowed:
            after = f"after {before}" if before else "at the beginning"
            expected = " or ".join(allowed)
            raise RowError(
                column, f"turn {number} is of the role {role!r}, expected {expected} {after}", "Correct or remove the row"
            )
        before = role


def _read_tools(value: Any) -> list[Any] | None:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise RowError(
                "tools", f"{shown(value)} is not JSON: {error.msg}", "Give a list of tools, or one as JSON text"
            ) from None
    if value is None or value == "" or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError("tools", f"{shown(value)} is not a list of tools", "Each tool is an object with its `name` and `parameters`")
    return value
