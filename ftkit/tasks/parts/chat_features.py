"""Conversations as features: which tokens there are, and which of them count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ftkit.tasks.base import Features, RowError
from ftkit.tasks.parts.chat import Conversation
from ftkit.tasks.parts.templates import ChatTemplate, TrainOn

if TYPE_CHECKING:
    from torch import Tensor


def encode_conversations(
    conversations: Sequence[Conversation], template: ChatTemplate, train_on: TrainOn, max_length: int, *, training: bool
) -> list[Features]:
    """`input_ids`, `supervised` (1 for each token that counts), `length` and `truncated` of each conversation; what is beyond
    `max_length` tokens is cut off. training: also `answer_length`, the tokens of the last answer before the cut; else `prompt_ids`,
    what precedes it, whole.

    Raises RowError for a conversation that the template refuses, or whose answers cannot be told from the rest.
    """
    chats = []
    for item in conversations:
        if item.answered:
            with _naming_column(item):
                chats.append(template.write(item.messages, item.tools, train_on))
    with _naming_column(conversations[0]):
        asked = (
            [template.prompt(item.question, item.tools) for item in conversations]
            if not training or len(chats) < len(conversations)
            else []
        )
        questions = template.tokens(asked) if asked else []
        answered = iter(template.supervise(chats) if chats else ())
    features = []
    for index, item in enumerate(conversations):
        ids, marks = next(answered) if item.answered else (questions[index], [0] * len(questions[index]))
        feature = _cut(ids, marks, max_length)
        features.append({**feature, **({"answer_length": _last_run(marks)} if training else {"prompt_ids": questions[index]})})
    return features


def _cut(ids: list[int], marks: list[int], max_length: int) -> Features:
    kept = ids[:max_length]
    # Nothing predicts the first token.
    return {"input_ids": kept, "supervised": [0, *marks[1:max_length]], "length": len(kept), "truncated": len(ids) > max_length}


def _last_run(marks: Sequence[int]) -> int:
    """Length of the last run of ones."""
    backwards = "".join(map(str, reversed(marks))).lstrip("0")
    return len(backwards) - len(backwards.lstrip("1"))


@contextmanager
def _naming_column(conversation: Conversation) -> Iterator[None]:
    """Names the column that the conversation comes from in what the template says of it."""
    try:
        yield
    except RowError as error:
        column = error.column if error.column == "tools" else conversation.column
        raise RowError(column, error.message, error.hint) from None


def next_tokens(features: Sequence[Features], input_ids: Tensor) -> Tensor:
    """What each position must predict where that counts, IGNORED elsewhere: int64 (B, T).

    input_ids: int64 (B, T), padded on the right. Goes by positions, since the padding token can be the end token too.
    """
    import torch

    from ftkit.tasks.parts.language_loss import IGNORED

    targets = torch.full_like(input_ids, IGNORED)
    for index, item in enumerate(features):
        length = int(item["length"])
        counts = torch.as_tensor(item["supervised"][1:], dtype=torch.bool)
        targets[index, : length - 1][counts] = input_ids[index, 1:length][counts]
    return targets


def shown_answers(features: Features, processor: Any) -> list[tuple[str, str]]:
    """The tokens with the notes `answer` (it counts) and `special token`; then the cut as a note without a token."""
    special = set(processor.all_special_ids)
    tokens = [int(token) for token in features["input_ids"]]
    pairs = []
    for token, counts in zip(tokens, features["supervised"], strict=True):
        notes = [note for note, there in (("answer", counts), ("special token", token in special)) if there]
        pairs.append((processor.convert_ids_to_tokens(token), ", ".join(notes)))
    return [*pairs, ("", f"cut at {len(tokens)} tokens")] if features["truncated"] else pairs
