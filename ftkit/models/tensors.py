"""Which tensors of a pretrained model a method may change number by number."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from ftkit.models.layout import ModelLayout
from ftkit.models.trainable import fixed_parameters


def changeable_tensors(layout: ModelLayout, *, embeddings: bool) -> dict[str, int]:
    """Number of elements of each weight and bias of the backbone's layers, by its name in the plain model, sorted by name.

    Left out: the head, tensors that several layers share (a change at one place would reach the others), bare parameters of modules that
    hold others (class tokens), what holds a formula, and (embeddings false) the embeddings.
    """
    uses: Counter[str] = Counter()
    sizes: dict[str, int] = {}
    fixed = {layout.canonical(name) for name in fixed_parameters(layout.model)}
    for name, parameter in layout.model.named_parameters(remove_duplicate=False):
        plain = layout.canonical(name)
        if layout.is_parameter(plain) and parameter.is_floating_point():
            uses[plain] += 1
            sizes[plain] = parameter.numel()
    left_out = {*layout.head_parameters(), *fixed, *(() if embeddings else layout.embedding_parameters())}
    chosen = (name for name in sizes if uses[name] == 1 and name not in left_out and _in_leaf(layout, name))
    return {name: sizes[name] for name in sorted(chosen)}


def owners(tensors: dict[str, int]) -> list[str]:
    """Paths of the modules that own the tensors."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))


def _in_leaf(layout: ModelLayout, name: str) -> bool:
    module: Any = layout.model.get_submodule(name.rpartition(".")[0])
    plain: nn.Module = getattr(module, "base_layer", module)
    return next(plain.children(), None) is None
