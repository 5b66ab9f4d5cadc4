from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from ftkit.methods.adapter import Adapter
from ftkit.methods.adapter import Options as AdapterOptions
from ftkit.methods.compacter import Compacter
from ftkit.methods.compacter import Options as CompacterOptions
from ftkit.models.layout import ModelLayout
from ftkit.tuners.adapter import drop_adapters
from ftkit.tuners.bottleneck import ACTIVATIONS, AdapterLayer, Bottleneck
from tests.methods.cases import batch_of, fresh_model, logits_of
from tests.tiny import tiny_model

ADAPTER_STATE = (".bottleneck_", ".compacter_")


def filled(family: str, seed: int = 1, **options: Any) -> tuple[PeftModel, ModelLayout]:
    """A model whose adapter has random values."""
    model, layout = fresh_model(family)
    wrapped: Any = Adapter(AdapterOptions(**{"bottleneck": 4, **options})).apply(model, layout)
    randomize(wrapped, seed)
    return wrapped.eval(), layout


def randomize(wrapped: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if any(part in name for part in ADAPTER_STATE):
            parameter.data.normal_(0, 0.3, generator=generator)


# --- the module --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [1.0, 4.0, "learned"])
@pytest.mark.parametrize("layer_norm", ["none", "before", "after"])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_a_bottleneck_equals_its_formula(activation: str, layer_norm: str, scaling: float | str) -> None:
    torch.manual_seed(0)
    module = Bottleneck(6, 3, activation=activation, layer_norm=layer_norm, scaling=scaling)
    for parameter in module.parameters():
        parameter.data.normal_()
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in module.named_parameters()}
    x = torch.randn(2, 5, 6)

    def norm(values: Tensor) -> Tensor:
        centered = values - values.mean(-1, keepdim=True)
        return weights["norm.weight"] * centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() + weights["norm.bias"]

    functions: dict[str, Any] = {
        "relu": lambda v: v.clamp(min=0),
        "gelu": lambda v: v * 0.5 * (1 + torch.erf(v / 2**0.5)),
        "gelu_new": lambda v: 0.5 * v * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (v + 0.044715 * v**3))),
        "silu": lambda v: v * torch.sigmoid(v),
        "tanh": torch.tanh,
    }
    inputs = norm(x) if layer_norm == "before" else x
    hidden = functions[activation](inputs @ weights["down.weight"].T + weights["down.bias"])
    change = hidden @ weights["up.weight"].T + weights["up.bias"]
    change = change * (weights["scale"] if scaling == "learned" else scaling)
    expected = norm(change) if layer_norm == "after" else change
    found = module(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("layer_norm", ["none", "before", "after"])
@pytest.mark.parametrize(("init", "most"), [("normal", 0.05), ("truncated", 0.02), ("zero-up", 0.0)])
def test_an_adapter_starts_nearly_as_nothing(init: str, most: float, layer_norm: str) -> None:
    torch.manual_seed(0)
    module = Bottleneck(64, 8, activation="relu", layer_norm=layer_norm, init=init)
    assert module(torch.randn(100, 64)).abs().max() <= (0.0 if layer_norm == "after" else most)
    module(torch.randn(4, 64)).sum().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in module.parameters())


def test_truncated_weights_stay_within_two_deviations() -> None:
    module = Bottleneck(128, 64, activation="gelu", init="truncated")
    weights = torch.cat([module.down.weight.flatten(), module.up.weight.flatten()])
    assert weights.abs().max() <= 0.02
    assert 0.008 < weights.std() < 0.0095


# --- adapters beside each other ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2", "bart"])
def test_adapters_of_all_placements_share_a_base(family: str, tmp_path: Path) -> None:
    placements = ("houlsby", "pfeiffer", "parallel")
    expected = {}
    for number, placement in enumerate(placements):
        wrapped, _ = filled(family, number, placement=placement, norms=number == 1)
        wrapped.save_pretrained(tmp_path / placement, save_embedding_layers=False)
        expected[placement] = logits_of(wrapped, family)
    base, _ = fresh_model(family)
    plain = logits_of(base, family)
    shared = PeftModel.from_pretrained(base, tmp_path / "houlsby", "houlsby", low_cpu_mem_usage=False)
    for placement in placements[1:]:
        shared.load_adapter(tmp_path / placement, placement, low_cpu_mem_usage=True)
    for placement in (*reversed(placements), "houlsby"):
        shared.set_adapter(placement)
        torch.testing.assert_close(logits_of(shared, family), expected[placement], atol=1e-6, rtol=0)
    with shared.disable_adapter():
        torch.testing.assert_close(logits_of(shared, family), plain, atol=1e-6, rtol=0)
    shared.set_adapter("parallel")
    shared.delete_adapter("houlsby")
    torch.testing.assert_close(logits_of(shared, family), expected["parallel"], atol=1e-6, rtol=0)


def test_active_adapters_are_stacked() -> None:
    torch.manual_seed(0)
    wrapped, _ = filled("gpt2", 0, placement="houlsby")
    layer = next(module for module in wrapped.modules() if isinstance(module, AdapterLayer))
    wrapped.add_adapter("second", wrapped.peft_config["default"])
    randomize(wrapped, 5)
    x = torch.randn(2, 16)
    first, second = layer.parts["default"].adapter, layer.parts["second"].adapter
    layer.set_adapter(["default", "second"])  # heads of two tasks exclude each other, adapters do not
    h = layer.base_layer(x)
    torch.testing.assert_close(layer(x), h + first(h) + second(h + first(h)))


def test_compacter_factors_are_shared_saved_once_and_follow_the_active_adapter(tmp_path: Path) -> None:
    model, layout = fresh_model("bert")
    wrapped: Any = Compacter(CompacterOptions()).apply(model, layout)
    names = [name for name, _ in wrapped.named_parameters() if "rules" in name]
    assert names == ["base_model.compacter_rules.default"]
    wrapped.add_adapter("second", wrapped.peft_config["default"])
    rules = wrapped.base_model.compacter_rules
    assert [rules[name].requires_grad for name in ("default", "second")] == [True, False]
    wrapped.set_adapter("second")
    assert [rules[name].requires_grad for name in ("default", "second")] == [False, True]
    layer = next(
        module for module in wrapped.modules() if isinstance(module, AdapterLayer) and hasattr(module.parts["second"], "adapter")
    )
    before = layer.parts["second"].adapter.down.weight()
    with torch.no_grad():
        rules["second"].mul_(2)
    torch.testing.assert_close(layer.parts["second"].adapter.down.weight(), 2 * before)
    torch.testing.assert_close(layer.parts["second"].adapter.up.weight().norm() > 0, torch.tensor(True))
    wrapped.set_adapter("default")
    wrapped.delete_adapter("second")
    assert list(rules) == ["default"]


def test_adapters_of_a_bfloat16_base_stay_float32(tmp_path: Path) -> None:
    for placement in ("houlsby", "pfeiffer", "parallel"):
        model, layout = fresh_model("llama", dtype=torch.bfloat16)
        wrapped: Any = Adapter(AdapterOptions(placement=placement, bottleneck=4, norms=True)).apply(model, layout)
        randomize(wrapped, 1)
        own = [parameter for name, parameter in wrapped.named_parameters() if ".bottleneck_" in name]
        assert {parameter.dtype for parameter in own} == {torch.float32}
        block = wrapped.base_model.model.model.layers[0]
        seen: list[torch.dtype] = []
        block.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.dtype))
        assert torch.isfinite(logits_of(wrapped, "llama")).all()
        assert seen == [torch.bfloat16]


def test_an_adapter_is_not_merged() -> None:
    wrapped, _ = filled("bert")
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        wrapped.merge_adapter()


def test_a_copy_is_independent() -> None:
    import copy

    wrapped, _ = filled("gpt2", placement="parallel")
    expected = logits_of(wrapped, "gpt2")
    copied = copy.deepcopy(wrapped)
    randomize(wrapped, 9)
    torch.testing.assert_close(logits_of(copied, "gpt2"), expected)
    assert not torch.allclose(logits_of(wrapped, "gpt2"), expected)


# --- AdapterDrop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "bart"])
def test_dropped_adapters_leave_the_first_blocks_as_the_base_has_them(family: str, placement: str) -> None:
    wrapped, layout = filled(family, placement=placement, norms=True)
    full = logits_of(wrapped, family)
    assert drop_adapters(wrapped, layout, 1) > 0
    states: dict[str, list[Tensor]] = {"base": [], "dropped": []}
    firsts = [block.name for block in layout.blocks if block.index in (0, 2)]
    base, _ = fresh_model(family)
    for key, model in (("base", base), ("dropped", wrapped.base_model.model)):
        # The second stack starts from what the whole first one computed, which differs.
        model.get_submodule(firsts[0]).register_forward_hook(
            lambda module, args, output, key=key: states[key].append(output[0] if isinstance(output, tuple) else output)
        )
    dropped = logits_of(wrapped, family)
    logits_of(base, family)
    torch.testing.assert_close(states["dropped"][0], states["base"][0], atol=1e-6, rtol=0)
    assert not torch.allclose(dropped, full, atol=1e-4)
    assert drop_adapters(wrapped, layout, 0) == 0
    torch.testing.assert_close(logits_of(wrapped, family), full)


def test_dropping_equals_never_having_trained_these_blocks() -> None:
    wrapped, layout = filled("bart", placement="pfeiffer")
    assert drop_adapters(wrapped, layout, 1) == 2  # the first of the encoder and the first of the decoder
    expected, _ = filled("bart", placement="pfeiffer", blocks=[1, 3])
    saved = {name: parameter for name, parameter in wrapped.named_parameters() if "bottleneck" in name}
    for name, parameter in expected.named_parameters():
        if "bottleneck" in name:
            parameter.data.copy_(saved[name])
    torch.testing.assert_close(logits_of(wrapped, "bart"), logits_of(expected, "bart"))
    assert drop_adapters(wrapped, layout, 99) == 4
    torch.testing.assert_close(logits_of(wrapped, "bart"), logits_of(fresh_model("bart")[0], "bart"))


def test_a_compacter_is_dropped_too() -> None:
    model, layout = fresh_model("bert")
    wrapped: Any = Compacter(CompacterOptions(norms=False)).apply(model, layout)
    randomize(wrapped, 3)
    drop_adapters(wrapped, layout, 2)
    torch.testing.assert_close(wrapped(**batch_of("bert")).logits, fresh_model("bert")[0](**batch_of("bert")).logits)


# --- other ways to run the model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["pfeiffer", "parallel"])
@pytest.mark.parametrize(("family", "auto_class"), [("llama", "AutoModelForCausalLM"), ("t5", "AutoModelForSeq2SeqLM")])
def test_generation_with_and_without_a_cache_gives_the_same_tokens(family: str, auto_class: str, placement: str) -> None:
    model = tiny_model(family, auto_class)
    wrapped: Any = Adapter(AdapterOptions(placement=placement, bottleneck=4)).apply(model, ModelLayout(model)).eval()
    randomize(wrapped, 1)
    ids = torch.randint(7, 60, (2, 5), generator=torch.Generator().manual_seed(0))
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 6, "eos_token_id": None}
    found = [wrapped.generate(input_ids=ids, use_cache=cached, **settings) for cached in (True, False)]
    assert torch.equal(*found)


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_a_feed_forward_part_in_chunks_computes_the_same(placement: str) -> None:
    wrapped, _ = filled("bert", placement=placement)
    expected = logits_of(wrapped, "bert")
    for layer in wrapped.base_model.model.bert.encoder.layer:
        layer.chunk_size_feed_forward = 1
    torch.testing.assert_close(logits_of(wrapped, "bert"), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("placement", ["houlsby", "parallel"])
def test_checkpointed_blocks_give_the_same_gradients(placement: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        wrapped, _ = filled("gpt2", placement=placement, norms=True)
        if checkpointing:
            wrapped.gradient_checkpointing_enable({"use_reentrant": False})
        for module in wrapped.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        wrapped.train()(**batch_of("gpt2"), use_cache=False).logits.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in wrapped.named_parameters() if parameter.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-4)
