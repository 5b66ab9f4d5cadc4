from __future__ import annotations

import math

import numpy as np
import pytest

from ftkit.metrics.language_modeling import bits_per_byte, perplexity, token_accuracy


def test_perplexity_is_over_all_tokens_not_a_mean_of_means() -> None:
    nll, tokens = np.array([math.log(2) * 3, math.log(8) * 1]), np.array([3, 1])
    assert perplexity(nll, tokens) == pytest.approx(math.exp((3 * math.log(2) + math.log(8)) / 4))


def test_a_uniform_model_over_bytes_needs_eight_bits() -> None:
    assert bits_per_byte(np.array([math.log(256) * 5]), np.array([5])) == pytest.approx(8.0)


def test_accuracy_counts_tokens() -> None:
    assert token_accuracy(np.array([1, 3]), np.array([2, 6])) == 0.5


def test_nothing_to_score_is_no_number() -> None:
    nothing, zero = np.array([0.0]), np.array([0])
    assert perplexity(nothing, zero) is None
    assert bits_per_byte(nothing, zero) is None
    assert token_accuracy(zero, zero) is None
    assert perplexity(np.array([1e6]), np.array([1])) is None
