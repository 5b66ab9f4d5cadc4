from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ftkit.errors import ModelError
from ftkit.methods.oft import OFT, Options
from tests.methods.cases import facts_of, fresh_model
from tests.methods.formulas import assert_follows_formula

BLOCK = 4


def skew_blocks(values: Tensor, size: int) -> Tensor:
    """Skew-symmetric matrices (n x b x b) whose upper triangles hold the values (n x b (b - 1) / 2), row by row."""
    blocks = []
    for row in values:
        block, entries = torch.zeros(size, size), iter(row)
        rows = [[next(entries) if column > line else torch.zeros(()) for column in range(size)] for line in range(size)]
        block = torch.stack([torch.stack(line) for line in rows])
        blocks.append(block - block.T)
    return torch.stack(blocks)


def series(skew: Tensor) -> Tensor:
    """(I + Q) (I - Q)^-1 with the inverse's series cut: I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4, as in PEFT."""
    identity = torch.eye(skew.shape[-1])
    square = skew @ skew
    return identity + 2 * skew + 2 * square + 2 * square @ skew + square @ square


def exact(skew: Tensor) -> Tensor:
    identity = torch.eye(skew.shape[-1])
    return torch.linalg.inv(identity + skew) @ (identity - skew)


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.parametrize(
    ("options", "orthogonal"),
    [({}, series), ({"exact": True}, exact), ({"share_blocks": True, "exact": True}, exact)],
    ids=["series", "exact", "shared"],
)
def test_equals_the_formula(family: str, options: dict[str, Any], orthogonal: Any) -> None:
    def weight(frozen: Tensor, own: dict[str, Tensor]) -> Tensor:
        blocks = orthogonal(skew_blocks(own["oft_R"], BLOCK))
        count = frozen.shape[1] // BLOCK
        rotation = torch.block_diag(*(blocks.expand(count, -1, -1) if len(blocks) == 1 else blocks))
        return frozen @ rotation.T

    assert_follows_formula(OFT(Options(block_size=BLOCK, targets="all-linear", **options)), family, "oft_", weight, size=0.1)


def test_exact_rotations_keep_the_lengths_of_rows() -> None:
    values = torch.randn(3, BLOCK * (BLOCK - 1) // 2)
    rotations = exact(skew_blocks(values, BLOCK))
    torch.testing.assert_close(rotations @ rotations.transpose(1, 2), torch.eye(BLOCK).expand(3, -1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("width", "block"), [(768, 32), (1600, 32), (300, 30), (0, 32)])
def test_auto_block_divides_the_width(width: int, block: int) -> None:
    from dataclasses import replace

    facts = replace(facts_of("bert"), hidden_size=width)
    assert OFT(Options()).defaults(facts)["method.block_size"].value == block


def test_blocks_that_do_not_fit_are_refused_with_those_that_do() -> None:
    model, layout = fresh_model("bert")
    with pytest.raises(ModelError, match=r"has 16 inputs, which blocks of 6 do not divide.*blocks of 2, 4, 8, 16"):
        OFT(Options(block_size=6, targets="all-linear")).apply(model, layout)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        Options(block_size=1)
