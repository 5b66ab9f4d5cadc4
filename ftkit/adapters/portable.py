"""The trained part of a run as an adapter that stands on the untouched base: what `ftkit export --format adapter` writes, in memory."""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True)
class Portable:
    """An adapter's config (the content of adapter_config.json) and its tensors, by the names in its file."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def low_rank(self) -> bool:
        """Whether its updates are s B A and nothing else."""
        return any(METHODS.get(name).holds_low_rank(self.config) for name in METHODS.names())


def of_predictor(predictor: Predictor) -> Portable:
    """The adapter of a loaded run. Raises ModelError if its method trains the model itself."""
    method = predictor.prepared.method
    if not method.capabilities.adapter:
        raise ModelError(f"{method.name} trains the model itself; there is no separate adapter")
    with TemporaryDirectory(prefix="ftkit-adapter-") as name:
        method.save_adapter(predictor.prepared.model, Path(name))
        return _read(Path(name))


def of_folder(found: Trained) -> Portable | None:
    """The adapter in a folder, or that a run has exported; None for a run that has not."""
    folder = found.path if found.kind == ADAPTER else found.path / "export" / "adapter"
    return _read(folder) if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() else None


def _read(folder: Path) -> Portable:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return Portable(read_json(folder / CONFIG), load_file(folder / WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(Problem(message=f"cannot be read: {error}", place=str(folder))) from error


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
