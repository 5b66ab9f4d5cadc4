"""BERT and GPT-2 written out in plain torch operations, with a prefix, updates and adapters where a method puts them.

What reference tests of methods that do several things at once compare with. Everything a method adds is a function of the reference's
own; `Additions` without arguments gives the plain model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

HEADS = 2
OfBlock = Callable[[int, Tensor], Tensor]


def nothing(block: int, x: Tensor) -> Tensor:
    return torch.zeros_like(x)


@dataclass
class Additions:
    """What is added, by block. prefix: (k, 2, width). gate: (..., 1). query, value, qkv: outputs of updates. adapter: without residual."""

    prefix: Callable[[int], Tensor | None] = lambda block: None
    gate: OfBlock = lambda block, x: torch.ones_like(x[..., :1])
    query: OfBlock = nothing
    value: OfBlock = nothing
    qkv: OfBlock = lambda block, x: torch.zeros_like(x).repeat(1, 1, 3)
    adapter: OfBlock = nothing
    placement: str = "parallel"


def attention(q: Tensor, k: Tensor, v: Tensor, prefix: Tensor | None, gate: Tensor, *, causal: bool) -> Tensor:
    """softmax(q [g P_K; K] / sqrt(size)) [g P_V; V], one query at a time, since each has a gate of its own."""
    size, count = q.shape[-1] // HEADS, q.shape[1]
    rows = []
    for t in range(count):
        seen = t + 1 if causal else count
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            keys, values = k[:, :seen, part], v[:, :seen, part]
            if prefix is not None:
                g = gate[:, t, :, None]
                keys, values = (torch.cat([g * prefix[None, :, n, part], old], dim=1) for n, old in ((0, keys), (1, values)))
            scores = (q[:, t : t + 1, part] @ keys.transpose(1, 2)) / size**0.5
            heads.append(scores.softmax(-1) @ values)
        rows.append(torch.cat(heads, dim=-1))
    return torch.cat(rows, dim=1)


def bert_by_hand(model: Any, inputs: dict[str, Tensor], add: Additions) -> Tensor:
    """Logits of a sequence classifier whose batch has no padding."""
    x = model.bert.embeddings(input_ids=inputs["input_ids"])
    for number, layer in enumerate(model.bert.encoder.layer):
        own = layer.attention.self
        q, k, v = own.query(x) + add.query(number, x), own.key(x), own.value(x) + add.value(number, x)
        y = attention(q, k, v, add.prefix(number), add.gate(number, x), causal=False)
        x = layer.attention.output.LayerNorm(layer.attention.output.dense(y) + x)
        h = layer.output.dense(functional.gelu(layer.intermediate.dense(x)))
        norm, z = layer.output.LayerNorm, x + h
        x = norm(z + add.adapter(number, x if add.placement == "parallel" else norm(z)))
    return model.classifier(torch.tanh(model.bert.pooler.dense(x[:, 0])))


def gpt2_by_hand(model: Any, inputs: dict[str, Tensor], add: Additions) -> Tensor:
    """Logits of a sequence classifier, read off the last token."""
    body, tokens = model.transformer, inputs["input_ids"]
    x = body.wte(tokens) + body.wpe(torch.arange(tokens.shape[1]))
    for number, layer in enumerate(body.h):
        normed = layer.ln_1(x)
        q, k, v = (layer.attn.c_attn(normed) + add.qkv(number, normed)).chunk(3, dim=-1)
        y = attention(q, k, v, add.prefix(number), add.gate(number, normed), causal=True)
        x = x + layer.attn.c_proj(y)
        h = layer.mlp.c_proj(functional.gelu(layer.mlp.c_fc(layer.ln_2(x)), approximate="tanh"))
        x = x + h + add.adapter(number, x if add.placement == "parallel" else x + h)
    return model.score(body.ln_f(x))[:, -1]


BY_HAND = {"bert": bert_by_hand, "gpt2": gpt2_by_hand}


class Copies:
    """Copies of the trained parameters of a model, whose gradients are compared with those of the originals."""

    def __init__(self, model: torch.nn.Module) -> None:
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.originals = {name: parameter for name, parameter in trained if "modules_to_save" not in name}
        self._copies = {id(parameter): parameter.detach().clone().requires_grad_() for parameter in self.originals.values()}

    def __call__(self, parameter: Tensor) -> Tensor:
        return self._copies[id(parameter)]

    def linear(self, layer: Any, x: Tensor) -> Tensor:
        """x W' + b with the copies of a layer's weight and bias."""
        y = x @ self(layer.weight).T
        return y if layer.bias is None else y + self(layer.bias)

    def prefix(self, encoder: Any, modules: int) -> Tensor:
        """(k, modules, 2, width) out of a network W_2 tanh(W_1 D + b_1) + b_2."""
        first, _, last = encoder.network
        flat = self.linear(last, torch.tanh(self.linear(first, self(encoder.inputs))))
        return flat.view(len(flat), modules, 2, -1)

    def assert_equal_gradients(self) -> None:
        """That each original has the gradient of its copy, and that none is zero."""
        for name, parameter in self.originals.items():
            expected = self(parameter).grad
            assert expected is not None, name
            assert expected.abs().max() > 0, name
            torch.testing.assert_close(parameter.grad, expected, atol=1e-8, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
