"""How a model that treats rows of several sources differently is told which row is from which: by numbers, one for each row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

SOURCE_IDS = "source_ids"
"""Argument of the forward pass and of `generate`: the number of each row's source, int64 (B,)."""


@contextmanager
def all_of_source(model: nn.Module, number: int) -> Iterator[None]:
    """While this lasts, calls that name no sources have rows of this one. For what calls parts of a model by itself: generation."""
    parts: list[Any] = [module for module in model.modules() if hasattr(module, "default_source")]
    before = [part.default_source for part in parts]
    for part in parts:
        part.default_source = number
    try:
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.default_source = value
