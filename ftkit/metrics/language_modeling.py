"""How well a language model predicts a text.

nll: float (n,), negative log likelihood in nats of the scored tokens of each piece of text. tokens, correct: int (n,), scored tokens,
and those that were the likeliest. bytes: int (n,), UTF-8 length of what the scored tokens stand for.
Every metric is one number over all tokens, not a mean of means, and None where there is nothing to score.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ftkit.metrics.base import MetricSpec

if TYPE_CHECKING:
    from numpy import ndarray

ARGUMENTS = {"nll": "float", "tokens": "int", "correct": "int", "bytes": "int"}

LARGEST_EXPONENT = 700.0
"""exp() of more does not fit a float."""


def perplexity(nll: ndarray, tokens: ndarray) -> float | None:
    """exp of the mean negative log likelihood of a token; None where it exceeds what a float holds."""
    count = int(tokens.sum())
    mean = float(nll.sum()) / count if count else math.inf
    return math.exp(mean) if mean < LARGEST_EXPONENT else None


def bits_per_byte(nll: ndarray, bytes: ndarray) -> float | None:
    """Negative log2 likelihood of a byte of the text: comparable between models with different vocabularies."""
    count = int(bytes.sum())
    return float(nll.sum()) / math.log(2) / count if count else None


def token_accuracy(correct: ndarray, tokens: ndarray) -> float | None:
    """Share of the tokens that were the model's likeliest choice."""
    count = int(tokens.sum())
    return int(correct.sum()) / count if count else None


METRICS = {
    spec.name: spec
    for spec in (
        MetricSpec(
            name="perplexity",
            summary="exp of the mean negative log likelihood of a token.",
            direction="min",
            headline=True,
            compute=perplexity,
        ),
        MetricSpec(
            name="bits_per_byte",
            summary="Negative log2 likelihood of a byte of text.",
            direction="min",
            headline=True,
            compute=bits_per_byte,
        ),
        MetricSpec(
            name="token_accuracy",
            summary="Share of the tokens that were the likeliest choice.",
            direction="max",
            compute=token_accuracy,
        ),
    )
}
