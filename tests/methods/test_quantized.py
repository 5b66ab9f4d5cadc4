"""Methods that say they work on a quantized base do: they learn on it and compute what the same adapter computes beside its values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ftkit.methods.base import Method
from ftkit.models.layout import ModelLayout
from ftkit.models.quantization import dequantize_into, keep_trainable, quantize
from ftkit.models.trainable import load_trainable, trainable_state
from ftkit.recipe.schema import QuantizationSpec
from ftkit.registry import METHODS
from tests.methods.cases import PEFT_TYPES, logits_of, loss_of, make_method, train
from tests.models.test_quantization import wide_model

REPARAMETRIZED = ("adalora", "boft", "loha", "lokr", "lora", "oft", "vera")


def methods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and options."""
    yield from ((name, {}) for name in REPARAMETRIZED)
    yield from (("peft", {"type": kind, "config": config}) for kind, (config, _) in PEFT_TYPES.items())


def quantizable() -> list[Any]:
    cases = [(name, options) for name, options in methods() if make_method(name, options, "bert").capabilities.quantized]
    return [pytest.param(name, options, id=options.get("type", name)) for name, options in cases]


def base() -> tuple[Any, ModelLayout]:
    model = wide_model("bert")
    return model, ModelLayout(model, ModelLayout(model).head_parameters())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize(("name", "options"), quantizable())
def test_learns_on_a_quantized_base_what_it_would_beside_its_values(name: str, options: dict[str, Any], kind: str) -> None:
    method: Method = make_method(name, options, "bert")
    model, layout = base()
    quantize(layout, QuantizationSpec(type=kind, compute_dtype="float32"))  # type: ignore[arg-type]
    keep_trainable(model)
    model = method.apply(model, layout)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    first = loss_of(model, "bert").item()
    train(model, method, "bert", 8)
    assert loss_of(model, "bert").item() < first
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if method.declares(n, layout)}
    logits = logits_of(model, "bert")
    plain, plain_layout = base()
    dequantize_into(plain, layout)
    adapted = method.apply(plain, plain_layout)
    load_trainable(adapted, trainable_state(model))
    # LLM.int8() rounds the inputs of the layers, too.
    tolerance = 1e-4 if kind == "nf4" else 0.05 * float(logits.abs().max())
    torch.testing.assert_close(logits_of(adapted, "bert"), logits, atol=tolerance, rtol=0)


def test_methods_that_change_their_base_say_no() -> None:
    assert METHODS.get("lora").capabilities.quantized
    for start in ("pissa", "olora"):
        assert not make_method("lora", {"init": start}, "bert").capabilities.quantized
    assert not METHODS.get("loha").capabilities.quantized
