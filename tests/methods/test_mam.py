from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.nn import functional

from ftkit.methods.mam import MixAndMatch, Options
from ftkit.models.layout import ModelLayout
from ftkit.tuners.bottleneck import AdapterLayer
from tests.methods.blocks_by_hand import BY_HAND, Additions, Copies
from tests.methods.cases import LABELS, batch_of, facts_of, fresh_model, make_method


def random_model(family: str, **options: Any) -> tuple[Any, ModelLayout]:
    """In float64, with random values for all that is trained."""
    model, layout = fresh_model(family, dtype=torch.float64)
    wrapped: Any = MixAndMatch(Options(**options)).apply(model, layout).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".mix_and_match_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return wrapped, layout


@pytest.mark.parametrize("family", BY_HAND)
def test_equals_blocks_that_are_written_out(family: str) -> None:
    wrapped, layout = random_model(family, length=3, hidden_size=6, bottleneck=4, scaling=1.5)
    logits = wrapped(**batch_of(family)).logits
    functional.cross_entropy(logits, LABELS).backward()

    copies = Copies(wrapped)
    (encoder,) = wrapped.base_model.layer.encoders["default"].values()
    prefix = copies.prefix(encoder, modules=2)
    adapters = {
        layout.depth(path) - 1: layer.parts["default"].adapter
        for path, layer in wrapped.named_modules()
        if isinstance(layer, AdapterLayer) and hasattr(layer.parts["default"], "adapter")
    }

    def adapter(block: int, x: torch.Tensor) -> torch.Tensor:
        own = adapters[block]
        return 1.5 * copies.linear(own.up, torch.relu(copies.linear(own.down, x)))

    plain, _ = fresh_model(family, dtype=torch.float64)
    expected = BY_HAND[family](plain, batch_of(family), Additions(prefix=lambda block: prefix[:, block], adapter=adapter))
    functional.cross_entropy(expected, LABELS).backward()
    assert set(adapters) == {0, 1}
    torch.testing.assert_close(logits, expected, atol=1e-8, rtol=0)
    copies.assert_equal_gradients()


def test_the_file_has_the_prefix_without_its_network(tmp_path: Path) -> None:
    model, layout = fresh_model("bert")
    method = MixAndMatch(Options(length=3, hidden_size=6, bottleneck=4))
    method.save_adapter(method.apply(model, layout), tmp_path)
    names = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert [name for name in names if "mix_and_match_encoder" in name] == [
        "base_model.model.mix_and_match_prefix.mix_and_match_encoder.bert-encoder-layer-attention-self.vectors"
    ]
    assert sum("mix_and_match_parts" in name for name in names) == 2 * 4


@pytest.mark.parametrize(
    ("family", "length", "sizes", "scaling"),
    [("bert", 16, (16, None), 2.0), ("vit", 16, (16, None), 2.0), ("bart", 30, (None, 2.0), 4.0), ("gpt2", 30, (None, 2.0), 4.0)],
)
def test_sizes_are_those_of_the_authors(family: str, length: int, sizes: tuple[Any, Any], scaling: float) -> None:
    defaults = MixAndMatch(Options()).defaults(facts_of(family))
    found = {key.removeprefix("method."): default.value for key, default in defaults.items() if key.startswith("method.")}
    assert found == {"length": length, "bottleneck": sizes[0], "reduction_factor": sizes[1], "scaling": scaling}
    method = make_method("mam", {"length": "auto"}, family)
    assert method.options.model_validate(method.options.model_dump()) == method.options


def test_one_size_given_rules_the_other_out() -> None:
    for options in ({"bottleneck": 8}, {"reduction_factor": 8.0}):
        method = make_method("mam", options, "bart")
        assert (method.options.bottleneck, method.options.reduction_factor) == (
            options.get("bottleneck"),
            options.get("reduction_factor"),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottleneck": 4, "reduction_factor": 2.0}, "say the same"),
        ({"bottleneck": None, "reduction_factor": None}, "must be a number"),
        ({"reparametrization": False, "hidden_size": 4}, "no effect"),
        ({"length": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options(**options)


def test_what_takes_no_prefix_or_no_adapter_is_refused(tmp_path: Path) -> None:
    assert "patches in one sequence" in MixAndMatch(Options()).refusal(replace(facts_of("vit"), model_type="swin"))
    assert "takes no prefix" in MixAndMatch(Options()).refusal(replace(facts_of("bert"), model_type="mpnet"))
    (tmp_path / "config.json").write_text('{"num_local_experts": 4}')
    assert "mixture of experts" in MixAndMatch(Options()).refusal(replace(facts_of("llama"), path=tmp_path))
    assert "no block 7" in MixAndMatch(Options(blocks=[7])).refusal(facts_of("bert"))
