"""No token is lost or scored twice, and packed documents do not see each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftkit.errors import ModelError
from ftkit.tasks.parts.isolation import document_mask, needs_mask, packed_positions
from ftkit.tasks.parts.packing import cut, pack
from tests.tiny import tiny_config, tiny_model


@given(st.integers(1, 80), st.integers(2, 20), st.data())
def test_overlapping_windows_score_each_token_but_the_first_once(length: int, size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, size - 1))
    scored: list[int] = []
    for piece in cut(length, size, stride):
        assert piece.end - piece.start <= size
        scored += range(piece.start + piece.scored_from, piece.end)
    assert scored == list(range(1, length))


def test_windows_side_by_side_give_their_first_token() -> None:
    pieces = list(cut(10, 4, 4))
    assert [(piece.start, piece.end, piece.scored_from) for piece in pieces] == [(0, 4, 1), (4, 8, 1), (8, 10, 1)]


@given(st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=12), st.integers(1, 9))
def test_blocks_hold_every_token_in_order(documents: list[list[int]], size: int) -> None:
    blocks = pack(documents, size)
    assert [token for block in blocks for token in block["input_ids"]] == [token for document in documents for token in document]
    assert all(len(block["input_ids"]) == size for block in blocks[:-1])
    assert all(block["starts"][0] == 0 and block["starts"] == sorted(set(block["starts"])) for block in blocks)


def test_blocks_say_where_documents_begin() -> None:
    assert pack([[1, 2, 3], [4], [5, 6, 7, 8]], 5) == [
        {"input_ids": [1, 2, 3, 4, 5], "starts": [0, 3, 4], "row": 0},
        {"input_ids": [6, 7, 8], "starts": [0], "row": 2},
    ]


def test_positions_and_masks_begin_anew() -> None:
    assert packed_positions([[0, 2, 4], [0, 5]], 5).tolist() == [[0, 1, 0, 1, 0], [0, 1, 2, 3, 4]]
    mask = document_mask([[0, 2, 3]], 3)[0, 0]
    assert mask.tolist() == [[True, False, False], [True, True, False], [False, False, True]]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_packed_logits_are_those_of_the_documents_alone(family: str) -> None:
    model = tiny_model(family, "AutoModelForCausalLM")
    with_mask = needs_mask(model, torch.arange(7, 17))
    documents = [torch.arange(7, 12), torch.arange(20, 23), torch.arange(9, 15)]
    tokens = torch.cat(documents)
    starts = [[0, 5, 8, len(tokens)]]
    inputs = {"input_ids": tokens[None], "position_ids": packed_positions(starts, len(tokens))}
    if with_mask:
        inputs["attention_mask"] = document_mask(starts, len(tokens))
    with torch.no_grad():
        expected = torch.cat([model(input_ids=document[None]).logits[0] for document in documents])
        torch.testing.assert_close(model(**inputs, use_cache=False).logits[0], expected, atol=1e-5, rtol=1e-5)


def test_a_model_that_cannot_keep_documents_apart_is_refused() -> None:
    class Leaky(type(tiny_model("llama", "AutoModelForCausalLM"))):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor, **kwargs: object) -> object:
            return super().forward(input_ids=input_ids, use_cache=False)

    torch.manual_seed(0)
    with pytest.raises(ModelError, match="cannot keep the documents"):
        needs_mask(Leaky(tiny_config("llama")).eval(), torch.arange(7, 17))
