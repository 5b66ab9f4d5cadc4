from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.func import functional_call

from ftkit.errors import ModelError
from ftkit.methods.bitfit import BitFit, Options
from tests.methods.cases import LABELS, batch_of, facts_of, fresh_model


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_equals_a_model_whose_biases_are_trained_in_place(family: str) -> None:
    plain, layout = fresh_model(family)
    deltas = {name: torch.randn(plain.get_parameter(name).shape).mul(0.3).requires_grad_() for name in layout.biases()}
    weights = {name: parameter.detach() for name, parameter in plain.named_parameters()}
    summed = {**weights, **{name: weights[name] + delta for name, delta in deltas.items()}}
    expected = functional_call(plain, summed, (), batch_of(family)).logits
    torch.nn.functional.cross_entropy(expected, LABELS).backward()

    model, layout = fresh_model(family)
    model = BitFit(Options()).apply(model, layout)
    own = {f"{layout.canonical(name)}.bias": parameter for name, parameter in model.named_parameters() if "bitfit" in name}
    assert own.keys() == deltas.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(deltas[name])
    logits = model(**batch_of(family)).logits
    torch.nn.functional.cross_entropy(logits, LABELS).backward()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for name, parameter in own.items():
        torch.testing.assert_close(parameter.grad, deltas[name].grad, atol=1e-5, rtol=0)


def test_the_subset_is_that_of_the_paper() -> None:
    model, layout = fresh_model("bert")
    model = BitFit(Options(subset="query-ffn")).apply(model, layout)
    own = {layout.canonical(name) for name, p in model.named_parameters() if p.requires_grad and "bitfit" in name}
    places = ("attention.self.query", "intermediate.dense")
    assert own == {f"bert.encoder.layer.{block}.{place}" for block in (0, 1) for place in places}


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_models_without_biases_are_refused_with_advice(family: str) -> None:
    assert BitFit(Options()).refusal(facts_of(family)) == (
        f"{family} models have no biases. BitFit trains nothing but biases; use `lora` for this model"
    )
    model, layout = fresh_model(family)
    with pytest.raises(ModelError, match=r"has no biases.*use `lora`"):
        BitFit(Options()).apply(model, layout)


def test_a_fused_query_has_no_bias_of_its_own() -> None:
    model, layout = fresh_model("llama")
    with pytest.raises(ModelError, match="no biases of its own for the query"):
        BitFit(Options(subset="query-ffn")).apply(model, layout)


def test_a_config_that_adds_biases_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "attention_bias": True}))
    assert BitFit(Options()).refusal(replace(facts_of("llama"), path=tmp_path)) == ""
    assert BitFit(Options()).refusal(facts_of("qwen2")) == ""


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="'all' or 'query-ffn'"):
        Options(subset="values")  # type: ignore[arg-type]
