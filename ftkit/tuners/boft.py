"""Lets PEFT's BOFT compute its butterflies without the CUDA extension that it would compile at first use.

Without that extension PEFT quietly takes one butterfly factor whatever was asked for, and warns. The extension only puts square blocks
on the diagonal of a matrix; the same in torch runs everywhere.
"""

from __future__ import annotations

import peft.tuners.boft.layer as boft
import torch
from torch import Tensor


class BlockDiagonals:
    """What PEFT asks of the extension. Blocks: n x d x h x h; matrices: n x (d h) x (d h)."""

    def forward(self, blocks: Tensor) -> list[Tensor]:
        """The matrices with these blocks on the diagonal."""
        return [torch.stack([torch.block_diag(*matrix) for matrix in blocks])]

    def backward(self, gradient: Tensor, blocks: Tensor) -> list[Tensor]:
        """The gradient of the blocks: what lies on the diagonal of that of the matrices."""
        count, number, size, _ = blocks.shape
        split = gradient.reshape(count, number, size, number, size)
        diagonal = torch.arange(number, device=gradient.device)
        return [split[:, diagonal, :, diagonal, :].transpose(0, 1).contiguous()]


if boft._FBD_CUDA is None:
    boft._FBD_CUDA = BlockDiagonals()  # type: ignore[assignment]
