from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from ftkit.tuners.bitfit import BitFitConfig
from tests.methods.cases import fresh_model, logits_of


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 2)
        self.norm = nn.GroupNorm(1, 3)
        self.linear = nn.Linear(3, 4)
        self.bare = nn.Linear(4, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.convolution(x)).mean((2, 3))
        return self.bare(nn.functional.linear(features, self.linear.weight, self.linear.bias))


def adapted(value: float, **config: list[str]) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(Small(), BitFitConfig(target_modules=["convolution", "norm", "linear"], **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bitfit" in name:
                parameter.fill_(value)
    return model


def in_place(value: float) -> Small:
    torch.manual_seed(0)
    model = Small()
    with torch.no_grad():
        for module in (model.convolution, model.norm, model.linear):
            module.bias.add_(value)
    return model


INPUT = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(1))


def test_any_module_with_a_bias_works_even_where_code_reads_the_bias_itself() -> None:
    torch.testing.assert_close(adapted(0.5)(INPUT), in_place(0.5)(INPUT))


def test_a_module_without_a_bias_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear has no bias"):
        get_peft_model(Small(), BitFitConfig(target_modules=["bare"]))


def test_unmerging_gives_the_very_same_bias_back() -> None:
    model = adapted(0.1)
    before = model.base_model.model.linear.get_base_layer().bias.clone()
    model.merge_adapter()
    assert not torch.equal(model.base_model.model.linear.get_base_layer().bias, before)
    torch.testing.assert_close(model(INPUT), in_place(0.1)(INPUT))
    model.unmerge_adapter()
    assert torch.equal(model.base_model.model.linear.get_base_layer().bias, before)


def test_disabling_unmerges() -> None:
    model = adapted(0.1)
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(INPUT), in_place(0.0)(INPUT))


def test_merging_values_that_are_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        adapted(float("nan")).merge_and_unload(safe_merge=True)


def test_two_active_adapters_add_up() -> None:
    model = adapted(0.25)
    model.add_adapter("other", BitFitConfig(target_modules=["linear"]))
    with torch.no_grad():
        model.base_model.model.linear.bitfit_bias["other"].fill_(0.5)
    model.base_model.set_adapter(["default", "other"])
    expected = in_place(0.25)
    with torch.no_grad():
        expected.linear.bias.add_(0.5)
    torch.testing.assert_close(model(INPUT), expected(INPUT))
    model.delete_adapter("other")
    torch.testing.assert_close(model(INPUT), in_place(0.25)(INPUT))


def test_loads_with_low_memory_use(tmp_path: Path) -> None:
    model, layout = fresh_model("roberta")
    modules = [name.removesuffix(".bias") for name in layout.biases()]
    config = BitFitConfig(target_modules=layout.suffixes(modules), modules_to_save=["classifier"])
    model = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    base, _ = fresh_model("roberta", head_seed=5)
    loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=True)
    torch.testing.assert_close(logits_of(loaded, "roberta"), logits_of(model, "roberta"))
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, "roberta"), logits_of(model, "roberta"), atol=1e-5, rtol=0)
