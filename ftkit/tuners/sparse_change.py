"""Sparse changes as a PEFT tuner: some numbers of the model's weights, anywhere in it, get a trained addition.

    w[p_i] <- w[p_i] + v_i,   i = 1..k;   p: positions in all changed tensors put one behind the other

One vector of k values is trained; the k positions, sorted, are a buffer beside it that is saved with it. So the file holds k values and k
positions, and several adapters may change other numbers of one base. Used by FISH masks (Sung et al. 2021,
https://arxiv.org/abs/2111.09839) and, for what is left of them, by diff pruning (Guo et al. 2021, https://arxiv.org/abs/2012.07463).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME, PeftType
from safetensors.torch import save_file
from torch import Tensor, nn

from ftkit.errors import ModelError
from ftkit.tuners.additions import AdditionLayer, AdditionModel


@dataclass
class SparseChangeConfig(PeftConfig):
    """Config of a sparse change.

    tensors: number of elements of each tensor that may be changed, by its name in the plain model. Positions count through
        them sorted by name.
    count: how many numbers are changed.
    target_modules: the modules that own the tensors; a list of module name endings, or a regular expression for whole names.
    modules_to_save: modules trained and saved whole, beside the change (the task head).
    """

    tensors: dict[str, int] = field(default_factory=dict)
    count: int = field(default=1)
    target_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["SPARSE_CHANGE"]


class FlatOrder:
    """Several tensors put one behind the other, sorted by name: PEFT sorts what it writes. sizes: number of elements by name."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        names = sorted(sizes)
        ends = list(accumulate(sizes[name] for name in names))
        self.ends = torch.tensor([0, *ends])
        self.numbers = {name: number for number, name in enumerate(names)}
        self.total = ends[-1] if ends else 0

    def bounds(self, positions: Tensor) -> list[int]:
        """Where the (sorted) positions of each tensor begin; at the end their number."""
        return torch.searchsorted(positions, self.ends.to(positions)).tolist()

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest type that holds all positions."""
        return torch.int32 if self.total <= torch.iinfo(torch.int32).max else torch.int64

    def start(self, name: str) -> int:
        """The position of a tensor's first element."""
        return int(self.ends[self.numbers[name]])


class SortedPositions:
    """Looks up which of the positions lie in a tensor. Remembers the bounds until the positions change."""

    def __init__(self, order: FlatOrder) -> None:
        self.order = order
        self._bounds: list[int] = []
        self._known: Tensor | None = None
        self._version = 0

    def span(self, positions: Tensor, name: str) -> tuple[int, int]:
        """First and last (exclusive) index into `positions` of those in the tensor `name`."""
        if positions is not self._known or positions._version != self._version:
            self._bounds, self._known, self._version = self.order.bounds(positions), positions, positions._version
        number = self.order.numbers[name]
        return self._bounds[number], self._bounds[number + 1]


class SparseValues(nn.Module):
    """The k values and positions of one adapter."""

    positions: Tensor

    def __init__(self, config: SparseChangeConfig) -> None:
        super().__init__()
        self.order = FlatOrder(config.tensors)
        self.values = nn.Parameter(torch.zeros(config.count))
        # Any sorted positions do until some are chosen or loaded.
        even = torch.arange(config.count) * self.order.total // config.count
        self.register_buffer("positions", even.to(self.order.dtype))
        self._lookup = SortedPositions(self.order)

    def choose(self, positions: Tensor) -> None:
        """Sets the positions; they are sorted here."""
        self.positions.copy_(positions.sort().values)

    def add(self, name: str, value: Tensor) -> Tensor:
        """A tensor of the model with the additions that lie in it."""
        first, last = self._lookup.span(self.positions, name)
        places = self.positions[first:last] - self.order.start(name)
        return plus_at(value, places, self.values[first:last])


def plus_at(value: Tensor, places: Tensor, added: Tensor) -> Tensor:
    """value with `added` at `places` (positions in the flattened tensor), in the wider type of the two."""
    wide = value.to(torch.promote_types(value.dtype, added.dtype))
    return wide.flatten().index_add(0, places, added.to(wide.dtype)).view(value.shape)


class SparseChangeLayer(AdditionLayer):
    """A leaf module of the model whose own parameters are partly changed."""

    adapter_layer_names = ()

    def __init__(self, base_layer: nn.Module, parts: nn.ModuleDict) -> None:
        super().__init__(base_layer)
        # Not a submodule: the values of an adapter belong to the tuner, which saves them once.
        self.__dict__["_tuner_parts"] = parts
        self.paths: dict[str, str] = {}

    @property
    def parts(self) -> Any:
        """Values and positions by adapter."""
        return self.__dict__["_tuner_parts"]

    def add(self, adapter_name: str, path: str, tensors: Mapping[str, int]) -> None:
        """Adds an adapter. Raises ModelError if it was made for a model of other sizes."""
        sizes = {f"{path}.{name}": parameter.numel() for name, parameter in self.get_base_layer().named_parameters(recurse=False)}
        for name, size in sizes.items():
            if tensors.get(name, size) != size:
                raise ModelError(
                    f"the adapter was trained on a model whose {name} has {tensors[name]:,} numbers, this has {size:,}"
                )
        self.paths[adapter_name] = path

    def changed(self, adapter_name: str) -> Sequence[str]:
        """All parameters of the module that are among the adapter's tensors."""
        if adapter_name not in self.parts or adapter_name not in self.paths:
            return ()
        known, path = self.parts[adapter_name].order.numbers, self.paths[adapter_name]
        return [name for name, _ in self.get_base_layer().named_parameters(recurse=False) if f"{path}.{name}" in known]

    def plus(self, adapter_name: str, name: str, value: Tensor) -> Tensor:
        """The parameter with what the adapter adds to it."""
        added: Tensor = self.parts[adapter_name].add(f"{self.paths[adapter_name]}.{name}", value)
        return added


class SparseChangeModel(AdditionModel):
    """Puts sparse changes into a model."""

    prefix = "sparse_change_"
    tuner_layer_cls = SparseChangeLayer
    uses_shared_state = True

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.sparse_change_parts = nn.ModuleDict()

    def make_layer(self, target: nn.Module) -> AdditionLayer:
        """The layer around a leaf module."""
        return SparseChangeLayer(target, self.sparse_change_parts)

    def add_adapter(self, layer: Any, config: Any, adapter_name: str, path: str) -> None:
        """Values of zero."""
        if adapter_name not in self.sparse_change_parts:
            self.sparse_change_parts[adapter_name] = SparseValues(config).to(next(layer.parameters()).device)
        layer.add(adapter_name, path, config.tensors)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activates adapters; the values of the others are frozen."""
        super().set_adapter(adapter_name, inference_mode)
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        for name, part in self.sparse_change_parts.items():
            part.requires_grad_(name in names and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Deletes an adapter with its values."""
        super().delete_adapter(adapter_name)
        if adapter_name in self.sparse_change_parts:
            del self.sparse_change_parts[adapter_name]

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT's own looks for the name right before the parameter's.
        before, container, inside = key.partition(".sparse_change_parts.")
        if not container:
            return super()._remove_adapter_name_from_key(key, adapter_name)
        return before + container + inside.removeprefix(f"{adapter_name}.")


def write_sparse_change(model: Any, positions: Tensor, values: Tensor, folder: Path) -> None:
    """Writes what another tuner has trained as the adapter of a sparse change, with the trained head.

    model: a PeftModel whose config has `tensors`, `target_modules` and `modules_to_save`. positions, values: (k,), sorted.
    """
    config = model.peft_config["default"]
    container = f".{type(model.base_model).prefix}"
    saved = {
        name: tensor
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        if container not in name
    }
    saved |= {"base_model.sparse_change_parts.values": values, "base_model.sparse_change_parts.positions": positions}
    written = SparseChangeConfig(
        tensors=config.tensors,
        count=len(values),
        target_modules=config.target_modules,
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    written.save_pretrained(str(folder))
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in saved.items()}
    save_file(contiguous, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
