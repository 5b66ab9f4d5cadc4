"""Hypernetwork adapters (HyperFormer++) as a PEFT tuner: one small network writes the weights of all adapters.

    I = LN(W_2 relu(W_1 [z_t, l_i, p_j] + b_1) + b_2)                   z_t: source t, l_i: block i, p_j: place j in the block
    D, b_d, U, b_u = linear maps of I,   A(x) = LN_gen(U f(D x + b_d) + b_u)   gain and shift of LN_gen: linear maps of I, too

With several sources each row of a batch goes through adapters of its own source; without, there is one z.
Places are those of Houlsby's adapters (`ftkit.tuners.adapter`). The network belongs to the tuner, so that it is trained and saved once.
Source: Karimi Mahabadi et al. 2021, https://arxiv.org/abs/2106.04489, section 2.5; github.com/rabeehk/hyperformer
(AdapterLayersOneHyperNetController). There each stack has a network of its own; here one serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import PeftType
from torch import Tensor, nn
from torch.nn import functional

from ftkit.tuners.adapter import AdapterConfig, AdapterModel
from ftkit.tuners.bottleneck import ACTIVATIONS, AdapterLayer, Part
from ftkit.tuners.sourced_rows import RowSources, SourcedRows, forget_sources

START_SCALE, EPSILON = 1e-2, 1e-6


@dataclass
class HypernetworkConfig(AdapterConfig):
    """Config of generated adapters.

    slots: number of the block and of the place in it of each adapter, by module path. width: of the model.
    task_size: of z, l_i and p_j. hidden_size: of the network's hidden layer. embedding_size: of I. generated_norm: whether LN_gen is there.
    sources: names of the sources that have a z each, in the order of `source_ids`; None: one z for all rows.
    """

    slots: dict[str, list[int]] = field(default_factory=dict)
    width: int = field(default=0)
    task_size: int = field(default=64)
    hidden_size: int = field(default=128)
    embedding_size: int = field(default=64)
    generated_norm: bool = field(default=True)
    sources: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["HYPERNETWORK"]


class Hypernetwork(nn.Module):
    """Generates the weights of all adapters of one PEFT adapter.

    Linear maps start as N(0, 0.01) with zero biases, z, l and p as N(0, 1).
    """

    def __init__(self, config: HypernetworkConfig) -> None:
        super().__init__()
        width, size, task, inner = config.width, config.size(config.width), config.task_size, config.embedding_size
        self.sources = tuple(config.sources or ())
        self.task = nn.Parameter(torch.randn(*([len(self.sources)] if self.sources else []), task))
        blocks, places = kinds_of_slots(config.slots)
        self.blocks, self.places = nn.Parameter(torch.randn(blocks, task)), nn.Parameter(torch.randn(places, task))
        self.first, self.second = nn.Linear(3 * task, config.hidden_size), nn.Linear(config.hidden_size, inner)
        self.norm = nn.LayerNorm(inner, eps=EPSILON)
        shapes = {"down": (size, width), "down_bias": (size,), "up": (width, size), "up_bias": (width,)}
        if config.generated_norm:
            shapes |= {"gain": (width,), "shift": (width,)}
        self.shapes = shapes
        self.maps = nn.ModuleDict({name: nn.Linear(inner, torch.Size(shape).numel()) for name, shape in shapes.items()})
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=START_SCALE)
                nn.init.zeros_(layer.bias)

    def forward(self, block: int, place: int, rows: SourcedRows | None = None) -> dict[str, Tensor]:
        """Weights of the adapter at a place of a block, by name; for rows of several sources with a first dimension for these."""
        task = self._task(rows)
        where = torch.cat([self.blocks[block], self.places[place]])
        joint = torch.cat([task, where.expand(*task.shape[:-1], -1)], dim=-1)
        embedding = self.norm(self.second(torch.relu(self.first(joint))))
        return {name: self.maps[name](embedding).view(*task.shape[:-1], *shape) for name, shape in self.shapes.items()}

    def _task(self, rows: SourcedRows | None) -> Tensor:
        if rows is None:
            return self.task
        return self.task[rows.numbers[0]] if len(rows.numbers) == 1 else self.task[rows.present.to(self.task.device)]


def kinds_of_slots(slots: Mapping[str, list[int]]) -> tuple[int, int]:
    """Number of blocks and of kinds of places."""
    return 1 + max(block for block, _ in slots.values()), 1 + max(place for _, place in slots.values())


class GeneratedAdapter(nn.Module):
    """An adapter without weights of its own: (..., width) -> (..., width), computed in the type of the network.

    With several sources the input is (B, ..., width) or (B x positions, width).
    """

    def __init__(
        self,
        networks: nn.ModuleDict,
        row_sources: RowSources,
        adapter_name: str,
        slot: list[int],
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        # Not submodules: they belong to the tuner, which saves the network once.
        self.__dict__["_tuner_networks"], self.__dict__["_row_sources"] = networks, row_sources
        self.adapter_name, (self.block, self.place) = adapter_name, slot
        self.activation, self.dropout = ACTIVATIONS[activation](), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the model's own activations."""
        network = self.__dict__["_tuner_networks"][self.adapter_name]
        rows = self.__dict__["_row_sources"].rows(len(x), network.sources, flat=x.dim() == 2) if network.sources else None
        weights, inputs = network(self.block, self.place, rows), x.to(network.task.dtype)
        if rows is None or len(rows.numbers) == 1:
            change = _change(inputs, weights, self.activation)
        else:
            change = _change_by_row(inputs, weights, rows.members.to(x.device), self.activation)
        return self.dropout(change).to(x.dtype)


def _change(x: Tensor, weights: Mapping[str, Tensor], activation: Callable[[Tensor], Tensor]) -> Tensor:
    """What an adapter of these weights adds to (..., width)."""
    hidden = activation(functional.linear(x, weights["down"], weights["down_bias"]))
    change = functional.linear(hidden, weights["up"], weights["up_bias"])
    if "gain" in weights:
        change = functional.layer_norm(change, change.shape[-1:], weights["gain"], weights["shift"])
    return change


def _change_by_row(x: Tensor, weights: Mapping[str, Tensor], members: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The same with weights (U, ...) of several sources. members: which of these the rows are of, int64 (N,); N divides the rows of x."""
    own = {name: value[members] for name, value in weights.items()}
    # Beams and positions of a row lie side by side: as one long row they share its weights.
    inputs = x.reshape(len(members), -1, x.shape[-1])
    hidden = activation(torch.baddbmm(own["down_bias"][:, None], inputs, own["down"].mT))
    change = torch.baddbmm(own["up_bias"][:, None], hidden, own["up"].mT)
    if "gain" in own:
        change = torch.addcmul(own["shift"][:, None], functional.layer_norm(change, change.shape[-1:]), own["gain"][:, None])
    return change.reshape(x.shape)


class HypernetworkLayer(AdapterLayer):
    """A module of the model with generated adapters."""

    adapter_layer_names: tuple[str, ...] = ("hypernetwork_parts",)


class HypernetworkModel(AdapterModel):
    """Puts generated adapters into a model."""

    prefix = "hypernetwork_"
    tuner_layer_cls = HypernetworkLayer
    uses_shared_state = True

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.hypernetwork_networks, self.row_sources = nn.ModuleDict(), RowSources()
        self.handles: list[Any] = []

    def _part(self, config: Any, adapter_name: str, path: str, layer: AdapterLayer) -> Part:
        if adapter_name not in self.hypernetwork_networks:
            reference: Any = layer.reference
            device = reference.weight.device
            self.hypernetwork_networks[adapter_name] = Hypernetwork(config).to(device)
            if config.sources and not self.handles:
                self.handles = self.row_sources.hook(self.model)
        part = super()._part(config, adapter_name, path, layer)
        if path in config.slots:
            slot, networks = config.slots[path], self.hypernetwork_networks
            part.adapter = GeneratedAdapter(networks, self.row_sources, adapter_name, slot, config.activation, config.dropout)
        return part

    def make_adapter(self, config: Any, adapter_name: str, width: int) -> nn.Module:
        """A stand-in for the generated adapter, which needs to know its place."""
        return nn.Identity()

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activates adapters; the networks of the others are frozen with them."""
        super().set_adapter(adapter_name, inference_mode)
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        for name, network in self.hypernetwork_networks.items():
            network.requires_grad_(name in names and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Deletes an adapter with its network."""
        super().delete_adapter(adapter_name)
        if adapter_name in self.hypernetwork_networks:
            del self.hypernetwork_networks[adapter_name]

    def generate(self, *args: Any, source_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """What the model generates for rows of these sources, int64 (B,), where adapters differ by source."""
        model: Any = self.model
        with self.row_sources.generating(source_ids):
            return model.generate(*args, **kwargs)

    def unload(self) -> nn.Module:
        """The model as it was: without hooks and adapters."""
        for handle in self.handles:
            handle.remove()
        forget_sources(self.model)
        return super().unload()

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        before, container, inside = key.partition(".hypernetwork_networks.")
        if not container:
            return super()._remove_adapter_name_from_key(key, adapter_name)
        return before + container + inside.removeprefix(f"{adapter_name}.")
