"""A soft prompt is the plain model fed [P; E(x)] by hand, its outputs where the input has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ftkit.errors import ModelError
from tests.tiny import DECODERS, ENCODERS, MAX_POSITIONS
from tests.tuners.prompted import LENGTH, frozen_but_for, gradient, plain_model, tokens, with_prompt

MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
TYPES = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def by_hand(model: Any, stack: Any, prompt: Tensor, ids: Tensor, **arguments: Any) -> Any:
    """The plain model on [P; E(x)], with masks and types that are that much wider."""
    embedded = torch.cat([prompt.expand(len(ids), -1, -1), stack.get_input_embeddings()(ids)], dim=1)
    widths = {"attention_mask": 1, "token_type_ids": 0}
    wide = {
        name: torch.cat([torch.full((len(ids), len(prompt)), widths[name]), value], dim=1) if name in widths else value
        for name, value in arguments.items()
    }
    return model(inputs_embeds=embedded, **wide)


def copy_of(values: Tensor) -> Tensor:
    return values.detach().clone().requires_grad_()


def assert_equal(found: Tensor, expected: Tensor, prompt: Tensor, copy: Tensor) -> None:
    """Outputs and the gradients of some function of them."""
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(gradient((found * weights).sum(), prompt), gradient((expected * weights).sum(), copy), **CLOSE)


def inputs_of(family: str) -> dict[str, Tensor]:
    types = {"token_type_ids": TYPES} if family in ("bert", "deberta-v2") else {}
    return {"attention_mask": MASK, **types}


@pytest.mark.parametrize("family", ENCODERS)
def test_labels_of_tokens_stay_with_their_tokens(family: str) -> None:
    model, prompt = with_prompt(family, "AutoModelForTokenClassification")
    plain = plain_model(family, "AutoModelForTokenClassification")
    plain.load_state_dict(model.get_base_model().state_dict(), strict=False)
    head, copy = model.get_base_model().classifier.modules_to_save["default"], copy_of(prompt)
    plain.classifier.load_state_dict(head.state_dict())
    found = model(input_ids=tokens(), **inputs_of(family)).logits
    expected = by_hand(plain, plain, copy, tokens(), **inputs_of(family)).logits[:, LENGTH:]
    assert found.shape == (2, 6, 3)
    assert_equal(found[MASK.bool()], expected[MASK.bool()], prompt, copy)


@pytest.mark.parametrize("family", ENCODERS)
def test_offsets_of_answers_stay(family: str) -> None:
    model, prompt = with_prompt(family, "AutoModelForQuestionAnswering")
    plain, copy = plain_model(family, "AutoModelForQuestionAnswering"), copy_of(prompt)
    plain.qa_outputs.load_state_dict(model.get_base_model().qa_outputs.modules_to_save["default"].state_dict())
    found = model(input_ids=tokens(), **inputs_of(family))
    expected = by_hand(plain, plain, copy, tokens(), **inputs_of(family))
    for name in ("start_logits", "end_logits"):
        assert_equal(found[name][MASK.bool()], expected[name][:, LENGTH:][MASK.bool()], prompt, copy)


@pytest.mark.parametrize("family", ENCODERS)
def test_the_first_token_is_pooled_and_not_the_prompt(family: str) -> None:
    model, prompt = with_prompt(family, "AutoModelForSequenceClassification")
    base, copy = model.get_base_model(), copy_of(prompt)
    plain = plain_model(family, "AutoModelForSequenceClassification")
    body = getattr(plain, plain.base_model_prefix)
    states = by_hand(body, body, copy, tokens(), **inputs_of(family)).last_hidden_state[:, LENGTH:]
    if family == "bert":
        expected = base.classifier(body.pooler(states))
    elif family == "deberta-v2":
        expected = base.classifier(base.pooler(states))
    elif family == "distilbert":
        expected = base.classifier(torch.relu(base.pre_classifier(states[:, 0])))
    else:
        expected = base.classifier(states)
    assert_equal(model(input_ids=tokens(), **inputs_of(family)).logits, expected, prompt, copy)


@pytest.mark.parametrize("family", DECODERS)
def test_language_models(family: str) -> None:
    model, prompt = with_prompt(family, "AutoModelForCausalLM")
    plain, copy = plain_model(family, "AutoModelForCausalLM"), copy_of(prompt)
    found = model(input_ids=tokens(), attention_mask=MASK).logits
    expected = by_hand(plain, plain, copy, tokens(), attention_mask=MASK).logits[:, LENGTH:]
    assert found.shape[1] == 6
    assert_equal(found[MASK.bool()], expected[MASK.bool()], prompt, copy)
    torch.testing.assert_close(model(tokens()).logits[0], found[0], **CLOSE)
    found.sum().backward()
    frozen_but_for(model, [prompt])


@pytest.mark.parametrize("family", DECODERS)
def test_the_last_token_that_is_no_padding_is_classified(family: str) -> None:
    model, prompt = with_prompt(family, "AutoModelForSequenceClassification")
    copy = copy_of(prompt)
    body, score = plain_model(family, "AutoModelForSequenceClassification"), model.get_base_model().score
    body = getattr(body, body.base_model_prefix)
    ids = tokens().masked_fill(MASK == 0, model.config.pad_token_id)
    states = by_hand(body, body, copy, ids, attention_mask=MASK).last_hidden_state[:, LENGTH:]
    expected = score(torch.stack([states[0, 5], states[1, 3]]))
    assert_equal(model(input_ids=ids, attention_mask=MASK).logits, expected, prompt, copy)


@pytest.mark.parametrize("family", ["t5", "bart", "bert + bert"])
def test_decoders_look_at_the_prompt(family: str) -> None:
    model, prompt = with_prompt(family, "AutoModelForSeq2SeqLM")
    plain, copy = plain_model(family, "AutoModelForSeq2SeqLM"), copy_of(prompt)
    written = tokens(length=4, seed=9)
    found = model(input_ids=tokens(), attention_mask=MASK, decoder_input_ids=written).logits
    expected = by_hand(plain, plain.get_encoder(), copy, tokens(), attention_mask=MASK, decoder_input_ids=written).logits
    assert found.shape[1] == 4
    assert_equal(found, expected, prompt, copy)
    torch.testing.assert_close(model(input_ids=tokens(), decoder_input_ids=written).logits[0], found[0], **CLOSE)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoders_classify(family: str) -> None:
    model, prompt = with_prompt(family, "AutoModelForSequenceClassification")
    ids = torch.cat([tokens(), torch.full((2, 1), 5)], dim=1)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert logits.shape == (2, 3)
    alone = model(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1])).logits
    torch.testing.assert_close(logits[:1], alone, **CLOSE)
    assert gradient(logits.sum(), prompt).abs().max() > 0


def test_tokens_of_an_encoder_alone_are_labeled() -> None:
    model, prompt = with_prompt("t5", "AutoModelForTokenClassification")
    plain, copy = plain_model("t5", "AutoModelForTokenClassification"), copy_of(prompt)
    plain.classifier.load_state_dict(model.get_base_model().classifier.modules_to_save["default"].state_dict())
    states = by_hand(plain.transformer, plain.transformer, copy, tokens(), attention_mask=MASK).last_hidden_state[:, LENGTH:]
    assert_equal(model(input_ids=tokens(), attention_mask=MASK).logits, plain.classifier(states), prompt, copy)


def test_images() -> None:
    model, prompt = with_prompt("vit", "")
    base, copy = model.get_base_model(), copy_of(prompt)
    plain = plain_model("vit", "").vit
    pixels = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    states = torch.cat([copy.expand(2, -1, -1), plain.embeddings(pixels)], dim=1)
    for layer in plain.layers:
        states = layer(states)
    expected = base.classifier(plain.layernorm(states)[:, LENGTH])
    assert_equal(model(pixel_values=pixels).logits, expected, prompt, copy)


def test_hidden_states_are_those_of_the_input() -> None:
    model, _ = with_prompt("bert", "AutoModelForTokenClassification")
    outputs = model(input_ids=tokens(), output_hidden_states=True)
    assert [states.shape[1] for states in outputs.hidden_states] == [6, 6, 6]
    named = model(input_ids=tokens(), return_dict=False)
    torch.testing.assert_close(named[0], outputs.logits)


@pytest.mark.parametrize("family", DECODERS)
def test_packed_documents_each_see_the_prompt_and_not_each_other(family: str) -> None:
    model, _ = with_prompt(family, "AutoModelForCausalLM")
    first, second = tokens(1, 4), tokens(1, 3, seed=8)
    packed = torch.cat([first, second], dim=1)
    same = torch.tensor([0] * 4 + [1] * 3)
    mask = (same[:, None] == same) & torch.ones(7, 7, dtype=torch.bool).tril()
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    logits = model(input_ids=packed, attention_mask=mask[None, None], position_ids=positions).logits
    torch.testing.assert_close(logits[:, :4], model(input_ids=first).logits, **CLOSE)
    torch.testing.assert_close(logits[:, 4:], model(input_ids=second).logits, **CLOSE)
    additive = torch.zeros(1, 1, 7, 7).masked_fill(~mask, torch.finfo(torch.float32).min)
    torch.testing.assert_close(model(input_ids=packed, attention_mask=additive, position_ids=positions).logits, logits, **CLOSE)


def test_embedded_inputs_are_taken() -> None:
    model, _ = with_prompt("gpt2", "AutoModelForCausalLM")
    embedded = model.get_input_embeddings()(tokens())
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, model(tokens()).logits, **CLOSE)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "bart"])
def test_texts_that_leave_the_prompt_no_position_are_refused(family: str) -> None:
    auto = {"gpt2": "AutoModelForCausalLM", "bart": "AutoModelForSeq2SeqLM"}.get(family, "AutoModelForTokenClassification")
    model, _ = with_prompt(family, auto)
    more = {"decoder_input_ids": tokens(1, 2)} if family == "bart" else {}
    model(input_ids=tokens(1, MAX_POSITIONS - LENGTH), **more)
    with pytest.raises(
        ModelError, match=f"a prompt of {LENGTH} and an input of 62 tokens exceed the model's {MAX_POSITIONS} positions"
    ):
        model(input_ids=tokens(1, MAX_POSITIONS - LENGTH + 1), **more)


def test_masks_by_kind_of_layer_are_refused() -> None:
    model, _ = with_prompt("llama", "AutoModelForCausalLM")
    with pytest.raises(ModelError, match="masks that differ by layer"):
        model(input_ids=tokens(), attention_mask={"full_attention": None})


@pytest.mark.parametrize(("family", "auto"), [("bert", "AutoModelForTokenClassification"), ("t5", "AutoModelForSeq2SeqLM")])
def test_unloaded_models_are_the_plain_ones(family: str, auto: str) -> None:
    plain = plain_model(family, auto)
    inputs = {"input_ids": tokens(), **({"decoder_input_ids": tokens(length=2)} if family == "t5" else {})}
    names, expected = list(plain.state_dict()), plain(**inputs).logits
    model, _ = with_prompt(family, auto)
    with model.disable_adapter():
        torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)
    unloaded = model.unload()
    assert list(unloaded.state_dict()) == names
    torch.testing.assert_close(unloaded(**inputs).logits, expected, **CLOSE)


def test_a_deleted_prompt_leaves_the_other() -> None:
    model, _ = with_prompt("gpt2", "AutoModelForCausalLM")
    expected = model(tokens()).logits
    model.add_adapter("second", model.peft_config["default"])
    model.set_adapter("second")
    assert not torch.allclose(model(tokens()).logits, expected)
    model.set_adapter("default")
    model.delete_adapter("second")
    torch.testing.assert_close(model(tokens()).logits, expected)


def test_a_sequence_that_came_out_shorter_is_refused() -> None:
    model, _ = with_prompt("gpt2", "AutoModelForCausalLM")
    body = model.get_base_model().transformer
    forward = body.forward

    def pooling(**arguments: Any) -> Any:
        outputs = forward(**arguments)
        outputs.last_hidden_state = outputs.last_hidden_state[:, ::2]
        return outputs

    body.forward = pooling
    with pytest.raises(ModelError, match="GPT2Model changes the length of its sequence"):
        model(tokens())


def test_nothing_of_a_prompt_can_be_merged() -> None:
    model, _ = with_prompt("gpt2", "AutoModelForCausalLM")
    for merge in (model.merge_and_unload, model.base_model.layer.merge):
        with pytest.raises(NotImplementedError):
            merge()
