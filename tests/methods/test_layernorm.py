from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.func import functional_call

from ftkit.methods.layernorm import LayerNormTuning, Options
from ftkit.models.layout import ModelLayout
from ftkit.models.norms import norms_by_place
from tests.methods.cases import LABELS, batch_of, facts_of, fresh_model, logits_of


def changes_of(model: torch.nn.Module, layout: ModelLayout) -> dict[str, torch.nn.Parameter]:
    """The trained additions by the plain name of what they are added to."""
    kinds = {"norm_change_gain": "weight", "norm_change_bias": "bias"}
    return {
        f"{layout.canonical(name)}.{kinds[name.split('.')[-2]]}": parameter
        for name, parameter in model.named_parameters()
        if ".norm_change_" in name
    }


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "vit", "deberta-v2"])
def test_equals_a_model_whose_norms_are_trained_in_place(family: str) -> None:
    plain, layout = fresh_model(family)
    weights = {name: parameter.detach() for name, parameter in plain.named_parameters()}
    names = [f"{norm}.{kind}" for norm in layout.norms() for kind in ("weight", "bias") if f"{norm}.{kind}" in weights]
    generator = torch.Generator().manual_seed(3)
    deltas = {name: torch.randn(weights[name].shape, generator=generator).mul(0.3).requires_grad_() for name in names}
    expected = functional_call(
        plain, weights | {name: weights[name] + d for name, d in deltas.items()}, (), batch_of(family)
    ).logits
    torch.nn.functional.cross_entropy(expected, LABELS).backward()

    model, layout = fresh_model(family)
    model = LayerNormTuning(Options()).apply(model, layout)
    own = changes_of(model, layout)
    assert own.keys() == deltas.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(deltas[name])
    logits = model(**batch_of(family)).logits
    torch.nn.functional.cross_entropy(logits, LABELS).backward()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for name, parameter in own.items():
        torch.testing.assert_close(parameter.grad, deltas[name].grad, atol=1e-5, rtol=1e-4)


PLACES: list[tuple[str, str, list[str]]] = [
    ("bert", "attention", ["bert.encoder.layer.0.attention.output.LayerNorm", "bert.encoder.layer.1.attention.output.LayerNorm"]),
    ("bert", "feed-forward", ["bert.encoder.layer.0.output.LayerNorm", "bert.encoder.layer.1.output.LayerNorm"]),
    ("bert", "final", ["bert.encoder.layer.1.output.LayerNorm"]),
    ("distilbert", "attention", [f"distilbert.transformer.layer.{n}.sa_layer_norm" for n in (0, 1)]),
    ("gpt2", "attention", ["transformer.h.0.ln_1", "transformer.h.1.ln_1"]),
    ("gpt2", "feed-forward", ["transformer.h.0.ln_2", "transformer.h.1.ln_2"]),
    ("gpt2", "final", ["transformer.ln_f"]),
    ("llama", "attention", ["model.layers.0.input_layernorm", "model.layers.1.input_layernorm"]),
    ("llama", "final", ["model.norm"]),
    ("t5", "final", ["transformer.encoder.final_layer_norm", "transformer.decoder.final_layer_norm"]),
    ("bart", "final", [f"model.{stack}.layers.1.final_layer_norm" for stack in ("encoder", "decoder")]),
    ("vit", "final", ["vit.layernorm"]),
]


@pytest.mark.parametrize(("family", "place", "expected"), PLACES)
def test_norms_are_told_apart_by_the_part_they_belong_to(family: str, place: Any, expected: list[str]) -> None:
    model, layout = fresh_model(family)
    assert norms_by_place(layout, place) == expected
    model = LayerNormTuning(Options(norms=place, biases=False)).apply(model, layout)
    assert changes_of(model, layout).keys() == {f"{path}.weight" for path in expected}


def test_cross_attention_counts_as_attention() -> None:
    _, layout = fresh_model("bart")
    assert "model.decoder.layers.0.encoder_attn_layer_norm" in norms_by_place(layout, "attention")
    inside = {*norms_by_place(layout, "attention"), *norms_by_place(layout, "feed-forward")}
    outside = set(layout.norms()) - inside
    assert outside == {"model.encoder.layernorm_embedding", "model.decoder.layernorm_embedding"}


def test_small_changes_are_not_rounded_away_on_a_bfloat16_base() -> None:
    model, layout = fresh_model("llama", dtype=torch.bfloat16)
    model = LayerNormTuning(Options(norms="final")).apply(model, layout)
    before = logits_of(model, "llama")
    with torch.no_grad():
        for parameter in changes_of(model, layout).values():
            parameter.fill_(1e-3)
    assert (torch.ones(1, dtype=torch.bfloat16) + 1e-3).to(torch.bfloat16) == 1
    assert not torch.equal(logits_of(model, "llama"), before)


def test_bad_options_and_models_are_refused() -> None:
    from dataclasses import replace

    with pytest.raises(ValidationError, match="'all', 'attention'"):
        Options(norms="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown place"):
        norms_by_place(fresh_model("bert")[1], "some")
    assert "have no gains" in LayerNormTuning(Options()).refusal(replace(facts_of("llama"), model_type="olmo"))
    assert LayerNormTuning(Options()).refusal(facts_of("llama")) == ""
