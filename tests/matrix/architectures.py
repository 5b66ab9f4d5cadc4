"""The columns of the compatibility matrix: tiny model folders as they lie on the hub, with the head of their pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.tiny import DECODERS, ENCODER_DECODERS, ENCODERS, FAMILIES, HIDDEN_SIZE, VISION, save_tiny, tiny_config

PAIR = "bert + bert"
"""Two encoders put together by `model.decoder`."""

ARCHITECTURES = [*(family for family in FAMILIES if family not in VISION), PAIR, *VISION]

POSITIONS = 256
"""Enough for the 100 tokens of a prompt by default."""

_PRETRAINING = {
    **dict.fromkeys(ENCODERS, "AutoModelForMaskedLM"),
    **dict.fromkeys(DECODERS, "AutoModelForCausalLM"),
    **dict.fromkeys(ENCODER_DECODERS, "AutoModelForSeq2SeqLM"),
    **dict.fromkeys(VISION, "AutoModelForImageClassification"),
}


def family_of(architecture: str) -> str:
    """The family of `tests.tiny` that an architecture begins with."""
    return architecture.partition(" + ")[0]


def recipe_model(architecture: str, folder: Path) -> Mapping[str, str]:
    """The recipe's `model`; model folders are made under `folder` when first asked for."""
    families = dict(zip(("name", "decoder"), architecture.split(" + "), strict=False))
    return {key: str(_saved(family, folder)) for key, family in families.items()}


def _saved(family: str, folder: Path) -> Path:
    path = folder / family
    if not path.is_dir():
        sizes = {key: POSITIONS for key in ("max_position_embeddings", "n_positions") if key in tiny_config(family).to_dict()}
        file = save_tiny(path, family, _PRETRAINING[family], **sizes) / "model.safetensors"
        save_file(_enlarged(load_file(file)), file, metadata={"format": "pt"})
    return path


def _enlarged(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices that hand on what they get; with the usual 0.02 a model this narrow gives all inputs the same output."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.empty_like(value).normal_(0, HIDDEN_SIZE**-0.5, generator=generator) if value.ndim > 1 else value
        for name, value in weights.items()
    }
