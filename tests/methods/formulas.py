"""A model with an adapter against the plain model with weights that the method's formula gives, written once more in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ftkit.models.layout import ModelLayout
from tests.methods.cases import LABELS, batch_of, fresh_model

Parts = dict[str, Tensor]


def trained_parts(model: nn.Module, layout: ModelLayout, prefix: str) -> dict[str, Parts]:
    """Trained parameters of an adapter by plain module path and own name (`lora_A`)."""
    found: dict[str, Parts] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and f".{prefix}" in name:
            own = next(part for part in name.split(".") if part.startswith(prefix))
            found.setdefault(layout.canonical(name), {})[own] = parameter
    return found


def scatter(parts: Mapping[str, Parts], size: float = 0.3) -> None:
    """Random values for all of them: at the start most updates are zero, and a formula that forgets a factor would pass."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for own in parts.values():
            for parameter in own.values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)


def assert_follows_formula(
    method: Any,
    family: str,
    prefix: str,
    weight: Callable[[Tensor, Parts], Tensor],
    *,
    size: float = 0.3,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Outputs and gradients of the adapted model equal those of the plain model with `weight(W, parts)` (out x in) to 1e-5."""
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch_of(family).items()}
    model, layout = fresh_model(family, dtype=dtype)
    model = method.apply(model, layout)
    parts = trained_parts(model, layout, prefix)
    assert set(parts) == set(method.paths(layout))
    scatter(parts, size)
    logits = model(**inputs).logits
    nn.functional.cross_entropy(logits, LABELS).backward()

    plain, _ = fresh_model(family, dtype=dtype)
    weights = {name: parameter.detach() for name, parameter in plain.named_parameters()}
    copies = {path: {own: p.detach().clone().requires_grad_() for own, p in group.items()} for path, group in parts.items()}
    for path, group in copies.items():
        stored = weights[f"{path}.weight"]
        turned = type(plain.get_submodule(path)).__name__ == "Conv1D"
        new = weight(stored.T if turned else stored, group)
        weights[f"{path}.weight"] = new.T if turned else new
    expected = functional_call(plain, weights, (), inputs).logits
    nn.functional.cross_entropy(expected, LABELS).backward()

    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for path, group in parts.items():
        for own, parameter in group.items():
            torch.testing.assert_close(
                parameter.grad, copies[path][own].grad, atol=1e-5, rtol=1e-4, msg=lambda m, o=own: f"{o}: {m}"
            )
