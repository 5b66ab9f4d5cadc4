from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ftkit.errors import ModelError
from ftkit.methods.hypernetwork import HypernetworkAdapters, Options
from ftkit.models.layout import ModelLayout
from ftkit.tuners.bottleneck import AdapterLayer
from tests.methods.adapter_reference import INSTALL, Adapters
from tests.methods.cases import LABELS, batch_of, facts_of, fresh_model, logits_of

SMALL: dict[str, Any] = {"reduction_factor": 4.0, "task_size": 5, "hidden_size": 7, "embedding_size": 6, "norms": False}


def network_of(wrapped: Any) -> Any:
    return wrapped.base_model.hypernetwork_networks["default"]


def random_model(family: str, **options: Any) -> tuple[Any, ModelLayout]:
    """In float64, with random values for the network."""
    torch.manual_seed(0)
    model, layout = fresh_model(family, dtype=torch.float64)
    wrapped: Any = HypernetworkAdapters(Options(**{**SMALL, **options})).apply(model, layout).double().eval()
    for parameter in network_of(wrapped).parameters():
        parameter.data.normal_(0, 0.4)
    return wrapped, layout


def adapters_by_hand(w: Mapping[str, Tensor], task: Tensor, blocks: int) -> Adapters:
    """The adapters of a task that a network of parameters w writes, for the small options and models."""
    width, size = 16, 4

    def adapter(block: int, place: int) -> Callable[[Tensor], Tensor]:
        joint = torch.cat([task, w["blocks"][block], w["places"][place]])
        hidden = torch.relu(w["first.weight"] @ joint + w["first.bias"])
        raw = w["second.weight"] @ hidden + w["second.bias"]
        centered = raw - raw.mean()
        embedding = centered / torch.sqrt((centered**2).mean() + 1e-6) * w["norm.weight"] + w["norm.bias"]
        names = {name.split(".")[1] for name in w if name.startswith("maps.")}
        made = {name: w[f"maps.{name}.weight"] @ embedding + w[f"maps.{name}.bias"] for name in names}

        def apply(x: Tensor) -> Tensor:
            down = x @ made["down"].view(size, width).T + made["down_bias"]
            y = functional.gelu(down, approximate="tanh") @ made["up"].view(width, size).T + made["up_bias"]
            if "gain" not in made:
                return y
            y = y - y.mean(-1, keepdim=True)
            return y / torch.sqrt((y**2).mean(-1, keepdim=True) + 1e-5) * made["gain"] + made["shift"]

        return apply

    return {f"{n} {name}": adapter(n, place) for n in range(blocks) for place, name in ((0, "attention"), (1, "feed-forward"))}


@pytest.mark.parametrize("generated_norm", [True, False])
@pytest.mark.parametrize("family", list(INSTALL))
def test_equals_blocks_with_adapters_written_out(family: str, generated_norm: bool) -> None:
    wrapped, layout = random_model(family, generated_norm=generated_norm)
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in batch_of(family).items()}
    logits = wrapped(**inputs).logits
    functional.cross_entropy(logits, LABELS).backward()

    w = {name: parameter.detach().clone().requires_grad_() for name, parameter in network_of(wrapped).named_parameters()}
    plain, _ = fresh_model(family, dtype=torch.float64)
    INSTALL[family](plain, adapters_by_hand(w, w["task"], len(layout.blocks)), "houlsby")
    expected = plain(**inputs).logits
    functional.cross_entropy(expected, LABELS).backward()
    torch.testing.assert_close(logits, expected, atol=1e-8, rtol=0)
    for name, parameter in network_of(wrapped).named_parameters():
        torch.testing.assert_close(parameter.grad, w[name].grad, atol=1e-8, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_adapters_start_nearly_as_nothing() -> None:
    model, layout = fresh_model("bert")
    before = logits_of(model, "bert")
    torch.manual_seed(0)
    wrapped = HypernetworkAdapters(Options()).apply(model, layout)
    torch.testing.assert_close(logits_of(wrapped, "bert"), before, atol=0.5, rtol=0)
    assert not torch.equal(logits_of(wrapped, "bert"), before)


def test_the_file_holds_the_network_once(tmp_path: Path) -> None:
    model, layout = fresh_model("bert")
    method = HypernetworkAdapters(Options(**SMALL))
    wrapped: Any = method.apply(model, layout)
    method.save_adapter(wrapped, tmp_path)
    saved = {name: value for name, value in load_file(tmp_path / "adapter_model.safetensors").items() if "hypernetwork" in name}
    own = dict(network_of(wrapped).named_parameters())
    assert saved.keys() == {f"base_model.hypernetwork_networks.{name}" for name in own}
    assert sum(value.numel() for value in saved.values()) == sum(parameter.numel() for parameter in own.values())
    layers = [layer for layer in wrapped.modules() if isinstance(layer, AdapterLayer)]
    assert layers
    assert not any(True for layer in layers for _ in layer.parts.parameters())


def test_the_network_is_as_large_as_that_of_the_authors_for_t5_base() -> None:
    """Per network of a stack, without T5's norms: embeddings, projector and the generators of a 24 x 768 adapter and its norm."""
    from transformers import AutoModel, T5Config

    with torch.device("meta"):
        layout = ModelLayout(AutoModel.from_config(T5Config(d_model=768, num_layers=12, num_heads=12, d_ff=3072, d_kv=64)))
    count = HypernetworkAdapters(Options(norms=False)).parameter_count(layout)
    generators = 65 * (2 * 768 * 24 + 24 + 768 + 2 * 768)
    assert count == 64 * (1 + 24 + 2) + (3 * 64 + 1) * 128 + 129 * 64 + 2 * 64 + generators


def test_only_chosen_blocks_are_numbered() -> None:
    wrapped, _ = random_model("bart", blocks=[1, 2], cross_attention=True)
    network = network_of(wrapped)
    assert (len(network.blocks), len(network.places)) == (2, 3)


def test_widths_that_change_between_stages_are_refused() -> None:
    from transformers import AutoModel, SwinConfig

    config = SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    with torch.device("meta"):
        layout = ModelLayout(AutoModel.from_config(config))
    with pytest.raises(ModelError, match="writes weights of one width"):
        HypernetworkAdapters(Options()).parameter_count(layout)


def test_bad_options_and_models_are_refused(tmp_path: Path) -> None:
    for options in ({"task_size": 0}, {"reduction_factor": 0.5}, {"dropout": 1.0}):
        with pytest.raises(ValidationError):
            Options(**options)
    (tmp_path / "config.json").write_text('{"num_experts": 4}')
    assert "mixture of experts" in HypernetworkAdapters(Options()).refusal(replace(facts_of("llama"), path=tmp_path))
    assert "no block 7" in HypernetworkAdapters(Options(blocks=[7])).refusal(facts_of("bert"))


def test_the_network_learns_at_a_rate_of_its_own() -> None:
    method = HypernetworkAdapters(Options(**SMALL, network_lr_ratio=0.25))
    wrapped, layout = random_model("bert", network_lr_ratio=0.25)
    factors = {name: method.learning_rate_factor(name, layout) for name, value in wrapped.named_parameters() if value.requires_grad}
    assert {factor for name, factor in factors.items() if "hypernetwork_networks" in name} == {0.25}
    assert {factor for name, factor in factors.items() if "hypernetwork_networks" not in name} == {1.0}


def test_the_networks_usual_rate_is_that_of_weights_it_makes() -> None:
    ratios = {
        family: HypernetworkAdapters(Options(embedding_size=32)).defaults(facts_of(family))["method.network_lr_ratio"].value
        for family in ("bert", "t5")
    }
    assert ratios == {"bert": 1 / 32, "t5": 1.0}
