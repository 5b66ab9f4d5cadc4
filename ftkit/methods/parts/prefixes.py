"""What the methods share that put trained keys and values in front of those of every attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ftkit.methods.base import block_numbers, range_refusal
from ftkit.models.sequences import OWN_ATTENTION, PLAIN_VISION

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

START = 0.02
"""Standard deviation of a prefix that is trained directly: what transformers gives new weights, P-tuning v2's prefix included."""


def prefix_refusal(facts: ModelFacts) -> str:
    """Why a model takes no prefix; '' if it does, as far as its type tells."""
    if facts.kind == "vision" and facts.model_type not in PLAIN_VISION:
        return f"{facts.model_type} does not keep its patches in one sequence, which a prefix needs; use `lora`"
    if facts.model_type in OWN_ATTENTION:
        return f"{facts.model_type} computes attention in a way of its own, which takes no prefix; use `prompt-tuning` or `lora`"
    return ""


def check_attention(layout: ModelLayout, method: str) -> None:
    """Raises ModelError if the attention function in use takes no prefix."""
    from ftkit.errors import ModelError, Problem
    from ftkit.tuners.prefixed_attention import SUPPORTED

    name = getattr(layout.model.config, "_attn_implementation", "eager")
    if name not in SUPPORTED:
        message = f"{method} works with the attention {' and '.join(SUPPORTED)}, and the model runs {name}"
        raise ModelError(Problem(message=message, key="model.attention", hint="Set `model.attention: sdpa`"))


def prefixed_modules(layout: ModelLayout, blocks: Sequence[str | int] | None) -> dict[str, int]:
    """Paths of the attention modules in order, and the width of their keys. blocks: only in these.

    Raises ModelError if there are none, or if the model lacks a named block.
    """
    from ftkit.errors import ModelError, Problem
    from ftkit.models.stacks import attention_widths

    chosen: Sequence[int] = range(len(layout.blocks))
    if blocks is not None:
        if reason := range_refusal(blocks, len(layout.blocks)):
            raise ModelError(Problem(message=reason, key="method.blocks"))
        chosen = block_numbers(blocks)
    return attention_widths(layout, [layout.blocks[number] for number in chosen])


def prefix_groups(modules: Mapping[str, int]) -> dict[str, list[int]]:
    """Number of modules and width of a key by group. Raises ModelError where keys of a group differ in width (Swin's stages)."""
    from ftkit.errors import ModelError
    from ftkit.tuners.attention_prefix import group_of

    groups: dict[str, list[int]] = {}
    for path, width in modules.items():
        group = groups.setdefault(group_of(path), [0, width])
        group[0] += 1
        if group[1] != width:
            raise ModelError(
                f"keys are {width} wide in {path} and {group[1]} elsewhere, and a prefix needs one width", hint="Use `lora`"
            )
    return groups


def prefix_size(groups: Mapping[str, Sequence[int]], length: int, width: int, hidden_size: int) -> int:
    """Number of trained parameters of a prefix. width, hidden_size: of the network that gives it; hidden_size 0: none."""
    count = 0
    for modules, key in groups.values():
        size = 2 * modules * key
        count += length * width + (width + 1) * hidden_size + (hidden_size + 1) * size if hidden_size else length * size
    return count


def start_prefixes(wrapped: nn.Module) -> None:
    """Gives prefixes that are trained directly their random start."""
    import torch

    from ftkit.tuners.prompt_encoders import DirectPrompt

    for module in wrapped.modules():
        if isinstance(module, DirectPrompt):
            module.start_from(torch.randn(module.vectors.shape) * START)
