from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ftkit.errors import ModelError
from ftkit.methods.parts.prefixes import START
from ftkit.methods.prefix_tuning import Options, PrefixTuning
from ftkit.models.layout import ModelLayout
from tests.methods.cases import facts_of, fresh_model


def groups_of(family: str, **options: Any) -> dict[str, torch.Size]:
    model = PrefixTuning(Options(length=2, reparametrization=False, **options)).apply(*fresh_model(family))
    encoders = model.base_model.layer.attention_prefix_encoder["default"]
    return {name: encoder.vectors.shape for name, encoder in encoders.items()}


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("bert", {"bert-encoder-layer-attention-self"}),
        ("gpt2", {"transformer-h-attn"}),
        ("vit", {"vit-layers-attention"}),
        (
            "t5",
            {
                "transformer-encoder-block-layer-SelfAttention",
                "transformer-decoder-block-layer-SelfAttention",
                "transformer-decoder-block-layer-EncDecAttention",
            },
        ),
    ],
)
def test_every_attention_of_a_model_gets_a_prefix(family: str, names: set[str]) -> None:
    assert groups_of(family) == dict.fromkeys(names, torch.Size([2, 2 * 2 * 16]))


def test_keys_that_heads_share_are_counted_once() -> None:
    assert groups_of("qwen2") == {"model-layers-self_attn": torch.Size([2, 2 * 2 * 8])}


def test_blocks_are_chosen() -> None:
    assert set(groups_of("bart", blocks=["0-1"])) == {"model-encoder-layers-self_attn"}
    assert groups_of("bert", blocks=[1]) == {"bert-encoder-layer-attention-self": torch.Size([2, 2 * 16])}
    with pytest.raises(ModelError, match="no block 7"):
        groups_of("bert", blocks=[7])


def test_new_attention_of_a_pair_gets_none() -> None:
    from tests.tuners.prompted import plain_model

    model = plain_model("bert + bert", "")
    fresh = [name for name, _ in model.named_parameters() if ".crossattention." in name]
    layout = ModelLayout(model, fresh, assembled=True)
    wrapped = PrefixTuning(Options(length=2, reparametrization=False)).apply(model, layout)
    encoders = wrapped.base_model.layer.attention_prefix_encoder["default"]
    assert set(encoders) == {"encoder-encoder-layer-attention-self", "decoder-bert-encoder-layer-attention-self"}


def test_a_prefix_trained_directly_starts_small() -> None:
    model = PrefixTuning(Options(length=200, reparametrization=False)).apply(*fresh_model("bert"))
    (encoder,) = model.base_model.layer.attention_prefix_encoder["default"].values()
    assert encoder.vectors.std().item() == pytest.approx(START, rel=0.05)


def test_networks_are_for_models_that_write() -> None:
    for family, expected in (("bert", False), ("vit", False), ("gpt2", True), ("t5", True)):
        assert PrefixTuning(Options()).defaults(facts_of(family))["method.reparametrization"].value is expected
    rates = [PrefixTuning(Options(reparametrization=chosen)).defaults(facts_of("gpt2")) for chosen in (True, False)]
    assert rates[0]["train.learning_rate"].value < rates[1]["train.learning_rate"].value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "greater than or equal to 1"),
        ({"reparametrization": False, "hidden_size": 4}, "no effect with `reparametrization: false`"),
        ({"blocks": ["x"]}, "is no block number"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options(**options)


def test_what_the_facts_rule_out_is_refused_early() -> None:
    assert "no block 7" in PrefixTuning(Options(blocks=[7])).refusal(facts_of("bert"))
    assert "no effect without" in PrefixTuning(Options(hidden_size=4)).refusal(facts_of("bert"))
    assert PrefixTuning(Options(hidden_size=4)).refusal(facts_of("gpt2")) == ""
    assert "patches in one sequence" in PrefixTuning(Options()).refusal(replace(facts_of("vit"), model_type="swin"))
    assert "computes attention in a way of its own" in PrefixTuning(Options()).refusal(
        replace(facts_of("bert"), model_type="mpnet")
    )


@pytest.mark.parametrize("model_type", ["mpnet", "gpt_neo"])
def test_attention_that_takes_no_prefix_is_refused(model_type: str) -> None:
    from transformers import AutoConfig, AutoModel

    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}
    layers: dict[str, Any] = {"num_hidden_layers": 2}
    if model_type == "gpt_neo":
        layers = {"num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]}
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **{**sizes, **layers}))
    with pytest.raises(ModelError, match="computes attention in a way of its own, which takes no prefix"):
        PrefixTuning(Options()).apply(model, ModelLayout(model))
