from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ftkit.methods.vera import Options, VeRA
from tests.methods.cases import fresh_model
from tests.methods.formulas import assert_follows_formula


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "vit"])
def test_equals_the_formula(family: str) -> None:
    method = VeRA(Options(rank=6, targets="all-linear"))
    # The shared matrices are a function of PEFT's key and of the widest layers, so another model has the same.
    shared: Any = method.apply(*fresh_model(family)).base_model  # type: ignore[union-attr]
    down, up = shared.vera_A["default"], shared.vera_B["default"]

    def weight(frozen: Tensor, own: dict[str, Tensor]) -> Tensor:
        outward, inward = frozen.shape
        scaled_down = own["vera_lambda_d"][:, None] * down[:, :inward]
        return frozen + own["vera_lambda_b"][:, None] * (up[:outward] @ scaled_down)

    assert_follows_formula(method, family, "vera_", weight)


def test_the_shared_matrices_are_frozen_alike_everywhere_and_in_the_file() -> None:
    from peft import get_peft_model_state_dict

    first = VeRA(Options(rank=6)).apply(*fresh_model("bert"))
    torch.manual_seed(99)
    second = VeRA(Options(rank=6)).apply(*fresh_model("bert"))
    one, other = get_peft_model_state_dict(first), get_peft_model_state_dict(second)
    for name in ("base_model.vera_A", "base_model.vera_B"):
        assert torch.equal(one[name], other[name])
    assert not any("vera_A" in name for name, _ in first.named_parameters())


def test_scales_start_as_the_option_says() -> None:
    model = VeRA(Options(rank=6, d_initial=0.5)).apply(*fresh_model("bert"))
    values = {name.split(".")[-2]: p for name, p in model.named_parameters() if "vera_lambda" in name}
    assert set(values["vera_lambda_d"].tolist()) == {0.5}
    assert set(values["vera_lambda_b"].tolist()) == {0.0}


def test_counts_far_less_than_lora() -> None:
    # Kopiczko et al. 2024, section 3.2: L (d + r) numbers; a layer of RoBERTa base at rank 1024.
    assert VeRA(Options(rank=1024)).layer_count(768, 768) == 1792


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Options(d_initial=0.0)
