from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ftkit.errors import ModelError
from ftkit.methods.boft import BOFT, Options
from ftkit.tuners.boft import BlockDiagonals
from tests.methods.cases import fresh_model
from tests.methods.formulas import assert_follows_formula, scatter, trained_parts


def rotation(blocks: Tensor, permutations: Tensor) -> Tensor:
    """The product of the factors P diag(blocks) P', the first one innermost; blocks: m x n x b x b."""
    product = torch.eye(permutations.shape[-1])
    for own, permutation in zip(blocks, permutations, strict=True):
        skew = (own - own.transpose(1, 2)) / 2
        identity = torch.eye(own.shape[-1])
        cayley = [torch.linalg.inv(identity + one) @ (identity - one) for one in skew]
        product = permutation @ torch.block_diag(*cayley) @ permutation.T @ product
    return product


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.parametrize("factors", [1, 3])
def test_equals_the_formula(family: str, factors: int) -> None:
    method = BOFT(Options(block_size=4, factors=factors, targets=["query", "value"]))
    layer: Any = next(m for m in method.apply(*fresh_model(family)).modules() if hasattr(m, "boft_P"))
    permutations = layer.boft_P

    def weight(frozen: Tensor, own: dict[str, Tensor]) -> Tensor:
        return own["boft_s"] * (frozen @ rotation(own["boft_R"], permutations).T)

    assert_follows_formula(method, family, "boft_", weight)


def test_each_factor_doubles_what_an_input_reaches() -> None:
    """Liu et al. 2024, section 4.1: with b = 4, m factors connect each output with 4 * 2^(m-1) inputs."""
    for factors, reached in ((1, 4), (2, 8), (3, 16)):
        model, layout = fresh_model("bert")
        model = BOFT(Options(block_size=4, factors=factors, targets=["query"])).apply(model, layout)
        scatter(trained_parts(model, layout, "boft_"))
        layer: Any = next(m for m in model.modules() if hasattr(m, "boft_P"))
        turned, _ = layer.get_delta_weight("default")
        assert set((turned.abs() > 1e-7).sum(dim=1).tolist()) == {reached}
        torch.testing.assert_close(turned @ turned.T, torch.eye(16), atol=1e-5, rtol=0)


def test_block_diagonals_have_the_gradient_of_torch() -> None:
    blocks = torch.randn(2, 3, 4, 4, requires_grad=True)
    matrices = torch.stack([torch.block_diag(*own) for own in blocks])
    upstream = torch.randn(2, 12, 12)
    (expected,) = torch.autograd.grad(matrices, blocks, upstream)
    own = BlockDiagonals()
    torch.testing.assert_close(own.forward(blocks)[0], matrices)
    torch.testing.assert_close(own.backward(upstream, blocks)[0], expected)


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="has 16 inputs, which blocks of 32 do not divide"):
        BOFT(Options(block_size=4, factors=4)).apply(*fresh_model("bert"))


def test_counts_by_its_formula() -> None:
    assert BOFT(Options(block_size=4, factors=2)).layer_count(768, 3072) == 2 * 4 * 768 + 3072


@pytest.mark.parametrize(
    ("options", "message"),
    [({"factors": 2, "block_size": 3}, "even block_size, not 3"), ({"factors": 0}, "greater than or equal to 1")],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options(**options)
