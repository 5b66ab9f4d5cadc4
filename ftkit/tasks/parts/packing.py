"""Documents as blocks of a fixed length: several to a block for training, cut into windows for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Piece:
    """Tokens `start` to `end` of a document; its first `scored_from` tokens are context only."""

    start: int
    end: int
    scored_from: int


def cut(length: int, size: int, stride: int) -> Iterator[Piece]:
    """Windows of at most `size` tokens over a document of `length` tokens, `stride` (at most `size`) apart.

    Each token but the document's first is scored in at most one window. With `stride` equal to `size` windows do not overlap, and
    the first token of each is given; with less, no token is left out.
    """
    done = start = 0
    while done < length:
        end = min(start + size, length)
        yield Piece(start, end, max(1, done - start))
        done, start = end, start + stride


def pack(documents: Sequence[Sequence[int]], size: int) -> list[dict[str, Any]]:
    """Blocks of `size` tokens (the last may be shorter) that hold all documents one after the other.

    Each has `input_ids`, `starts` (positions at which documents begin, 0 always among them) and `row` (the first document's index).
    A document that goes on in the next block begins anew there.
    """
    blocks: list[dict[str, Any]] = []
    tokens: list[int] = []
    starts: list[int] = []
    row = 0
    for number, document in enumerate(documents):
        at = 0
        while at < len(document):
            if not tokens:
                row = number
            starts.append(len(tokens))
            taken = document[at : at + size - len(tokens)]
            tokens.extend(taken)
            at += len(taken)
            if len(tokens) == size:
                blocks.append({"input_ids": tokens, "starts": starts, "row": row})
                tokens, starts = [], []
    if tokens:
        blocks.append({"input_ids": tokens, "starts": starts, "row": row})
    return blocks
