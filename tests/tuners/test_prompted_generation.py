"""What a model with a prompt or a prefix writes is what it says in single forward passes, whatever cache, padding and beams do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ftkit.tasks.parts.generation import GenerationOptions, generate_tokens
from ftkit.tasks.parts.language_loss import LanguageScorer, position_count
from tests.tiny import DECODERS, MAX_POSITIONS
from tests.tuners.prompted import LENGTH, plain_model, tokens, with_prefix, with_prompt

NEW = 7
KINDS = {"prompt": with_prompt, "prefix": with_prefix}
each_kind = pytest.mark.parametrize("kind", KINDS)


def generated(model: Any, inputs: dict[str, Tensor], **options: Any) -> list[list[int]]:
    return generate_tokens(model, inputs, GenerationOptions(**options), max_new_tokens=NEW, stop_ids=[], pad_id=0)


def left_padded(rows: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


@each_kind
@pytest.mark.parametrize("family", DECODERS)
def test_decoders_write_the_likeliest_token_each_time(family: str, kind: str) -> None:
    model, _ = KINDS[kind](family, "AutoModelForCausalLM")
    rows = [tokens(1, 6)[0].tolist(), tokens(1, 3, seed=4)[0].tolist(), tokens(1, 1, seed=6)[0].tolist()]
    expected = []
    for row in rows:
        ids = torch.tensor([row])
        for _ in range(NEW):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        expected.append(ids[0, len(row) :].tolist())
    assert generated(model, left_padded(rows)) == expected
    assert [generated(model, left_padded([row]))[0] for row in rows] == expected
    plain = generated(plain_model(family, "AutoModelForCausalLM"), left_padded(rows))
    assert plain != expected
    with model.disable_adapter():
        assert generated(model, left_padded(rows)) == plain


@each_kind
@pytest.mark.parametrize("family", ["t5", "bart", "bert + bert"])
def test_encoder_decoders_write_the_likeliest_token_each_time(family: str, kind: str) -> None:
    model, _ = KINDS[kind](family, "AutoModelForSeq2SeqLM")
    inputs = {"input_ids": tokens(2, 6), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    start = model.get_base_model().config.decoder_start_token_id
    written = torch.full((2, 1), start)
    for _ in range(NEW):
        logits = model(**inputs, decoder_input_ids=written, use_cache=False).logits
        written = torch.cat([written, logits[:, -1:].argmax(-1)], dim=1)
    assert generated(model, inputs) == written[:, 1:].tolist()
    alone = {"input_ids": inputs["input_ids"][1:, :4], "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    assert generated(model, alone)[0] == written[1, 1:].tolist()


@each_kind
@pytest.mark.parametrize(("family", "auto"), [("llama", "AutoModelForCausalLM"), ("t5", "AutoModelForSeq2SeqLM")])
def test_beams_find_what_they_find_alone(family: str, auto: str, kind: str) -> None:
    model, _ = KINDS[kind](family, auto)
    rows = [tokens(1, 5)[0].tolist(), tokens(1, 5, seed=4)[0].tolist()]
    together = generated(model, left_padded(rows), num_beams=3)
    assert together == [generated(model, left_padded([row]), num_beams=3)[0] for row in rows]
    assert together != generated(model, left_padded(rows))


@each_kind
@pytest.mark.parametrize(("family", "auto"), [("gpt2", "AutoModelForCausalLM"), ("bart", "AutoModelForSeq2SeqLM")])
def test_scores_in_chunks_are_those_of_the_model(family: str, auto: str, kind: str) -> None:
    model, _ = KINDS[kind](family, auto)
    inputs = {"input_ids": tokens()}
    if family == "bart":
        inputs["decoder_input_ids"] = tokens(length=4, seed=7)
    scorer = LanguageScorer(model, inputs)
    assert scorer.chunked
    targets = tokens(length=4, seed=8)
    logits = model(**inputs).logits[:, -4:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(scorer.score(model, inputs, targets).nll, expected, atol=1e-5, rtol=1e-5)


def test_a_prompt_takes_positions_of_texts_and_a_prefix_none() -> None:
    assert position_count(with_prompt("gpt2", "AutoModelForCausalLM")[0]) == MAX_POSITIONS - LENGTH
    assert position_count(with_prefix("gpt2", "AutoModelForCausalLM")[0]) == MAX_POSITIONS
    assert position_count(with_prompt("bart", "AutoModelForSeq2SeqLM")[0]) == MAX_POSITIONS


def test_a_prompt_goes_in_front_once_for_each_text() -> None:
    model, _ = with_prompt("llama", "AutoModelForCausalLM")
    first = model(tokens(1, 4), use_cache=True)
    assert first.past_key_values.get_seq_length() == LENGTH + 4
    second = model(tokens(1, 2, seed=5), past_key_values=first.past_key_values, use_cache=True)
    whole = model(torch.cat([tokens(1, 4), tokens(1, 2, seed=5)], dim=1), use_cache=False)
    torch.testing.assert_close(second.logits, whole.logits[:, 4:], atol=1e-5, rtol=1e-5)


@each_kind
def test_padding_on_the_left_moves_nothing_out_of_a_window(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import tests.tiny

    sizes = {**tests.tiny._SIZES["llama"], "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 5}
    monkeypatch.setitem(tests.tiny._SIZES, "gemma2", sizes)
    model, _ = KINDS[kind]("gemma2", "AutoModelForCausalLM")
    rows = [tokens(1, 6)[0].tolist(), tokens(1, 2, seed=4)[0].tolist()]
    assert generated(model, left_padded(rows)) == [generated(model, left_padded([row]))[0] for row in rows]
