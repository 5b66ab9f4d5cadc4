from __future__ import annotations

import pytest
import torch

from ftkit.tuners.phm import PHMLinear, phm_size


@pytest.mark.parametrize(("rank", "shared"), [(1, True), (3, False), (None, True), (None, False)])
def test_equals_a_sum_of_kronecker_products(rank: int | None, shared: bool) -> None:
    torch.manual_seed(0)
    rules = torch.randn(4, 4, 4, requires_grad=True)
    layer = PHMLinear(8, 12, terms=4, rank=rank, rules=(lambda: rules) if shared else None)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    x = torch.randn(5, 8)
    factors = [rules[i] if shared else layer.rules[i] for i in range(4)]
    blocks = [layer.matrix[i] if rank is None else layer.left[i] @ layer.right[i] for i in range(4)]
    matrix = sum(torch.kron(factor.detach(), block.detach()) for factor, block in zip(factors, blocks, strict=True))
    torch.testing.assert_close(layer(x), x @ matrix + layer.bias, atol=1e-5, rtol=1e-5)

    layer(x).square().sum().backward()
    own = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    shared_gradient = None if rules.grad is None else rules.grad.clone()
    layer.zero_grad()
    rules.grad = None
    again = sum(torch.kron(factor, block) for factor, block in zip(factors, blocks, strict=True))
    (x @ again + layer.bias).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(own[name], parameter.grad, atol=1e-5, rtol=1e-5)
    if shared:
        torch.testing.assert_close(shared_gradient, rules.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, None])
def test_size_is_the_number_of_parameters_without_the_factors(rank: int | None) -> None:
    layer = PHMLinear(16, 8, terms=4, rank=rank, rules=lambda: torch.zeros(4, 4, 4))
    assert phm_size(16, 8, 4, rank) == sum(parameter.numel() for parameter in layer.parameters())


@pytest.mark.parametrize(("inward", "outward"), [(10, 8), (8, 10)])
def test_terms_that_do_not_divide_the_widths_are_refused(inward: int, outward: int) -> None:
    with pytest.raises(ValueError, match="4 Kronecker terms do not divide"):
        PHMLinear(inward, outward, terms=4, rank=1)
