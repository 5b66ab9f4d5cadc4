"""What can be known of a model from its folder alone, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model as its config describes it.

    kind: `encoder`, `decoder`, `encoder-decoder` or `vision`.
    model_type: transformers' name of the architecture (`bert`, `llama` ...).
    hidden_size, block_count: width and number of transformer blocks (encoder + decoder).
    max_positions: longest input in tokens, None where the architecture has no limit.
    path: the folder (or .gguf file) it lies in; None for a hub id that is not on this machine.
    """

    kind: str
    model_type: str
    hidden_size: int
    block_count: int
    max_positions: int | None
    vocab_size: int | None
    path: Path | None
