"""Tiny models with a soft prompt or a prefix of random values, for tests of what they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ftkit.models.layout import ModelLayout
from ftkit.models.stacks import attention_widths, input_place
from ftkit.tuners.attention_prefix import AttentionPrefixConfig, group_of
from ftkit.tuners.soft_prompt import SoftPromptConfig
from ftkit.tuners.wrap import wrap
from tests.tiny import tiny_config, tiny_model

LENGTH = 3
SPREAD = 0.5


def plain_model(family: str, auto_class: str) -> Any:
    """A tiny model whose outputs tell inputs apart; `bert + bert` is a pair."""
    if family == "bert + bert":
        model = _pair()
    else:
        model = tiny_model(family, auto_class, num_labels=2 if "QuestionAnswering" in auto_class else 3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25, generator=generator)
    return model.eval()


def _pair() -> Any:
    from transformers import AutoModel, AutoModelForCausalLM, EncoderDecoderConfig, EncoderDecoderModel

    torch.manual_seed(0)
    decoder = tiny_config("bert", is_decoder=True, add_cross_attention=True)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        tiny_config("bert"), decoder, decoder_start_token_id=2, pad_token_id=0
    )
    encoder, reader = (
        AutoModel.from_config(config.encoder, add_pooling_layer=False),
        AutoModelForCausalLM.from_config(config.decoder),
    )
    return EncoderDecoderModel(config=config, encoder=encoder, decoder=reader)


def with_prompt(family: str, auto_class: str) -> tuple[Any, Tensor]:
    """The model with a random prompt, and the prompt (a trained parameter)."""
    model = plain_model(family, auto_class)
    layout = ModelLayout(model)
    place = input_place(layout)
    config = SoftPromptConfig(
        length=LENGTH,
        width=place.width,
        target_modules=layout.suffixes([place.target]),
        causal=place.causal,
        output_module=place.output,
        decoder_module=place.decoder,
    )
    wrapped = wrap(model, layout, config, _declares("soft_prompt_")).eval()
    vectors = wrapped.base_model.layer.soft_prompt_encoder["default"].vectors
    _randomize(vectors)
    return wrapped, vectors


def with_prefix(family: str, auto_class: str) -> tuple[Any, dict[str, Tensor]]:
    """The model with random prefixes, and these by group: (length, modules * 2 * width)."""
    model = plain_model(family, auto_class)
    layout = ModelLayout(model)
    modules = attention_widths(layout, layout.blocks)
    groups: dict[str, list[int]] = {}
    for path, width in modules.items():
        groups.setdefault(group_of(path), [0, width])[0] += 1
    config = AttentionPrefixConfig(length=LENGTH, groups=groups, target_modules=layout.suffixes(list(modules)))
    wrapped = wrap(model, layout, config, _declares("attention_prefix_")).eval()
    encoders = wrapped.base_model.layer.attention_prefix_encoder["default"]
    for encoder in encoders.values():
        _randomize(encoder.vectors)
    return wrapped, {name: encoder.vectors for name, encoder in encoders.items()}


def _declares(prefix: str) -> Any:
    return lambda name, layout: f".{prefix}" in name or ".modules_to_save." in name


def _randomize(values: Tensor) -> None:
    with torch.no_grad():
        values.normal_(0, SPREAD, generator=torch.Generator().manual_seed(5))


def tokens(rows: int = 2, length: int = 6, seed: int = 3) -> Tensor:
    """Token ids without special ones: int64 (rows, length)."""
    return torch.randint(7, 48, (rows, length), generator=torch.Generator().manual_seed(seed))


def gradient(loss: Tensor, values: Tensor) -> Tensor:
    """Of a loss by the values; nothing is accumulated."""
    (found,) = torch.autograd.grad(loss, [values], retain_graph=True)
    return found


def frozen_but_for(model: nn.Module, values: Any) -> None:
    """Checks that a backward pass reaches nothing but these parameters and the head."""
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    allowed = {name for name, parameter in model.named_parameters() if any(parameter is value for value in values)}
    assert {name for name in reached if ".modules_to_save." not in name} == allowed
