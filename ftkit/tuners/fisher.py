"""The empirical Fisher information of the numbers of a model, and the positions where it is largest.

    F = sum over batches of (dL/dw)^2

Source: Sung et al. 2021, https://arxiv.org/abs/2111.09839, equation 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from ftkit.tuners.sparse_change import FlatOrder, SparseChangeLayer


def fisher_information(
    model: nn.Module, order: FlatOrder, losses: Sequence[Callable[[], Tensor]], adapter_name: str = "default"
) -> Tensor:
    """F of the tensors in the order given: float32 (total,), on the device of the model.

    losses: one function for each batch, which gives the mean loss with its graph. A gradient lives only until it is squared, so that
    beside F no more than one tensor's gradient is held. The model's parameters train or not afterwards as they did before.
    """
    tensors = changed_parameters(model, adapter_name)
    found = torch.zeros(order.total, device=next(iter(tensors.values())).device)
    handles = []
    for name, parameter in tensors.items():
        place = found[order.start(name) :][: parameter.numel()]
        parameter.requires_grad_(True)
        handles.append(parameter.register_post_accumulate_grad_hook(partial(_square_into, place)))
    try:
        for loss in losses:
            loss().backward()
    finally:
        for handle, parameter in zip(handles, tensors.values(), strict=True):
            handle.remove()
            parameter.requires_grad_(False)
            parameter.grad = None
    # What overflowed in half precision says nothing.
    return found.nan_to_num_(nan=0.0, posinf=0.0)


def _square_into(place: Tensor, parameter: Tensor) -> None:
    if parameter.grad is not None:
        place += parameter.grad.flatten().float().square()
        parameter.grad = None


def changed_parameters(model: nn.Module, adapter_name: str) -> dict[str, nn.Parameter]:
    """The base parameters that an adapter may change, by their names in the plain model."""
    found: dict[str, nn.Parameter] = {}
    for layer in model.modules():
        if isinstance(layer, SparseChangeLayer):
            base = layer.get_base_layer()
            found |= {f"{layer.paths[adapter_name]}.{name}": base.get_parameter(name) for name in layer.changed(adapter_name)}
    return found


def largest(scores: Tensor, count: int, order: FlatOrder | None = None) -> Tensor:
    """Positions of the largest scores, `count` of them. order: as equal a share of each of its tensors as whole numbers allow."""
    if order is None:
        return scores.topk(count).indices
    ends = order.ends.tolist()
    sizes = [last - first for first, last in pairwise(ends)]
    chosen = [
        scores[first : first + size].topk(share).indices + first
        for first, size, share in zip(ends, sizes, equal_shares(sizes, count), strict=False)
    ]
    return torch.cat(chosen)


def equal_shares(sizes: Sequence[int], count: int) -> list[int]:
    """`count` distributed in proportion to sizes: rounded down, then one more where most was cut off."""
    exact = [count * size / sum(sizes) for size in sizes]
    shares = [int(value) for value in exact]
    by_rest = sorted(range(len(sizes)), key=lambda number: shares[number] - exact[number])
    for number in by_rest[: count - sum(shares)]:
        shares[number] += 1
    return shares
