"""Lengths in tokens against the positions that a model has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ftkit.methods.base import Default

if TYPE_CHECKING:
    from ftkit.models.facts import ModelFacts


def longest_input(facts: ModelFacts, most: int, why: str = "") -> Default:
    """The default of an option for the longest input: what the model takes, at most `most` tokens. why: a source for `most`."""
    takes = "any length" if facts.max_positions is None else f"{facts.max_positions} tokens"
    value = most if facts.max_positions is None else min(facts.max_positions, most)
    cited = f" ({why})" if why else ""
    return Default(value=value, source=f"{facts.model_type} takes {takes}; at most {most}{cited} unless asked for")


def beyond_positions(facts: ModelFacts, lengths: Mapping[str, Any]) -> str:
    """Why the first of these options (name: tokens, or what is no number) asks for more positions than there are; '' if none does."""
    for key, value in lengths.items():
        if isinstance(value, int) and facts.max_positions is not None and value > facts.max_positions:
            return f"{key} is {value}, but {facts.model_type} takes at most {facts.max_positions} tokens"
    return ""
