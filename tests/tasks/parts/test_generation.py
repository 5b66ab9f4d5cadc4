"""Generated text depends on the model, the prompt and the options; not on batch mates, not on the checkpoint's settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError

from ftkit.tasks.parts.generation import GenerationOptions, generate_tokens, left_pad, stream_text, until_stop
from tests.tiny import TOKENS, tiny_model, tiny_tokenizer

GREEDY = GenerationOptions()
PROMPTS = [[7, 8, 9], [10, 11, 12, 13, 14, 15, 16, 17], [20]]


def _model(family: str) -> Any:
    model = tiny_model(family, "AutoModelForSeq2SeqLM" if family in ("t5", "bart") else "AutoModelForCausalLM")
    # As initialized, tiny models repeat one token whatever the prompt says.
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3, generator=generator)
    return model


def _inputs(model: Any, prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    batch = left_pad(prompts, 0)
    if not model.config.is_encoder_decoder:
        return batch
    # Encoders take their padding on the right.
    return {
        name: torch.stack([row.roll(len(prompt) - row.numel()) for row, prompt in zip(value, prompts, strict=True)])
        for name, value in batch.items()
    }


def _generate(model: Any, prompts: list[list[int]], options: GenerationOptions = GREEDY, count: int = 25, **more: Any) -> Any:
    arguments = {"stop_ids": [], "pad_id": 0, **more}
    return generate_tokens(model, _inputs(model, prompts), options, max_new_tokens=count, **arguments)


def _by_hand(model: Any, prompt: list[int], count: int) -> list[int]:
    """The likeliest token each time, one forward pass each, without a cache."""
    ids, start = torch.tensor([prompt]), [0]
    for _ in range(count):
        if model.config.is_encoder_decoder:
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([start])).logits
        else:
            logits = model(input_ids=torch.tensor([[*prompt, *start[1:]]])).logits
        start.append(int(logits[0, -1].argmax()))
    return start[1:]


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart"])
def test_greedy_text_is_the_likeliest_and_batch_mates_do_not_matter(family: str) -> None:
    model = _model(family)
    together = _generate(model, PROMPTS)
    assert together[0] != together[1]
    assert together == [_generate(model, [prompt])[0] for prompt in PROMPTS]
    with torch.no_grad():
        assert together == [_by_hand(model, prompt, 25) for prompt in PROMPTS]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_settings_of_the_checkpoint_do_not_count(family: str) -> None:
    model = _model(family)
    expected = _generate(model, PROMPTS)
    settings = {"max_length": 3, "do_sample": True, "temperature": 5.0, "top_k": 2, "num_beams": 3, "repetition_penalty": 9.0}
    for name, value in {**settings, "no_repeat_ngram_size": 1, "eos_token_id": expected[0][0]}.items():
        setattr(model.generation_config, name, value)
    own = model.generation_config
    assert _generate(model, PROMPTS) == expected
    assert model.generation_config is own


def test_tokens_that_the_vocabulary_forbids_or_forces_stay() -> None:
    model = _model("bart")
    banned = _generate(model, PROMPTS)[0][0]
    model.generation_config.suppress_tokens = [banned]
    assert all(banned not in row for row in _generate(model, PROMPTS))
    model.generation_config.suppress_tokens = None
    model.generation_config.forced_bos_token_id = 33
    assert all(row[0] == 33 for row in _generate(model, PROMPTS))


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_rows_end_before_the_first_stop_token(family: str) -> None:
    model = _model(family)
    whole = _generate(model, PROMPTS)
    stop = next(token for token in whole[1] if token != whole[1][0])
    assert _generate(model, PROMPTS, stop_ids=[stop, 63]) == [until_stop(row, [stop, 63]) for row in whole]
    assert len(until_stop(whole[1], [stop])) < 25


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_an_adapter_counts(family: str) -> None:
    model = _model(family)
    plain = _generate(model, PROMPTS)
    kind = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
    targets = ["q", "v", "wo"] if family == "t5" else "all-linear"
    tuned = get_peft_model(model, LoraConfig(task_type=kind, init_lora_weights=False, lora_alpha=64, target_modules=targets)).eval()
    found = _generate(tuned, PROMPTS)
    assert found != plain
    assert found == _generate(tuned.merge_and_unload(), PROMPTS)


def test_beams_and_penalties_reach_the_model() -> None:
    model = _model("gpt2")
    greedy = _generate(model, PROMPTS)
    for options in (GenerationOptions(num_beams=4, length_penalty=2.0), GenerationOptions(repetition_penalty=3.0)):
        assert _generate(model, PROMPTS, options) != greedy
    rows = _generate(model, PROMPTS, GenerationOptions(no_repeat_ngram_size=1))
    assert all(len(set(row)) == 25 for row in rows)
    stops = [row[0] for row in greedy]
    assert all(len(row) >= 4 for row in _generate(model, PROMPTS, GenerationOptions(min_new_tokens=4), stop_ids=stops))


def test_samples_repeat_and_leave_the_generator_of_training_alone() -> None:
    model, options = _model("gpt2"), GenerationOptions(do_sample=True, temperature=5.0)
    before = torch.get_rng_state()
    first = _generate(model, PROMPTS, options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert _generate(model, PROMPTS, options) == first
    assert _generate(model, PROMPTS, GenerationOptions(do_sample=True, temperature=5.0, seed=1)) != first
    assert _generate(model, PROMPTS, GenerationOptions(do_sample=True, top_k=1)) == _generate(model, PROMPTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.5}, "do_sample"),
        ({"length_penalty": 0.5}, "num_beams"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "exceeds"),
        ({"max_new_tokens": 0}, "greater than or equal to 1"),
        ({"max_length": 20}, "not permitted"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GenerationOptions.model_validate(options)


# --- streaming ---------------------------------------------------------------------------------------------------------


def _pieces(model: Any, options: GenerationOptions = GREEDY, prompts: list[list[int]] | None = None, **more: Any) -> Any:
    prompts = prompts or PROMPTS[:1]
    arguments = {"stop_ids": [], "pad_id": 0, "max_new_tokens": 12, **more}
    return stream_text(model, _inputs(model, prompts), options, tiny_tokenizer("gpt2"), **arguments)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_streamed_pieces_make_up_the_text(family: str) -> None:
    model, processor = _model(family), tiny_tokenizer("gpt2")
    rows = _generate(model, PROMPTS[:1], count=12)
    pieces = list(_pieces(model))
    assert "".join(pieces) == processor.decode(rows[0], skip_special_tokens=True)
    stop = next(token for token in rows[0][2:] if token >= len(TOKENS) - 41)
    shorter = "".join(_pieces(model, stop_ids=[stop]))
    assert shorter.strip() == processor.decode(until_stop(rows[0], [stop]), skip_special_tokens=True).strip()


def test_errors_of_the_thread_arrive() -> None:
    model = _model("gpt2")
    with pytest.raises(Exception, match=r"index out of range|IndexError"):
        list(_pieces(model, max_new_tokens=100))


def test_closing_the_iterator_ends_the_generation() -> None:
    model = _model("llama")
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    pieces = _pieces(model, max_new_tokens=50_000)
    next(pieces)
    pieces.close()
    assert len(calls) < 50_000


def test_several_rows_are_refused_and_several_beams_come_as_one_piece() -> None:
    model = _model("gpt2")
    with pytest.raises(ValueError, match="only one row can be streamed, not 3"):
        _pieces(model, prompts=PROMPTS)
    assert len(list(_pieces(model, GenerationOptions(num_beams=2)))) == 1
