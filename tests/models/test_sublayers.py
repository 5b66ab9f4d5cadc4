"""The places that are found by structure, against what a forward pass computes there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from ftkit.errors import ModelError
from ftkit.models.layout import ModelLayout
from ftkit.models.sublayers import attention_outputs, feed_forwards
from tests.tiny import FAMILIES, tiny_model

TEXT = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {**TEXT, "max_position_embeddings": 64}
BART = {
    "vocab_size": 64,
    "d_model": 16,
    "max_position_embeddings": 64,
    **{f"{side}_{what}": value for side in ("encoder", "decoder") for what, value in (("layers", 2), ("attention_heads", 2))},
    **{f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")},
    "decoder_start_token_id": 0,
}
GPT = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
VISION = {**{key: value for key, value in TEXT.items() if key != "vocab_size"}, "image_size": 8, "patch_size": 4, "num_channels": 1}
OPT = {**BERT, "ffn_dim": 32, "word_embed_proj_dim": 16}
DROPOUTS = {
    name: 0.0
    for name in (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "hidden_dropout",
        "attention_dropout",
        "dropout_rate",
        "dropout",
    )
}
POST_NORM: dict[str, dict[str, Any]] = {
    "albert": {**BERT, "embedding_size": 8},
    "bert-generation": BERT,
    "electra": {**BERT, "embedding_size": 8},
    "deberta": BERT,
    "mpnet": {**BERT, "pad_token_id": 0},
    "xlm-roberta": BERT,
    "longformer": {**BERT, "attention_window": 4},
    "openai-gpt": GPT,
    "marian": {**BART, "pad_token_id": 0},
    "opt": {**OPT, "do_layer_norm_before": False},
}
PRE_NORM: dict[str, dict[str, Any]] = {
    "mbart": BART,
    "pegasus": BART,
    "m2m_100": BART,
    "mt5": {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    "opt": OPT,
    "bloom": {**TEXT, "n_head": 2},
    "gpt_neo": {**BERT, "num_heads": 2, "num_layers": 2, "attention_types": [[["global"], 2]]},
    "mistral": {**BERT, "num_key_value_heads": 2},
    "qwen3": {**BERT, "num_key_value_heads": 2, "head_dim": 8},
    "gemma": {**BERT, "num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {**BERT, "num_key_value_heads": 2, "head_dim": 8},
    "olmo2": {**BERT, "num_key_value_heads": 2},
    "glm4": {**BERT, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0},
    "modernbert": {**BERT, "pad_token_id": 0},
    "megatron-bert": BERT,
    "roberta-prelayernorm": BERT,
    "xlm-roberta-xl": {**BERT, "pad_token_id": 1},
    "esm": {**BERT, "pad_token_id": 0, "emb_layer_norm_before": False},
    "deit": VISION,
    "beit": {**VISION, "layer_scale_init_value": 0.0},
    "dinov2": VISION,
    "clip_vision_model": VISION,
    "swin": {
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 2,
    },
}
PARALLEL: dict[str, dict[str, Any]] = {
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": BERT,
    "falcon": {**TEXT, "alibi": False, "new_decoder_architecture": False},
    "phi": {**BERT, "num_key_value_heads": 2},
}
"""Attention and feed-forward parts side by side, both on the block's input."""


def model_of(kind: str, settings: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings)
    for name in DROPOUTS.keys() & config.to_dict().keys():
        setattr(config, name, 0.0)
    return AutoModel.from_config(config).eval()


def inputs_of(model: Any) -> dict[str, Tensor]:
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 1, 8, 8)}
    ids = torch.randint(7, 60, (2, 6))
    return {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}


@dataclass
class Call:
    before: Tensor
    after: Tensor


def run(layout: ModelLayout, paths: set[str]) -> dict[str, Call]:
    """Input and output of modules in a forward pass of the whole model."""
    calls: dict[str, Call] = {}

    def record(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else next(iter(kwargs.values()))
            calls[path] = Call(before, output[0] if isinstance(output, tuple) else output)

        return hook

    for path in paths:
        layout.model.get_submodule(path).register_forward_hook(record(path), with_kwargs=True)
    with torch.no_grad():
        layout.model(**inputs_of(layout.model))
    return calls


def recorded(layout: ModelLayout) -> tuple[Any, dict[str, Call]]:
    places = feed_forwards(layout)
    leaves = {path for place in places for path in (place.output, place.entry, place.norm) if path}
    return places, run(layout, leaves | {block.name for block in layout.blocks})


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.reshape(other.shape), other, atol=1e-5)


CASES = [pytest.param(kind, settings, True, id=f"{kind} post") for kind, settings in POST_NORM.items()]
CASES += [pytest.param(kind, settings, False, id=f"{kind} pre") for kind, settings in PRE_NORM.items()]
CASES += [
    pytest.param(family, None, family in ("bert", "roberta", "distilbert", "deberta-v2", "bart"), id=family) for family in FAMILIES
]


def layout_of(kind: str, settings: dict[str, Any] | None) -> ModelLayout:
    return ModelLayout(tiny_model(kind, "AutoModel").eval() if settings is None else model_of(kind, settings))


@pytest.mark.parametrize(("kind", "settings", "post"), CASES)
def test_entry_plus_output_is_what_the_block_norms_or_hands_on(kind: str, settings: dict[str, Any] | None, post: bool) -> None:
    layout = layout_of(kind, settings)
    places, calls = recorded(layout)
    assert [place.block for place in places] == list(range(len(layout.blocks)))
    for place in places:
        total = calls[place.entry].before + calls[place.output].after.reshape(calls[place.entry].before.shape)
        assert bool(place.norm) == post
        found = calls[place.norm].before if post else calls[layout.blocks[place.block].name].after
        assert close(total, found), place
        assert place.width == total.shape[-1]


@pytest.mark.parametrize(("kind", "settings"), PARALLEL.items(), ids=list(PARALLEL))
def test_a_feed_forward_part_beside_attention_starts_from_the_block_input(kind: str, settings: dict[str, Any]) -> None:
    layout = layout_of(kind, settings)
    places, calls = recorded(layout)
    assert len(places) == 2
    for place in places:
        assert not place.norm
        assert close(calls[place.entry].before, calls[layout.blocks[place.block].name].before)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_outputs_follow_the_last_projection(family: str) -> None:
    layout = ModelLayout(tiny_model(family))
    places = attention_outputs(layout)
    stacks = [block.stack for block in layout.blocks]
    assert [(place.block, place.cross) for place in places] == [
        (block, cross) for block, stack in enumerate(stacks) for cross in ((False, True) if stack == "decoder" else (False,))
    ]
    dropped = {"bert", "roberta", "deberta-v2", "t5"}
    assert all(isinstance(layout.model.get_submodule(place.output), nn.Dropout) == (family in dropped) for place in places)
    assert {place.width for place in places} == {16}


def test_the_places_stay_the_same_after_an_adapter_was_put_in() -> None:
    from ftkit.methods.adapter import Adapter, Options

    for family in ("bert", "t5", "gpt2"):
        model = tiny_model(family)
        layout = ModelLayout(model)
        before = feed_forwards(layout), attention_outputs(layout)
        Adapter(Options(placement="houlsby", norms=True)).apply(model, layout)
        assert (feed_forwards(layout), attention_outputs(layout)) == before


def test_a_mixture_of_experts_is_refused() -> None:
    settings = {**BERT, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    with pytest.raises(ModelError, match=r"mixture of experts|feed-forward parts that are linear"):
        feed_forwards(ModelLayout(model_of("mixtral", settings)))
    shared = {**BERT, "num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1}
    shared |= {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    with pytest.raises(ModelError, match="mixture of experts"):
        feed_forwards(ModelLayout(model_of("qwen2_moe", shared)))
