"""LoftQ: LoRA starts from what 4-bit quantization took from the weights.

    s B A = the best approximation of rank r to W - Q,   Q: the values that the quantized layer computes with

One round of the paper's alternation, as PEFT does it for a base that is quantized already. Source: Li et al. 2023,
https://arxiv.org/abs/2310.08659, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ftkit.errors import ModelError
from ftkit.files import read_json
from ftkit.models.quantization import dequantized
from ftkit.tuners.lora_starts import ADAPTER, lora_layers

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HINT = "Use `init: default`"


@torch.no_grad()
def start_from_quantization_error(model: Any) -> None:
    """Sets A and B of every LoRA layer of a PEFT model on a 4-bit base.

    Raises ModelError if the unquantized weights are not where the base was loaded from.
    """
    plain = model.get_base_model()
    with _original_weights(plain) as weights:
        for path, layer in lora_layers(plain).items():
            base = layer.get_base_layer()
            kept = dequantized(base)
            error = _error(weights.get(path), kept)
            left, sizes, right = torch.linalg.svd(error, full_matrices=False)
            rank = layer.r[ADAPTER]
            roots = (sizes[:rank] / layer.scaling[ADAPTER]).sqrt()
            layer.lora_A[ADAPTER].weight.copy_(roots[:, None] * right[:rank])
            layer.lora_B[ADAPTER].weight.copy_(left[:, :rank] * roots)


def _error(original: Tensor, kept: Tensor) -> Tensor:
    """W - Q. A Conv1D stores W turned around; where both directions have Q's shape, the right one is closer to it."""
    candidates = [weight for weight in (original.to(kept), original.T.to(kept)) if weight.shape == kept.shape]
    if not candidates:
        raise ModelError(f"the unquantized weight has the shape {list(original.shape)}, not {list(kept.shape)}", hint=HINT)
    return min((weight - kept for weight in candidates), key=lambda error: float(error.norm()))


class _Weights:
    """Weights of a checkpoint by module path, read one at a time."""

    def __init__(self, model: Any, opened: dict[str, Any], places: dict[str, str]) -> None:
        self._model, self._opened, self._places = model, opened, places

    def get(self, path: str) -> Tensor:
        """The weight of the module at `path` of the model, float32."""
        name, prefix = f"{path}.weight", f"{self._model.base_model_prefix}."
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in self._places:
                found: Tensor = self._opened[self._places[candidate]].get_tensor(candidate)
                return found.float()
        raise ModelError(f"init: loftq needs the unquantized {name}, which {self._model.name_or_path} does not hold", hint=HINT)


@contextmanager
def _original_weights(model: Any) -> Iterator[_Weights]:
    with ExitStack() as stack:
        opened, places = {}, {}
        for file in _files(model):
            opened[file.name] = stack.enter_context(safe_open(file, framework="pt"))
            places.update(dict.fromkeys(opened[file.name].keys(), file.name))
        yield _Weights(model, opened, places)


def _files(model: Any) -> list[Path]:
    """The safetensors files that the model was loaded from. Raises ModelError if there are none."""
    if single := _file(model, SINGLE):
        return [single]
    if index := _file(model, INDEX):
        names = sorted(set(read_json(index)["weight_map"].values()))
        return [file for name in names if (file := _file(model, name))]
    raise ModelError(f"init: loftq needs the unquantized weights; {model.name_or_path or 'the model'} has no {SINGLE}", hint=HINT)


def _file(model: Any, name: str) -> Path | None:
    from transformers.utils.hub import cached_file

    folder = Path(model.name_or_path)
    if not model.name_or_path or folder.is_dir():
        return folder / name if model.name_or_path and (folder / name).is_file() else None
    found = cached_file(
        model.name_or_path,
        name,
        revision=getattr(model.config, "_commit_hash", None),
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None
