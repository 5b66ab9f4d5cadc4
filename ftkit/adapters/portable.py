"""The trained part of a run as an adapter that stands on the untouched base: what `ftkit export --format adapter` writes, in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ftkit.adapters.sources import ADAPTER, CONFIG, WEIGHTS, Trained, plain_name
from ftkit.errors import ModelError, Problem
from ftkit.files import read_json
from ftkit.registry import METHODS

if TYPE_CHECKING:
    from torch import Tensor

    from ftkit.run.predictor import Predictor

PARTNERS = {"lora_A": "lora_B", "lora_B": "lora_A"}
DAMAGED = "Restore its files from a copy, or export the adapter again"
MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Portable:
    """An adapter's config (the content of adapter_config.json) and its tensors, by the names in its file."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def low_rank(self) -> bool:
        """Whether its updates are s B A and nothing else."""
        return any(METHODS.get(name).holds_low_rank(self.config) for name in METHODS.names())

    @property
    def heads(self) -> list[str]:
        """Names of tensors of modules that were saved whole."""
        whole = tuple(f".{name}." for name in self.config.get("modules_to_save") or ())
        return [name for name in self.tensors if whole and any(mark in f".{name}" for mark in whole)]


def of_predictor(predictor: Predictor) -> Portable:
    """The adapter of a loaded run. Raises ModelError if its method trains the model itself, or its values are not finite."""
    method = predictor.prepared.method
    if not method.capabilities.adapter:
        raise ModelError(f"{method.name} trains the model itself; there is no separate adapter")
    with TemporaryDirectory(prefix="ftkit-adapter-") as name:
        method.save_adapter(predictor.prepared.model, Path(name))
        return _read(Path(name), predictor.folder)


def of_folder(found: Trained) -> Portable | None:
    """The adapter in a folder, or that a run has exported; None for a run that has not. Raises ModelError if its files are damaged."""
    folder = found.path if found.kind == ADAPTER else found.path / "export" / "adapter"
    return _read(folder, folder) if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() else None


def _read(folder: Path, place: Path) -> Portable:
    """place: where the user knows the adapter."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        adapter = Portable(read_json(folder / CONFIG), load_file(folder / WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(Problem(message=f"cannot be read: {error}", place=str(place))) from error
    if problems := [Problem(message=text, place=str(place), hint=DAMAGED) for text in _damage(adapter)]:
        raise ModelError(problems[:MOST_PROBLEMS])
    return adapter


def _damage(adapter: Portable) -> Iterator[str]:
    """What shows that an adapter is not as it was written."""
    for name, tensor in adapter.tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            yield f"{name} has values that are not finite numbers"
    if not adapter.low_rank:
        return
    alphas = [adapter.config.get("lora_alpha"), *(adapter.config.get("alpha_pattern") or {}).values()]
    for alpha in alphas:
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            yield f"{CONFIG}: `lora_alpha` is {alpha!r}, expected a number"
    yield from _broken_pairs(adapter)


def _broken_pairs(adapter: Portable) -> Iterator[str]:
    """Where A and B of a LoRA do not belong together, or to the rank that its config names."""
    from peft.utils.other import get_pattern_key

    ranks: Mapping[str, int] = adapter.config.get("rank_pattern") or {}
    for name, tensor in adapter.tensors.items():
        side = next((side for side in PARTNERS if f".{side}." in name and name.endswith(".weight")), "")
        if not side:
            continue
        partner = adapter.tensors.get(name.replace(f".{side}.", f".{PARTNERS[side]}."))
        layer = plain_name(name).partition(f".{side}.")[0]
        rank = ranks.get(get_pattern_key(list(ranks), layer), adapter.config.get("r"))
        if partner is None:
            yield f"{name} has no {PARTNERS[side]} beside it"
        elif tensor.dim() != 2 or tensor.shape[0 if side == "lora_A" else 1] != rank:
            yield f"{name} has the shape {list(tensor.shape)}, which is not of the rank {rank!r} that {CONFIG} names"


def factors(adapter: Portable) -> dict[str, tuple[Tensor, Tensor]]:
    """s B (out x r) and A (r x in) of each layer of a LoRA in float64, by the layer's plain name."""
    found = {}
    for name, a in adapter.tensors.items():
        layer, mark, _ = plain_name(name).partition(".lora_A.")
        if mark:
            b = adapter.tensors[name.replace(".lora_A.", ".lora_B.")]
            found[layer] = (scale(adapter.config, layer, a.shape[0]) * b.double(), a.double())
    return found


def scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """The factor s of a LoRA's update of a layer: alpha / r, with rsLoRA alpha / sqrt(r)."""
    from peft.utils.other import get_pattern_key

    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = float(patterns.get(get_pattern_key(list(patterns), layer), float(config["lora_alpha"])))
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
