"""What to do with texts that are longer than a model takes: keep the head, head and tail, or cut them into windows.

Head and tail: Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?", https://arxiv.org/abs/1905.05583, section 5.3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftkit.tasks.base import Features
from ftkit.tasks.parts.tokens import tokens_of

HEAD_SHARE = 0.25
"""Of the tokens that fit, those from the beginning; the rest comes from the end. Sun et al. 2019 keep 128 and 382 of 510."""


def shorten(texts: Sequence[str], processor: Any, max_length: int, *, stride: int | None) -> list[Features]:
    """`input_ids`, `token_type_ids` (where the model has them), `length`, `truncated` and `row` of single texts.

    stride None: head and tail of a long text in one feature. Else windows that begin `stride` tokens apart, each with the special
    tokens of a whole text. Never cuts a special token.
    """
    found: list[Features] = []
    for row, item in enumerate(tokens_of(processor, texts)):
        for kept in _kept(item.texts(), max_length, stride):
            piece = {name: [tokens[place] for place in kept] for name, tokens in item.values.items()}
            cut = stride is None and len(kept) < len(item.ids)
            found.append({**piece, "length": len(kept), "truncated": cut, "row": row})
    return found


def _kept(sequence_ids: Sequence[int | None], max_length: int, stride: int | None) -> list[list[int]]:
    """Positions of each piece of a text. sequence_ids: 0 for tokens of the text, None for special tokens around it."""
    length = len(sequence_ids)
    if length <= max_length:
        return [list(range(length))]
    body = [place for place, sequence in enumerate(sequence_ids) if sequence is not None]
    before, after = list(range(body[0])), list(range(body[-1] + 1, length))
    room = max_length - len(before) - len(after)
    if stride is None:
        head = max(1, round(HEAD_SHARE * room))
        return [[*before, *body[:head], *body[len(body) - (room - head) :], *after]]
    starts = range(0, max(1, len(body) - room + stride), stride)
    return [[*before, *body[start : start + room], *after] for start in starts]
