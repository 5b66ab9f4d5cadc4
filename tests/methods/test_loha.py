from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from torch import Tensor

from ftkit.errors import ModelError
from ftkit.methods.loha import LoHa, Options
from tests.methods.cases import facts_of, fresh_model
from tests.methods.formulas import assert_follows_formula


@pytest.mark.parametrize("family", ["bert", "t5", "vit"])
@pytest.mark.parametrize(("options", "scale"), [({}, 1.0), ({"alpha": 6.0}, 1.5)], ids=["plain", "alpha"])
def test_equals_the_formula(family: str, options: dict[str, Any], scale: float) -> None:
    def weight(frozen: Tensor, own: dict[str, Tensor]) -> Tensor:
        return frozen + scale * (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"])

    assert_follows_formula(LoHa(Options(**options, rank=4, targets="all-linear")), family, "hada_", weight, size=0.5)


def test_refuses_conv1d_layers_early_and_late() -> None:
    method = LoHa(Options())
    assert method.refusal(facts_of("gpt2")) == "the layers of gpt2 are of a kind (Conv1D) that loha cannot adapt; use `lora`"
    with pytest.raises(ModelError, match=r"loha cannot adapt transformer.h.0.attn.c_attn, which is a Conv1D"):
        method.apply(*fresh_model("gpt2"))


def test_counts_by_its_formula() -> None:
    # 2 r (in + out): 2 * 8 * (768 + 768)
    assert LoHa(Options()).layer_count(768, 768) == 24_576


@pytest.mark.parametrize(("options", "message"), [({"rank": 0}, "greater than or equal"), ({"module_dropout": 1.0}, "less than 1")])
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options(**options)
