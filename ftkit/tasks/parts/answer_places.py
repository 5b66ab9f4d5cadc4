"""Where the answers of a conversation are among its tokens.

Fast tokenizers say which characters each token is. With those written in Python, a place is found by tokenizing the text up to it: where
that gives the first tokens of the whole text, the next token begins there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ftkit.tasks.base import RowError
from ftkit.tasks.parts.labels import shown
from ftkit.tasks.parts.tokens import gives_offsets, plain_ids

Span = tuple[int, int]
"""Characters of a text, or tokens: the first, and the one after the last."""


class Places(Protocol):
    """Where the tokens of a text are in it."""

    def inside(self, start: int, end: int) -> Span:
        """First and last of the tokens that have characters between `start` and `end`. Raises RowError if that cannot be found out."""

    def characters(self, token: int) -> Span:
        """The characters that a token is; of one that `inside` gave as the first, at least where it begins."""


def tokenize_located(texts: Sequence[str], processor: Any) -> list[tuple[list[int], Places]]:
    """Token ids of texts, without special tokens around them, and where these are in the text."""
    if not gives_offsets(processor):
        encoded = plain_ids(processor, texts)
        return [(ids, PlacesByBeginnings(text, ids, processor)) for text, ids in zip(texts, encoded, strict=True)]
    settings = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
    found = processor(list(texts), return_offsets_mapping=True, **settings)
    return [(ids, PlacesByOffsets(offsets)) for ids, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True)]


def joined_with_prompt(text: str) -> RowError:
    """The error for an answer whose first token begins in the prompt. text: what is joined."""
    hint = "End the prompt of the template with a line break or a special token"
    return RowError("messages", f"the tokenizer joins the end of the prompt with the answer: {shown(text)}", hint)


class PlacesByOffsets:
    """The places that a fast tokenizer gives."""

    def __init__(self, offsets: Sequence[Span]) -> None:
        self._offsets = offsets

    def inside(self, start: int, end: int) -> Span:
        """First and last of the tokens that have characters between `start` and `end`."""
        import numpy as np

        begins, ends = np.asarray(self._offsets).T
        found = np.flatnonzero((begins < end) & (ends > start) & (ends > begins))
        return int(found[0]), int(found[-1])

    def characters(self, token: int) -> Span:
        """The characters that a token is."""
        return self._offsets[token]


class PlacesByBeginnings:
    """The places in a text that a tokenizer gives which says nothing of characters."""

    def __init__(self, text: str, ids: Sequence[int], processor: Any) -> None:
        self._text, self._ids, self._processor = text, list(ids), processor
        self._begins: dict[int, int] = {}

    def inside(self, start: int, end: int) -> Span:
        """First and last of the tokens that have characters between `start` and `end`.

        Raises RowError unless a token begins at `start`, white space before it left out, and one ends at `end`.
        """
        first, last = self._before(start), self._before(end)
        if first is None:
            raise joined_with_prompt(self._text[max(0, start - 10) : start + 10])
        if last is None or last <= first:
            message = (
                f"the tokenizer joins the end of an answer with what follows: {shown(self._text[max(0, end - 10) : end + 10])}"
            )
            raise RowError("messages", message, "Use a chat template that ends answers with a special token")
        self._begins[first] = start
        return first, last - 1

    def characters(self, token: int) -> Span:
        """Where a token that was the first of an answer begins; no token's end is known."""
        return self._begins[token], self._begins[token]

    def _before(self, place: int) -> int | None:
        """How many tokens the text up to a place has; None if the whole text does not begin with these."""
        whole = self._text[:place]
        for beginning in dict.fromkeys((whole, whole.rstrip())):
            ids = plain_ids(self._processor, [beginning])[0] if beginning else []
            if ids == self._ids[: len(ids)]:
                return len(ids)
        return None
