"""What ftkit relies on in bitsandbytes, on a CPU."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_four_bit_layers(kind: str, double: bool) -> None:
    plain = torch.nn.Linear(64, 32, bias=True)
    layer = bitsandbytes.nn.Linear4bit(64, 32, bias=True, compute_dtype=torch.float32, compress_statistics=double, quant_type=kind)
    layer.load_state_dict(plain.state_dict())
    layer = layer.to("cpu")
    assert type(layer.weight).__name__ == "Params4bit"
    assert isinstance(layer, torch.nn.Linear)
    assert layer.weight.numel() * 2 == layer.weight.quant_state.shape.numel() == 64 * 32
    found = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert found.shape == (32, 64)
    assert float((found.float() - plain.weight.detach()).abs().max()) < 0.05
    assert (layer.weight.quant_state.offset is not None) == double
    rows = torch.randn(2, 64)
    torch.testing.assert_close(layer(rows), torch.nn.functional.linear(rows, found.float(), plain.bias), atol=1e-4, rtol=1e-4)


def test_eight_bit_layers() -> None:
    plain = torch.nn.Linear(16, 8)
    layer = bitsandbytes.nn.Linear8bitLt(16, 8, has_fp16_weights=False)
    layer.load_state_dict(plain.state_dict())
    layer = layer.to("cpu")
    assert type(layer.weight).__name__ == "Int8Params"
    assert layer.weight.dtype == torch.int8
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    found = layer.weight.data.float() * scales.float().unsqueeze(1) / 127.0
    assert float((found - plain.weight.detach()).abs().max()) < 0.01


def test_optimizers_have_the_names_that_recipes_use() -> None:
    assert {"AdamW8bit", "PagedAdamW8bit"} <= set(dir(bitsandbytes.optim))
