from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from ftkit.errors import ModelError
from ftkit.methods.unipelt import Options, UniPELT
from ftkit.models.layout import ModelLayout
from ftkit.tuners.bottleneck import AdapterLayer
from ftkit.tuners.unipelt import GatedAdapter, GatedUpdate
from tests.methods.blocks_by_hand import BY_HAND, Additions, Copies
from tests.methods.cases import LABELS, batch_of, facts_of, fresh_model, logits_of, make_method

SMALL: dict[str, Any] = {"length": 3, "hidden_size": 6, "rank": 2, "alpha": 3.0, "reduction_factor": 4.0}


def random_model(family: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, ModelLayout]:
    """With random values for all that is trained."""
    model, layout = fresh_model(family, dtype=dtype)
    wrapped: Any = UniPELT(Options(**{**SMALL, **options})).apply(model, layout).to(dtype).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".unipelt_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return wrapped, layout


def parts_of(wrapped: Any, layout: ModelLayout, kind: type) -> dict[tuple[int, str], Any]:
    """Adapters of one kind by block and last segment of the module's path."""
    return {
        (layout.depth(path) - 1, path.rpartition(".")[2]): layer.parts["default"].adapter
        for path, layer in wrapped.named_modules()
        if isinstance(layer, AdapterLayer) and isinstance(getattr(layer.parts["default"], "adapter", None), kind)
    }


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", BY_HAND)
def test_equals_blocks_that_are_written_out(family: str, implementation: str) -> None:
    wrapped, layout = random_model(family)
    wrapped.get_base_model().set_attn_implementation(implementation)
    logits = wrapped(**batch_of(family)).logits
    functional.cross_entropy(logits, LABELS).backward()

    copies, prefixes = Copies(wrapped), wrapped.base_model.layer
    (encoder,) = prefixes.encoders["default"].values()
    prefix = copies.prefix(encoder, modules=2)
    gates = list(prefixes.unipelt_gates["default"].values())
    updates = parts_of(wrapped, layout, GatedUpdate)
    adapters = {block: adapter for (block, _), adapter in parts_of(wrapped, layout, GatedAdapter).items()}

    def gate(module: Any, x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-copies.linear(module.linear, x)))

    def update(name: str, block: int, x: Tensor) -> Tensor:
        own = updates[block, name]
        return gate(own.gate, x) * (3.0 / 2) * copies.linear(own.up, copies.linear(own.down, x))

    def adapter(block: int, x: Tensor) -> Tensor:
        own = adapters[block]
        change = copies.linear(own.adapter.up, torch.relu(copies.linear(own.adapter.down, x)))
        return gate(own.gate, x) * change

    updated = (
        {"qkv": lambda block, x: update("c_attn", block, x)}
        if family == "gpt2"
        else {name: lambda block, x, n=name: update(n, block, x) for name in ("query", "value")}
    )
    additions = Additions(
        prefix=lambda block: prefix[:, block],
        gate=lambda block, x: gate(gates[block], x),
        adapter=adapter,
        placement="pfeiffer",
        **updated,
    )
    plain, _ = fresh_model(family, dtype=torch.float64)
    expected = BY_HAND[family](plain, batch_of(family), additions)
    functional.cross_entropy(expected, LABELS).backward()
    assert set(adapters) == {0, 1}
    torch.testing.assert_close(logits, expected, atol=1e-8, rtol=0)
    copies.assert_equal_gradients()


def test_heads_that_share_keys_take_gates() -> None:
    """Behind closed gates it makes no difference what the prefix is."""
    wrapped, _ = random_model("qwen2", torch.float32, length=4)
    plain, _ = fresh_model("qwen2")
    assert (logits_of(wrapped, "qwen2") - logits_of(plain, "qwen2")).abs().max() > 1e-2
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".gate.linear." in name or ".unipelt_gates." in name:
                parameter.fill_(-1e4 if name.endswith("bias") else 0.0)
    with torch.no_grad():
        for encoder in wrapped.base_model.layer.encoders["default"].values():
            encoder.network[2].bias.fill_(5.0)
    once = logits_of(wrapped, "qwen2")
    with torch.no_grad():
        for encoder in wrapped.base_model.layer.encoders["default"].values():
            encoder.network[2].bias.fill_(-2.0)
    torch.testing.assert_close(logits_of(wrapped, "qwen2"), once, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_text_is_computed_the_same_alone_and_in_a_padded_batch(family: str) -> None:
    wrapped, _ = random_model(family, torch.float32)
    tokens = torch.randint(7, 60, (1, 5), generator=torch.Generator().manual_seed(0))
    alone = wrapped(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    padded = torch.cat([tokens, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones_like(tokens), torch.zeros(1, 3, dtype=torch.long)], dim=1)
    torch.testing.assert_close(wrapped(input_ids=padded, attention_mask=mask).logits, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_writing_with_and_without_a_cache_gives_the_same_tokens(family: str) -> None:
    from tests.tuners.prompted import plain_model

    model = plain_model(family, "AutoModelForCausalLM")
    wrapped: Any = UniPELT(Options(**SMALL)).apply(model, ModelLayout(model)).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".unipelt_" in name:
                parameter.normal_(0, 0.4, generator=torch.Generator().manual_seed(len(name)))
    tokens = torch.randint(7, 60, (2, 4), generator=torch.Generator().manual_seed(0))
    texts = [
        wrapped.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=5, do_sample=False, use_cache=cache
        )
        for cache in (True, False)
    ]
    assert torch.equal(*texts)


def test_an_unloaded_model_is_the_plain_one() -> None:
    wrapped, _ = random_model("bert", torch.float32)
    plain, _ = fresh_model("bert")
    unloaded = wrapped.unload()
    assert set(dict(unloaded.named_parameters())) == set(dict(plain.named_parameters()))
    torch.testing.assert_close(logits_of(unloaded, "bert"), logits_of(plain, "bert"), atol=1e-6, rtol=0)


def test_sizes_are_those_of_the_paper() -> None:
    defaults = make_method("unipelt", {"reduction_factor": 16.0}, "bert").options
    assert (defaults.length, defaults.rank, defaults.alpha, defaults.reduction_factor) == (10, 8, 8.0, 16.0)


def test_what_has_no_place_for_gates_is_refused() -> None:
    assert "no place for a gate" in UniPELT(Options()).refusal(facts_of("deberta-v2"))
    assert "takes no prefix" in UniPELT(Options()).refusal(replace(facts_of("bert"), model_type="mpnet"))
    assert "no block 7" in UniPELT(Options(blocks=[7])).refusal(facts_of("bert"))
    with pytest.raises(ModelError, match="no place for a gate"):
        UniPELT(Options()).apply(*fresh_model("deberta-v2"))


@pytest.mark.parametrize("options", [{"length": 0}, {"rank": 0}, {"reparametrization": False, "hidden_size": 3}, {"dropout": 1.0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**options)
