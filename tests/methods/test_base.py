from __future__ import annotations

import pytest

from ftkit.methods.base import block_numbers, range_refusal, weight_training_defaults
from ftkit.models.facts import ModelFacts


def facts(kind: str, model_type: str, hidden_size: int) -> ModelFacts:
    return ModelFacts(
        kind=kind, model_type=model_type, hidden_size=hidden_size, block_count=4, max_positions=None, vocab_size=None, path=None
    )


def test_block_numbers_are_sorted_and_unique() -> None:
    assert block_numbers(["10", "0-2", 1, " 4 - 5 "]) == [0, 1, 2, 4, 5, 10]


@pytest.mark.parametrize("text", ["3-1", "a", "-1", "1-", "", "0-2-4", -2])
def test_bad_ranges_are_named(text: str | int) -> None:
    with pytest.raises(ValueError, match="is no block number") as caught:
        block_numbers([0, text])
    assert repr(text) in str(caught.value)


def test_blocks_beyond_the_last_are_refused_where_the_count_is_known() -> None:
    assert range_refusal(["0-3"], 4) == ""
    assert "no block 4" in range_refusal(["2-4"], 4)
    assert range_refusal(["2-400"], 0) == ""


@pytest.mark.parametrize(
    ("kind", "model_type", "hidden_size", "rate"),
    [
        ("encoder", "bert", 384, 1e-4),
        ("encoder", "bert", 768, 5e-5),
        ("encoder", "roberta", 1024, 2e-5),
        ("decoder", "gpt2", 768, 6.25e-5),
        ("decoder", "llama", 4096, 2e-5),
        ("encoder-decoder", "t5", 512, 3e-4),
        ("encoder-decoder", "mt5", 1024, 1e-4),
        ("encoder-decoder", "bart", 768, 3e-5),
        ("encoder-decoder", "encoder-decoder", 384, 1e-4),
        ("vision", "vit", 768, 5e-5),
        ("unknown", "", 0, 5e-5),
    ],
)
def test_published_rates_follow_kind_and_size(kind: str, model_type: str, hidden_size: int, rate: float) -> None:
    defaults = weight_training_defaults(facts(kind, model_type, hidden_size))
    assert defaults["train.learning_rate"].value == rate
    assert all(default.source and default.value is not None for default in defaults.values())
