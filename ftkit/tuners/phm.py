"""Parametrized hypercomplex multiplication (PHM): a linear layer whose matrix is a sum of Kronecker products.

    y = x H + b,   H = sum_i A_i (x) B_i,   i = 1..n;   A_i: n x n,   B_i: in/n x out/n, of rank r as s_i t_i

The A_i may be shared by all layers of an adapter. Sources: Zhang et al. 2021, https://arxiv.org/abs/2102.08597, equation 4;
Compacter, Karimi Mahabadi et al. 2021, https://arxiv.org/abs/2106.04647, equations 5 and 6, and the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

RULE_SCALE = 1e-4
"""Standard deviation of the A_i at first (`phm_init_range` of the authors' configs): so small that an adapter starts as nothing."""


def new_rules(terms: int) -> nn.Parameter:
    """The matrices A_i at first: float32 (n, n, n), by term, row, column."""
    return nn.Parameter(torch.randn(terms, terms, terms) * RULE_SCALE)


class PHMLinear(nn.Module):
    """A linear layer with H = sum_i A_i (x) B_i.

    rank: of each B_i = left_i @ right_i, None for full matrices. rules: where the shared A_i are, None for A_i of its own.
    Raises ValueError if `terms` does not divide both widths.
    """

    def __init__(
        self, inward: int, outward: int, *, terms: int, rank: int | None, rules: Callable[[], Tensor] | None = None
    ) -> None:
        super().__init__()
        if inward % terms or outward % terms:
            raise ValueError(f"{terms} Kronecker terms do not divide a layer of {inward} inputs and {outward} outputs")
        if rules is None:
            self.rules = new_rules(terms)
        # Not a submodule: the shared matrices are saved and trained once, by their owner.
        self.__dict__["_shared_rules"] = rules
        self.rank = rank
        if rank is None:
            self.matrix = nn.Parameter(torch.empty(terms, inward // terms, outward // terms))
        else:
            self.left = nn.Parameter(torch.empty(terms, inward // terms, rank))
            self.right = nn.Parameter(torch.empty(terms, rank, outward // terms))
        self.bias = nn.Parameter(torch.zeros(outward))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform matrices for each term (the authors' `glorot-uniform`), a zero bias."""
        for parameter in (self.matrix,) if self.rank is None else (self.left, self.right):
            for term in parameter.data:
                nn.init.xavier_uniform_(term)
        nn.init.zeros_(self.bias)

    def weight(self) -> Tensor:
        """H: (in, out)."""
        shared: Callable[[], Tensor] | None = self.__dict__["_shared_rules"]
        rules = self.rules if shared is None else shared()
        blocks = self.matrix if self.rank is None else self.left @ self.right
        terms, inward, outward = blocks.shape
        return torch.einsum("nab,ncd->acbd", rules, blocks).reshape(terms * inward, terms * outward)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        return nn.functional.linear(x, self.weight().T, self.bias)


def phm_size(inward: int, outward: int, terms: int, rank: int | None) -> int:
    """Number of parameters of a PHM layer without its A_i: r (in + out) + out, with full B_i in out / n + out."""
    return (inward * outward // terms if rank is None else rank * (inward + outward)) + outward
