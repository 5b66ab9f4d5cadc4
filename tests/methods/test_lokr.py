from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ftkit.methods.lokr import LoKr, Options
from tests.methods.cases import facts_of, fresh_model, logits_of
from tests.methods.formulas import assert_follows_formula


def kronecker(one: Tensor, other: Tensor) -> Tensor:
    """Each entry of the first matrix times the whole second one."""
    return torch.cat([torch.cat([entry * other for entry in row], dim=1) for row in one], dim=0)


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"rank": 1}, 1.0),
        ({"rank": 1, "alpha": 1.5}, 1.5),
        ({"rank": None, "alpha": 4.0}, 4.0),
        ({"rank": 1, "factor": 8, "decompose_both": True, "init": "lycoris"}, 1.0),
        ({"rank": 3, "factor": 2, "alpha": 1.0}, 1 / 3),
    ],
    ids=["plain", "alpha", "krona", "both", "factor"],
)
def test_equals_the_formula(family: str, options: dict[str, Any], scale: float) -> None:
    def weight(frozen: Tensor, own: dict[str, Tensor]) -> Tensor:
        small = own["lokr_w1"] if "lokr_w1" in own else own["lokr_w1_a"] @ own["lokr_w1_b"]
        large = own["lokr_w2"] if "lokr_w2" in own else own["lokr_w2_a"] @ own["lokr_w2_b"]
        return frozen + scale * kronecker(small, large)

    assert_follows_formula(LoKr(Options(**options, targets="all-linear")), family, "lokr_", weight, size=0.2)


def test_krona_has_two_whole_matrices() -> None:
    model, layout = fresh_model("bert")
    model = LoKr(Options(rank=None, targets=["query"])).apply(model, layout)
    shapes = {name.split(".")[-2]: tuple(p.shape) for name, p in model.named_parameters() if ".lokr_" in name}
    assert shapes == {"lokr_w1": (4, 4), "lokr_w2": (4, 4)}


@pytest.mark.parametrize("init", ["default", "lycoris"])
def test_starts_as_the_base(init: str) -> None:
    model, layout = fresh_model("bert")
    expected = logits_of(model, "bert")
    model = LoKr(Options(init=init, targets="all-linear")).apply(model, layout)
    torch.testing.assert_close(logits_of(model, "bert"), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "inward", "outward", "count"),
    [
        # 768 = 24 * 32: one whole matrix 24 x 24, the other of rank 8 out of 32 x 8 and 8 x 32.
        ({}, 768, 768, 24 * 24 + 8 * (32 + 32)),
        # 3072 = 48 * 64
        ({}, 768, 3072, 48 * 24 + 8 * (64 + 32)),
        ({"rank": None}, 768, 768, 24 * 24 + 32 * 32),
        ({"factor": 4}, 768, 768, 4 * 4 + 8 * (192 + 192)),
        # 5 does not divide 768: the next smaller divisor near it does.
        ({"factor": 5}, 768, 768, 4 * 4 + 8 * (192 + 192)),
        ({"factor": 64, "decompose_both": True, "rank": 4}, 768, 768, 4 * (64 + 64) + 4 * (12 + 12)),
    ],
)
def test_counts_by_its_formula(options: dict[str, Any], inward: int, outward: int, count: int) -> None:
    assert LoKr(Options(**options)).layer_count(inward, outward) == count


def test_conv1d_is_refused() -> None:
    assert "lokr cannot adapt" in LoKr(Options()).refusal(facts_of("gpt2"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": None, "decompose_both": True}, "decompose_both needs a rank"),
        ({"factor": 1}, "greater than or equal to 2"),
        ({"init": "zeros"}, "'default' or 'lycoris'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options(**options)
