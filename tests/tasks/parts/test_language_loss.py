"""The chunked loss is the whole loss: same numbers, same gradients, for every way models finish their logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from ftkit.tasks.parts import language_loss
from ftkit.tasks.parts.language_loss import IGNORED, LanguageScorer
from tests.tiny import DECODERS, ENCODER_DECODERS, tiny_config, tiny_model

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in (*DECODERS, *ENCODER_DECODERS)},
    "gemma2 with a soft cap": ("gemma2", {"head_dim": 8, "num_key_value_heads": 2, "final_logit_softcapping": 2.0}),
    "cohere with a scale": ("cohere", {"num_key_value_heads": 2, "logit_scale": 0.25}),
    "granite with a divisor": ("granite", {"num_key_value_heads": 2, "logits_scaling": 4.0}),
    "mbart": ("mbart", {}),
    "marian": ("marian", {}),
}


def _model(name: str) -> Any:
    import transformers

    family, changes = CONFIGS[name]
    auto_class = "AutoModelForSeq2SeqLM" if family in ("t5", "bart", "mbart", "marian") else "AutoModelForCausalLM"
    if family in (*DECODERS, *ENCODER_DECODERS):
        model = tiny_model(family, auto_class)
    else:
        source = "bart" if family in ("mbart", "marian") else "llama"
        values = {**tiny_config(source).to_dict(), **changes}
        for key in ("model_type", "architectures", "transformers_version", "head_dim", "rope_parameters"):
            if key not in changes:
                values.pop(key, None)
        torch.manual_seed(0)
        model = getattr(transformers, auto_class).from_config(transformers.AutoConfig.for_model(family, **values)).eval()
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_(generator=torch.Generator().manual_seed(1))
    return model


def _inputs(model: Any, rows: int = 3, length: int = 11) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(7, 48, (rows, length), generator=generator)
    if model.config.is_encoder_decoder:
        return {"input_ids": ids, "decoder_input_ids": torch.randint(7, 48, (rows, length - 2), generator=generator)}
    return {"input_ids": ids}


def _targets(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    shape = inputs.get("decoder_input_ids", inputs["input_ids"]).shape
    targets = torch.randint(7, 48, tuple(shape), generator=torch.Generator().manual_seed(3))
    targets[torch.rand(tuple(shape), generator=torch.Generator().manual_seed(4)) < 0.5] = IGNORED
    targets[1] = IGNORED
    return targets


def _freeze_output(model: Any) -> Any:
    model.get_output_embeddings().requires_grad_(requires_grad=False)
    return model


@pytest.mark.parametrize("frozen", [False, True], ids=["trained output", "frozen output"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_loss_and_gradients_equal_the_whole_computation(
    name: str, smoothing: float, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_loss, "LOGITS_PER_CHUNK", 64 * 4)
    model = _freeze_output(_model(name)) if frozen else _model(name)
    inputs = _inputs(model)
    targets = _targets(inputs)
    whole = functional.cross_entropy(
        model(**inputs).logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )
    whole.backward()
    expected = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()

    scorer = LanguageScorer(model, _inputs(model, 2, 6))
    assert scorer.chunked
    loss = scorer.score(model, inputs, targets).loss(smoothing)
    loss.backward()
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    found = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6, msg=key)


def test_an_unknown_finish_falls_back_to_the_models_own_logits() -> None:
    class Shifted(type(tiny_model("llama", "AutoModelForCausalLM"))):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits + torch.arange(outputs.logits.shape[-1])
            return outputs

    torch.manual_seed(0)
    model = Shifted(tiny_config("llama")).eval()
    inputs = _inputs(model)
    targets = _targets(inputs)
    scorer = LanguageScorer(model, inputs)
    assert not scorer.chunked
    with torch.no_grad():
        expected = functional.cross_entropy(model(**inputs).logits.flatten(0, 1), targets.flatten(), reduction="sum")
        assert scorer.score(model, inputs, targets).loss().item() == pytest.approx(expected.item(), rel=1e-6)


def test_rows_and_right_answers_are_told_apart() -> None:
    model = _model("llama")
    inputs = _inputs(model)
    with torch.no_grad():
        best = model(**inputs).logits.argmax(-1)
        targets = torch.full_like(best, IGNORED)
        targets[0, 3:5], targets[2, 6] = best[0, 3:5], (best[2, 6] + 1) % 64
        scores = LanguageScorer(model, inputs).score(model, inputs, targets)
    assert scores.row.tolist() == [0, 0, 2]
    assert scores.correct is not None
    assert scores.correct.tolist() == [True, True, False]
    assert scores.by_row(scores.correct, 3).tolist() == [2.0, 0.0, 0.0]


def test_a_batch_without_targets_has_loss_and_gradient_zero() -> None:
    model = _model("gpt2")
    inputs = _inputs(model)
    loss = LanguageScorer(model, inputs).score(model, inputs, torch.full_like(inputs["input_ids"], IGNORED)).loss()
    loss.backward()
    assert loss.item() == 0.0
    assert all(value.grad is None or not value.grad.any() for value in model.parameters())


def test_no_logits_of_the_whole_batch_are_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_loss, "LOGITS_PER_CHUNK", 64 * 4)
    model = _model("llama")
    inputs, sizes = _inputs(model, 4, 16), []
    scorer = LanguageScorer(model, _inputs(model, 1, 4))
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden: sizes.append(hidden[..., 0].numel()) or forward(hidden)
    scorer.score(model, inputs, _targets(inputs)).loss().backward()
    assert max(sizes) <= 4


def _calls_in_training(model: Any, smoothing: float = 0.0) -> list[int]:
    """Rows that the output layer is called with, in a forward and a backward pass."""
    inputs, sizes = _inputs(model, 4, 16), []
    targets = _targets(inputs)
    scorer = LanguageScorer(model, _inputs(model, 1, 4))
    forward = model.get_output_embeddings().forward
    model.get_output_embeddings().forward = lambda hidden: sizes.append(hidden[..., 0].numel()) or forward(hidden)
    scorer.score(model, inputs, targets).loss(smoothing).backward()
    return sizes


def test_a_frozen_output_layer_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_loss, "LOGITS_PER_CHUNK", 64 * 4)
    count = int((_targets(_inputs(_model("llama"), 4, 16)) != IGNORED).sum())
    assert sum(_calls_in_training(_freeze_output(_model("llama")))) == count
    assert sum(_calls_in_training(_freeze_output(_model("llama")), smoothing=0.1)) == 2 * count


def test_the_last_chunk_of_a_trained_output_layer_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    count = int((_targets(_inputs(_model("llama"), 4, 16)) != IGNORED).sum())
    assert sum(_calls_in_training(_model("llama"))) == count
    monkeypatch.setattr(language_loss, "LOGITS_PER_CHUNK", 64 * 4)
    assert sum(_calls_in_training(_model("llama"))) == 2 * count - (count % 4 or 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_precision_holds_for_gradients_taken_at_once(smoothing: float, dtype: torch.dtype) -> None:
    gradients = []
    for model in (_model("llama"), _freeze_output(_model("llama"))):
        inputs = _inputs(model)
        scorer = LanguageScorer(model, _inputs(model, 2, 6))
        with torch.autocast("cpu", dtype=dtype):
            loss = scorer.score(model, inputs, _targets(inputs)).loss(smoothing)
        (loss * 256).backward()
        layers = {key: value for key, value in model.named_parameters() if "layers" in key}
        gradients.append({key: value.grad / 256 for key, value in layers.items()})
    for key, expected in gradients[0].items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradients[1][key], expected, rtol=0, atol=0.02 * scale, msg=key)
