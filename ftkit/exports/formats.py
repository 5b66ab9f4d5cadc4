"""Writes a trained model in a form that others load: a PEFT adapter, or a plain transformers model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ftkit.data.aside import written_whole
from ftkit.files import read_json, write_json
from ftkit.methods.base import Method
from ftkit.models.processor import save_processor
from ftkit.models.trainable import to_uniform_dtype
from ftkit.tuners.wrap import merge


def export_adapter(method: Method, model: Any, processor: Any, target: Path, *, base_name: str) -> None:
    """Writes the adapter alone, with the tokenizer. `base_name` is what adapter_config.json calls the base model.

    `peft.PeftModel.from_pretrained(base, folder)` loads it.
    """

    def write(folder: Path) -> None:
        method.save_adapter(model, folder)
        config = folder / "adapter_config.json"
        write_json(config, {**read_json(config), "base_model_name_or_path": base_name})
        # PEFT's own card is a form to fill in; the run folder has a real one.
        (folder / "README.md").unlink(missing_ok=True)
        save_processor(processor, folder)

    _write_folder(target, write)


def export_merged(model: Any, processor: Any, target: Path, *, dtype: torch.dtype) -> nn.Module:
    """Writes a plain model with the trained part folded in, with tokenizer, template and generation config.

    `transformers.AutoModel....from_pretrained(folder)` loads the folder. dtype: of all weights written.
    Merging changes `model` for good; returns the merged one.
    """
    merged: Any = to_uniform_dtype(merge(model) if isinstance(model, PeftModel) else model, dtype)

    def write(folder: Path) -> None:
        merged.save_pretrained(folder, safe_serialization=True)
        save_processor(processor, folder)

    _write_folder(target, write)
    return merged


def _write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Fills a temporary folder and moves it into place, so that `target` is whole or absent."""
    with written_whole(target) as folder:
        write(folder)
