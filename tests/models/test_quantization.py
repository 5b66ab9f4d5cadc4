"""Quantized bases: which layers, how many bytes, gradients that keep flowing, merged exports, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ftkit
from ftkit.errors import ModelError, RecipeError
from ftkit.models.layout import ModelLayout
from ftkit.models.load import load_model, trainable_report
from ftkit.models.quantization import (
    dequantize_into,
    dequantized,
    is_quantized,
    keep_trainable,
    quantize,
    weight_bytes,
    weight_count,
)
from ftkit.recipe.schema import ModelSpec, QuantizationSpec
from ftkit.tasks.base import Head
from tests.tiny import save_tiny, tiny_config

HEAD = Head(auto_class="AutoModelForSequenceClassification", peft_task_type="SEQ_CLS", config={"num_labels": 3})


def spec(kind: str = "nf4", **changes: Any) -> QuantizationSpec:
    return QuantizationSpec(type=kind, **{"compute_dtype": "float32", **changes})


WIDE: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 64, "intermediate_size": 128},
    "llama": {"hidden_size": 64, "intermediate_size": 128},
    "vit": {"hidden_size": 64, "intermediate_size": 128},
    "gpt2": {"n_embd": 64},
    "t5": {"d_model": 64, "d_kv": 32, "d_ff": 128},
    "bart": {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
}
"""Sizes at which bitsandbytes computes 4-bit layers on a CPU."""


def wide_model(family: str) -> Any:
    import transformers

    torch.manual_seed(0)
    auto = transformers.AutoModelForImageClassification if family == "vit" else transformers.AutoModelForSequenceClassification
    return auto.from_config(tiny_config(family, **WIDE[family], num_labels=3)).eval()


def wide_folder(family: str, folder: Path) -> Path:
    save_tiny(folder, family)
    wide_model(family).save_pretrained(folder)
    return folder


def quantized_paths(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if is_quantized(module)}


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "bart", "vit", "llama"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_linear_layers_of_the_blocks_are_quantized_and_nothing_else(family: str, kind: str) -> None:
    model = wide_model(family)
    layout = ModelLayout(model, ModelLayout(model).head_parameters())
    expected, shapes = set(layout.linears("all")), {name: parameter.numel() for name, parameter in model.named_parameters()}
    quantize(layout, spec(kind))
    assert quantized_paths(model) == expected
    assert {name: weight_count(parameter) for name, parameter in model.named_parameters()} == shapes
    assert trainable_report(model, layout)["total"] == sum(shapes.values())


@pytest.mark.parametrize("family", ["bert", "gpt2", "bart"])
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_checkpoint_quantized_while_it_is_read_equals_one_quantized_in_memory(tmp_path: Path, family: str, kind: str) -> None:
    folder = wide_folder(family, tmp_path)
    streamed = load_model(ModelSpec(name=str(folder), dtype="float32", quantization=spec(kind)), HEAD, seed=0)
    whole = load_model(ModelSpec(name=str(folder), dtype="float32"), HEAD, seed=0)
    quantize(whole.layout, spec(kind))
    assert quantized_paths(streamed.model) == quantized_paths(whole.model) == set(whole.layout.linears("all"))
    for path in quantized_paths(whole.model):
        found, expected = (dequantized(loaded.model.get_submodule(path)) for loaded in (streamed, whole))
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize(("kind", "double", "bits"), [("nf4", True, 4.127), ("fp4", False, 4.5), ("int8", True, 8.03)])
def test_bits_of_a_weight(kind: str, double: bool, bits: float) -> None:
    """QLoRA, section 3: 4.127 bits with double quantization, about a quarter of bfloat16's 16; 4.5 without."""
    model = nn.ModuleDict({"layer": nn.Linear(1024, 1024, bias=False)})

    class Layout:
        fresh: frozenset[str] = frozenset()

        def __init__(self) -> None:
            self.model = model

        def linears(self, role: str) -> list[str]:
            return ["layer"]

    quantize(Layout(), spec(kind, double=double))  # type: ignore[arg-type]
    found = 8 * weight_bytes(model["layer"].weight) / 1024**2
    assert found == pytest.approx(bits, abs=0.005)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_gradients_flow_through_the_base_also_after_an_evaluation(kind: str) -> None:
    model = wide_model("bert")
    layout = ModelLayout(model)
    quantize(layout, spec(kind))
    keep_trainable(model)
    tokens = torch.tensor([[5, 9, 11, 6]])

    def gradient() -> torch.Tensor:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        embeddings = model.get_input_embeddings().weight
        embeddings.grad = None
        model(input_ids=tokens).logits.sum().backward()
        return embeddings.grad.clone()

    first = gradient()
    assert first.abs().max() > 0
    model.eval()
    with torch.no_grad():
        model(input_ids=tokens)
    torch.testing.assert_close(gradient(), first, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_dequantized_values_go_where_they_belong(family: str, kind: str) -> None:
    plain, model = wide_model(family), wide_model(family)
    layout = ModelLayout(model)
    quantize(layout, spec(kind))
    before = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    dequantize_into(plain, layout)
    weights = {f"{path}.weight" for path in quantized_paths(model)}
    for name, parameter in plain.named_parameters():
        change = (parameter - before[name]).abs().max() / before[name].abs().max().clamp(min=1e-9)
        assert (0 < change < 0.2) if name in weights else change == 0, name


@pytest.mark.parametrize("kind", ["nf4", "{type: fp4, double: false}", "int8"])
def test_a_run_on_a_quantized_base_ends_in_verified_exports(
    recipe_file: Callable[..., Path], tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    if kind != "nf4":
        request.getfixturevalue("exports_proved_here")
    model = wide_folder("bert", tmp_path / "model")
    train = "{epochs: 2.0, batch_size: 8, learning_rate: 1e-2}"
    path = recipe_file(model=str(model), train=train, export="[adapter, merged]")
    result = ftkit.train(ftkit.load_recipe(path, [f"model.quantization={kind}"]), output=tmp_path / "run")
    exports = result.results["exports"]
    assert exports["adapter"]["max_abs_difference"] <= 1e-6
    assert exports["merged"]["max_abs_difference"] <= (2e-2 if kind == "int8" else 1e-5)
    again = ftkit.export(tmp_path / "run", "merged", to=tmp_path / "again")
    assert again["max_abs_difference"] <= (2e-2 if kind == "int8" else 1e-5)
    assert "quantization_config" not in (tmp_path / "again" / "config.json").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=full"], "full does not work on quantized weights"),
        (["model.weights=random", "method=lora"], "random"),
        (["model.quantization=int3"], "int3"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_loads(
    recipe_file: Callable[..., Path], overrides: list[str], message: str
) -> None:
    path = recipe_file(export="[merged]")
    with pytest.raises(RecipeError, match=message):
        ftkit.plan(ftkit.load_recipe(path, ["model.quantization=nf4", *overrides]))


def test_widths_that_bitsandbytes_gets_wrong_on_a_cpu_are_refused(tmp_path: Path) -> None:
    """If this bound is no longer needed the values agree: then lift it."""
    import bitsandbytes

    torch.manual_seed(0)
    weight = torch.randn(48, 96)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    error = (bitsandbytes.functional.dequantize_4bit(packed, state) - weight).abs().max()
    assert error > 0.5, "bitsandbytes has mended it: allow such widths again"
    folder = save_tiny(tmp_path, "bert")
    with pytest.raises(ModelError, match=r"multiples of 64; .*query has 16"):
        load_model(ModelSpec(name=str(folder), dtype="float32", quantization=spec("nf4")), HEAD, seed=0)
