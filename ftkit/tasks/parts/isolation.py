"""Keeps documents in one packed block from seeing each other, and checks on the model itself that they do not.

Architectures that go by positions (Llama and most since) see from positions that begin anew where a document begins; the others get
a mask. Which one a model needs is found by trying: its logits for a packed block must be those for the documents alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftkit.errors import ModelError, Problem

TOLERANCE = 1e-3


def packed_positions(starts: Sequence[Sequence[int]], width: int) -> Tensor:
    """Positions that begin at 0 in each document: int64 (B, width). starts: where documents begin, then where the padding begins."""
    positions = torch.zeros((len(starts), width), dtype=torch.int64)
    for row, begins in enumerate(starts):
        for start, end in zip(begins, [*begins[1:], width], strict=True):
            positions[row, start:end] = torch.arange(end - start)
    return positions


def document_mask(starts: Sequence[Sequence[int]], width: int) -> Tensor:
    """Which positions each position sees, itself and what lies before it in its document: bool (B, 1, width, width)."""
    documents = torch.zeros((len(starts), width), dtype=torch.int64)
    for row, begins in enumerate(starts):
        for start in begins:
            documents[row, start:] += 1
    same = documents[:, :, None] == documents[:, None, :]
    return (same & torch.ones(width, width, dtype=torch.bool).tril())[:, None]


def needs_mask(model: nn.Module, tokens: Tensor) -> bool:
    """Whether packed blocks need `document_mask` beside `packed_positions` for this model.

    model: in evaluation mode. tokens: some token ids, int64 (T,). Raises ModelError if documents see each other either way.
    """
    half = len(tokens) // 2
    starts = [[0, half, len(tokens)]]
    inputs: dict[str, Any] = {"input_ids": tokens[None], "position_ids": packed_positions(starts, len(tokens))}
    with torch.no_grad():
        alone = torch.cat([_logits(model, {"input_ids": part[None]}) for part in (tokens[:half], tokens[half:])])
        for mask in (False, True):
            extra = {"attention_mask": document_mask(starts, len(tokens))} if mask else {}
            if _equal(_packed_logits(model, {**inputs, **extra}), alone):
                return mask
    hint = "Set `task.packing: false`, or `model.attention: sdpa`"
    message = f"{type(model).__name__} cannot keep the documents of a packed block apart with this attention"
    raise ModelError(Problem(message=message, key="task.packing", hint=hint))


def _packed_logits(model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
    try:
        return _logits(model, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        # An architecture without position_ids, or one that takes no mask of this shape.
        return None


def _logits(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs, use_cache=False).logits[0].float()


def _equal(found: Tensor | None, expected: Tensor) -> bool:
    if found is None or found.shape != expected.shape:
        return False
    return float((found - expected).abs().max()) <= TOLERANCE * max(1.0, float(expected.abs().max()))
