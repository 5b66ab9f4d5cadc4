from __future__ import annotations

import pytest
import torch

from ftkit.tuners.prompt_encoders import ENCODERS, PromptEncoder, make_encoder


@pytest.mark.parametrize("kind", ENCODERS)
def test_each_gives_one_vector_for_each_virtual_token(kind: str) -> None:
    encoder = make_encoder(kind, 5, 4, hidden_size=3, dropout=0.2)
    assert encoder().shape == (5, 4)
    assert (encoder.length, encoder.width) == (5, 4)


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_is_kept_gives_the_same_vectors(kind: str) -> None:
    encoder = make_encoder(kind, 5, 4, hidden_size=3, dropout=0.9)
    encoder.start_from(torch.randn(5, 4))
    kept = make_encoder("factorized" if kind == "factorized" else "none", 5, 4)
    kept.load_state_dict(encoder.frozen_form())
    assert encoder.training
    torch.testing.assert_close(kept(), encoder.eval()())


def test_direct_prompts_are_what_they_start_from() -> None:
    vectors = torch.randn(5, 4)
    for kind in ("none", "factorized"):
        encoder = make_encoder(kind, 5, 4)
        encoder.start_from(vectors)
        torch.testing.assert_close(encoder(), vectors)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown prompt encoder 'gru', known: none, mlp, lstm, factorized"):
        make_encoder("gru", 5, 4)
    with pytest.raises(NotImplementedError):
        PromptEncoder().start_from(torch.zeros(1))
