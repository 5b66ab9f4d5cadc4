"""Transformer blocks with adapters, written out by hand for some families: what the adapters' tuner is compared with.

Each function replaces the forward pass of the plain model's own modules. `adapters[place]` maps (..., d) -> (..., d), without residual;
places are `{block} attention` and `{block} feed-forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Adapters = Mapping[str, Callable[[Tensor], Tensor]]


def nothing(x: Tensor) -> Tensor:
    return x * 0


def post_norm(norm: nn.Module, residual: Tensor, h: Tensor, adapter: Callable[[Tensor], Tensor], placement: str) -> Tensor:
    """The end of a sublayer whose sum with the residual stream is normed."""
    if placement == "houlsby":
        return norm(residual + h + adapter(h))
    if placement == "pfeiffer":
        return norm(residual + h + adapter(norm(residual + h)))
    return norm(residual + h + adapter(residual))


def pre_norm(residual: Tensor, h: Tensor, adapter: Callable[[Tensor], Tensor], placement: str) -> Tensor:
    """The end of a sublayer whose input was normed."""
    if placement == "houlsby":
        return residual + h + adapter(h)
    return residual + h + adapter(residual + h if placement == "pfeiffer" else residual)


def install_bert(model: Any, adapters: Adapters, placement: str) -> None:
    for number, layer in enumerate(model.bert.encoder.layer):
        attention = adapters.get(f"{number} attention", nothing)
        forward = adapters.get(f"{number} feed-forward", nothing)

        def end_attention(h: Tensor, residual: Tensor, layer: Any = layer, adapter: Any = attention) -> Tensor:
            h = layer.attention.output.dense(h)
            return layer.attention.output.LayerNorm(residual + h + adapter(h))

        def end_forward(h: Tensor, residual: Tensor, layer: Any = layer, adapter: Any = forward) -> Tensor:
            return post_norm(layer.output.LayerNorm, residual, layer.output.dense(h), adapter, placement)

        layer.attention.output.forward, layer.output.forward = end_attention, end_forward


def install_distilbert(model: Any, adapters: Adapters, placement: str) -> None:
    for number, layer in enumerate(model.distilbert.transformer.layer):

        def forward(x: Tensor, attention_mask: Any = None, layer: Any = layer, number: int = number, **kwargs: Any) -> Tensor:
            h, _ = layer.attention(x, attention_mask=attention_mask, **kwargs)
            x = layer.sa_layer_norm(x + h + adapters.get(f"{number} attention", nothing)(h))
            return post_norm(layer.output_layer_norm, x, layer.ffn(x), adapters[f"{number} feed-forward"], placement)

        layer.forward = forward


def install_gpt2(model: Any, adapters: Adapters, placement: str) -> None:
    for number, layer in enumerate(model.transformer.h):

        def forward(x: Tensor, past: Any, mask: Any, *_: Any, layer: Any = layer, number: int = number, **kwargs: Any) -> Tensor:
            kwargs.pop("encoder_attention_mask", None)
            h, _ = layer.attn(layer.ln_1(x), past_key_values=past, attention_mask=mask, **kwargs)
            x = x + h + adapters.get(f"{number} attention", nothing)(h)
            return pre_norm(x, layer.mlp(layer.ln_2(x)), adapters[f"{number} feed-forward"], placement)

        layer.forward = forward


def install_llama(model: Any, adapters: Adapters, placement: str) -> None:
    for number, layer in enumerate(model.model.layers):

        def forward(x: Tensor, *, layer: Any = layer, number: int = number, **kwargs: Any) -> Tensor:
            h, _ = layer.self_attn(hidden_states=layer.input_layernorm(x), **kwargs)
            x = x + h + adapters.get(f"{number} attention", nothing)(h)
            h = layer.mlp(layer.post_attention_layernorm(x))
            return pre_norm(x, h, adapters[f"{number} feed-forward"], placement)

        layer.forward = forward


def install_vit(model: Any, adapters: Adapters, placement: str) -> None:
    for number, layer in enumerate(model.vit.layers):

        def forward(x: Tensor, *args: Any, layer: Any = layer, number: int = number, **kwargs: Any) -> Tensor:
            h, _ = layer.attention(layer.layernorm_before(x), *args, **kwargs)
            x = x + h + adapters.get(f"{number} attention", nothing)(h)
            return pre_norm(x, layer.mlp(layer.layernorm_after(x)), adapters[f"{number} feed-forward"], placement)

        layer.forward = forward


def install_t5(model: Any, adapters: Adapters, placement: str) -> None:
    for number, block in enumerate([*model.transformer.encoder.block, *model.transformer.decoder.block]):
        first, last = block.layer[0], block.layer[-1]

        def attention(x: Tensor, attention_mask: Any = None, layer: Any = first, number: int = number, **kwargs: Any) -> Any:
            outputs = layer.SelfAttention(layer.layer_norm(x), mask=attention_mask, **kwargs)
            return (x + outputs[0] + adapters.get(f"{number} attention", nothing)(outputs[0]), *outputs[1:])

        def feed_forward(x: Tensor, layer: Any = last, number: int = number) -> Tensor:
            return pre_norm(x, layer.DenseReluDense(layer.layer_norm(x)), adapters[f"{number} feed-forward"], placement)

        first.forward, last.forward = attention, feed_forward


INSTALL: Mapping[str, Callable[[Any, Adapters, str], None]] = {
    "bert": install_bert,
    "distilbert": install_distilbert,
    "gpt2": install_gpt2,
    "llama": install_llama,
    "t5": install_t5,
    "vit": install_vit,
}
