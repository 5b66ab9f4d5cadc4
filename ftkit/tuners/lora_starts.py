"""Starts of LoRA's matrices that PEFT does not give as ftkit needs them: OLoRA, EVA, LoftQ, and adapters whose start was split off W.

OLoRA, PiSSA: W = W' + s B0 A0; W' is frozen in W's place, A and B train from A0 and B0. Büyükakyüz 2024,
    https://arxiv.org/abs/2406.01775; Meng et al. 2024, https://arxiv.org/abs/2404.02948
EVA: A holds the first principal directions of the layer's inputs, B is zero. Paischer et al. 2024, https://arxiv.org/abs/2410.07170
LoftQ: s B A is the best approximation of rank r to what quantization took from W. Li et al. 2023, https://arxiv.org/abs/2310.08659
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.incremental_pca import IncrementalPCA
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ftkit.errors import ModelError
from ftkit.files import read_json, write_json

ADAPTER = "default"
CONVERGED = 0.99
"""Cosine between a direction before and after a batch from which on EVA counts it as found (PEFT's `tau`)."""


@contextmanager
def same_randomness() -> Iterator[None]:
    """Inside, random numbers are the same in every process: a start that is drawn again at loading must come out equal."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The LoRA layers of a model by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}


# --- starts that are split off the weight ------------------------------------------------------------------------------


@torch.no_grad()
def split_off_qr(model: nn.Module) -> None:
    """OLoRA: A and B become the first rows of R and columns of Q of W = Q R (out x in), and leave the frozen weight."""
    for layer in lora_layers(model).values():
        base, rank = layer.get_base_layer(), layer.r[ADAPTER]
        weight = base.weight.data.float()
        turned = type(base).__name__ == "Conv1D"
        orthogonal, triangular = torch.linalg.qr(weight.T if turned else weight)
        layer.lora_A[ADAPTER].weight.copy_(triangular[:rank])
        layer.lora_B[ADAPTER].weight.copy_(orthogonal[:, :rank])
        taken = layer.scaling[ADAPTER] * layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight
        base.weight.data = (weight - (taken.T if turned else taken)).to(base.weight.dtype)


def initial_matrices(model: PeftModel) -> dict[str, Tensor]:
    """A0 and B0 by their names in an adapter file."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.clone() for name, tensor in state.items() if ".lora_A." in name or ".lora_B." in name}


def write_against_whole_weight(folder: Path, initial: Mapping[str, Tensor]) -> None:
    """Rewrites a saved adapter that stands on W' = W - s B0 A0 as one of twice the rank that stands on W.

    s B A - s B0 A0 = s [B, -B0] [A; A0]. Any server loads it, and other adapters can share its base.
    """
    file, config_file = folder / SAFETENSORS_WEIGHTS_NAME, folder / "adapter_config.json"
    tensors = load_file(file)
    for name, start in initial.items():
        joined = [tensors[name], start.cpu()] if ".lora_A." in name else [tensors[name], -start.cpu()]
        tensors[name] = torch.cat(joined, dim=0 if ".lora_A." in name else 1).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    config = read_json(config_file)
    alpha = config["lora_alpha"] * (2**0.5 if config["use_rslora"] else 2)
    write_json(config_file, {**config, "r": 2 * config["r"], "lora_alpha": alpha, "init_lora_weights": True})


# --- EVA ---------------------------------------------------------------------------------------------------------------


class _Directions:
    """Principal directions of the rows seen so far; layers that get the same input share one."""

    def __init__(self, rank: int, width: int) -> None:
        # PEFT's approximate decomposition looks for twice as many directions as it keeps.
        approximate = 2 * rank <= width
        self._pca = IncrementalPCA(n_components=rank, copy=True, lowrank=approximate, lowrank_seed=42 if approximate else None)
        self._waiting: list[Tensor] = []
        self._needed = 2 * rank if approximate else rank
        self.rows, self.converged = 0, False

    @property
    def found(self) -> Tensor | None:
        """rank x width, None before enough rows were seen."""
        return getattr(self._pca, "components_", None)

    def see(self, rows: Tensor) -> None:
        """Takes in rows (n x width)."""
        if self.converged:
            return
        self.rows += len(rows)
        self._waiting.append(rows.float())
        if sum(map(len, self._waiting)) < self._needed:
            return
        before = self.found
        self._pca.partial_fit(torch.cat(self._waiting))
        self._waiting = []
        if before is not None and self.found is not None:
            self.converged = bool((torch.cosine_similarity(before, self.found) >= CONVERGED).all())


class _Watch:
    """Hooks that show the inputs of LoRA layers, padding left out, to the directions of these layers."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = lora_layers(model)
        self.directions: dict[str, _Directions] = {}
        self._followers: set[str] = set()
        self._masks: list[Tensor] = []
        self._last: tuple[Tensor, str] | None = None
        self.handles = [model.register_forward_pre_hook(self._note_masks, with_kwargs=True)]
        for path, layer in self.layers.items():
            self.handles.append(layer.register_forward_pre_hook(self._viewer(path)))

    def _note_masks(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        masks = [named.get(name) for name in ("attention_mask", "decoder_attention_mask")]
        self._masks = [mask for mask in masks if isinstance(mask, Tensor) and mask.ndim == 2]

    def _viewer(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def view(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows = inputs[0]
            if path not in self.directions:
                # Query, key and value are called one after the other with the very same tensor.
                sharing = self._last is not None and self._last[0] is rows
                rank, width = self.layers[path].r[ADAPTER], rows.shape[-1]
                self.directions[path] = self.directions[self._last[1]] if sharing and self._last else _Directions(rank, width)
                self._followers |= {path} if sharing else set()
            self._last = (rows, path)
            if path not in self._followers:
                self.directions[path].see(self._without_padding(rows))

        return view

    def _without_padding(self, rows: Tensor) -> Tensor:
        mask = next((mask for mask in self._masks if mask.shape == rows.shape[:-1]), None)
        return rows.reshape(-1, rows.shape[-1]) if mask is None else rows[mask.bool()]


@torch.no_grad()
def start_from_inputs(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> None:
    """EVA with one rank for all layers: each A becomes the first principal directions of what its layer is given.

    losses: each runs the model on one batch. Stops early once all directions stay. Raises ModelError if a layer saw too few tokens.
    """
    watch = _Watch(model)
    try:
        for loss in losses:
            loss()
            if all(directions.converged for directions in watch.directions.values()):
                break
    finally:
        for handle in watch.handles:
            handle.remove()
    for path, layer in watch.layers.items():
        directions = watch.directions.get(path)
        if directions is None or directions.found is None:
            seen = directions.rows if directions else 0
            message = f"init: eva found too few tokens in the first batches: {path} saw {seen}, rank {layer.r[ADAPTER]} needs more"
            raise ModelError(message, hint="Use a lower rank, more data or `init: default`")
        layer.lora_A[ADAPTER].weight.copy_(directions.found)
