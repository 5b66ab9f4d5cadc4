from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from ftkit.errors import ModelError
from ftkit.methods.ia3 import IA3, Options
from ftkit.models.trainable import to_uniform_dtype
from ftkit.tuners.wrap import merge
from tests.methods.cases import LABELS, batch_of, facts_of, fresh_model
from tests.tiny import FAMILIES

ENDS = {
    "bert": ({"self.key", "self.value"}, {"output.dense"}),
    "roberta": ({"self.key", "self.value"}, {"output.dense"}),
    "distilbert": ({"attention.k_lin", "attention.v_lin"}, {"ffn.lin2"}),
    "deberta-v2": ({"self.key_proj", "self.value_proj"}, {"output.dense"}),
    "gpt2": ({"attn.c_attn"}, {"mlp.c_proj"}),
    "llama": ({"self_attn.k_proj", "self_attn.v_proj"}, {"mlp.down_proj"}),
    "qwen2": ({"self_attn.k_proj", "self_attn.v_proj"}, {"mlp.down_proj"}),
    "t5": ({"SelfAttention.k", "SelfAttention.v", "EncDecAttention.k", "EncDecAttention.v"}, {"DenseReluDense.wo"}),
    "bart": ({f"{a}.{p}" for a in ("self_attn", "encoder_attn") for p in ("k_proj", "v_proj")}, {"0.fc2", "1.fc2"}),
    "vit": ({"attention.k_proj", "attention.v_proj"}, {"mlp.fc2"}),
}


def factors(family: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model with random factors, and its IA3 layers by plain path."""
    model, layout = fresh_model(family)
    wrapped: Any = IA3(Options(**options)).apply(model, layout)
    layers = {layout.canonical(path): module for path, module in wrapped.named_modules() if hasattr(module, "ia3_l")}
    torch.manual_seed(0)
    for module in layers.values():
        module.ia3_l["default"].data.uniform_(0.5, 1.5)
    return wrapped.eval(), layers


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_values_and_hidden_units_have_factors(family: str) -> None:
    _, layers = factors(family)
    ends = {feed_forward: set() for feed_forward in (False, True)}
    for path, module in layers.items():
        ends[module.is_feedforward].add(".".join(path.split(".")[-2:]))
    assert (ends[False], ends[True]) == ENDS[family]
    assert {module.fan_in_fan_out for module in layers.values()} == {family == "gpt2"}


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama", "vit"])
def test_equals_weights_that_are_scaled(family: str) -> None:
    wrapped, layers = factors(family)
    logits = wrapped(**batch_of(family)).logits
    functional.cross_entropy(logits, LABELS).backward()
    plain, _ = fresh_model(family)
    weights = {name: parameter.detach() for name, parameter in plain.named_parameters()}
    copies: dict[str, Tensor] = {}
    for path, module in layers.items():
        factor = copies[path] = module.ia3_l["default"].detach().flatten().clone().requires_grad_()
        scaled = torch.diag(factor)
        weight = weights[f"{path}.weight"]
        turned = weight.T if family == "gpt2" else weight  # out x in
        new = turned @ scaled if module.is_feedforward else scaled @ turned
        weights[f"{path}.weight"] = new.T if family == "gpt2" else new
        if not module.is_feedforward and f"{path}.bias" in weights:
            weights[f"{path}.bias"] = factor * weights[f"{path}.bias"]
    expected = functional_call(plain, weights, (), batch_of(family)).logits
    functional.cross_entropy(expected, LABELS).backward()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for path, module in layers.items():
        torch.testing.assert_close(module.ia3_l["default"].grad.flatten(), copies[path].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_bfloat16_base_is_merged_in_float32_and_rounded_once(family: str) -> None:
    model, layout = fresh_model(family, dtype=torch.bfloat16)
    wrapped: Any = IA3(Options()).apply(model, layout)
    paths = {layout.canonical(path): module for path, module in wrapped.named_modules() if hasattr(module, "ia3_l")}
    expected = {}
    for path, module in paths.items():
        factor = module.ia3_l["default"]
        factor.data.uniform_(0.5, 1.5)
        by_input = module.is_feedforward != (family == "gpt2")
        factor = factor.detach().flatten()
        expected[path] = (module.base_layer.weight.float() * (factor if by_input else factor[:, None])).bfloat16()
    merged = to_uniform_dtype(merge(wrapped), torch.bfloat16)
    for path, weight in expected.items():
        assert torch.equal(merged.get_submodule(path).weight, weight)


@pytest.mark.parametrize(
    "options",
    [{"targets": ["attention_out", "ffn_out"]}, {"blocks": [1]}, {"targets": ["ffn_out"]}, {"targets": ["ffn_in"], "blocks": [0]}],
)
@pytest.mark.parametrize("family", ["bert", "t5", "bart", "gpt2"])
def test_targets_and_blocks_give_exactly_the_chosen_layers(family: str, options: dict[str, Any]) -> None:
    _, layers = factors(family, **options)
    _, layout = fresh_model(family)
    roles = options.get("targets", ["key", "value", "ffn_out"] if family != "gpt2" else ["qkv", "ffn_out"])
    chosen = [layout.blocks[number].name for number in options.get("blocks", range(len(layout.blocks)))]
    expected = {path for path in layout.linears(*roles) if path.startswith(tuple(f"{name}." for name in chosen))}
    assert set(layers) == expected
    assert {path for path, module in layers.items() if module.is_feedforward} == expected & set(layout.linears("ffn_out"))


def test_starts_as_the_base() -> None:
    for family in ("bert", "gpt2"):
        model, layout = fresh_model(family)
        expected = model(**batch_of(family)).logits
        torch.testing.assert_close(IA3(Options()).apply(model, layout).eval()(**batch_of(family)).logits, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"targets": []}, "at least 1 item"), ({"targets": ["norm"]}, "'ffn_out'"), ({"blocks": ["a"]}, "block number")],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        Options(**options)


def test_missing_blocks_are_refused() -> None:
    assert "no block 5" in IA3(Options(blocks=[5])).refusal(facts_of("bert"))
    with pytest.raises(ModelError, match="no block 5"):
        IA3(Options(blocks=[5])).apply(*fresh_model("bert"))
