"""A PEFT tuner for prefix tuning: trained keys and values in front of those that each attention computes.

    Attention(q, [P_K; K], [P_V; V]),   P of each layer trained directly, or the output of a small network

Li & Liang 2021, https://arxiv.org/abs/2101.00190; for encoders P-tuning v2, Liu et al. 2022, https://arxiv.org/abs/2110.07602.

PEFT 0.21's own prefix tuning fills the cache of a decoder: it reaches no encoder without one (DistilBERT, DeBERTa, ViT, the
encoders of T5 and BART), no cross-attention, shifts the positions of the text and excludes gradient checkpointing. Here the prefix
meets keys and values at the attention itself (`ftkit.tuners.prefixed_attention`). One module `attention_prefix` at the model's root
holds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftkit.tuners.hooked import HookedTuner
from ftkit.tuners.prefixed_attention import add_prefix
from ftkit.tuners.prompt_encoders import DirectPrompt, NetworkPrompt, PromptEncoder, tanh_network

NAME = "attention_prefix"


def group_of(path: str) -> str:
    """Attention modules with equal paths but for numbers (all self-attentions of a decoder) have one network."""
    return re.sub(r"\.\d+(?=\.)", "", path).replace(".", "-")


@dataclass
class AttentionPrefixConfig(PeftConfig):
    """Config of a prefix.

    length: keys and values in front of each attention.
    groups: number of attention modules and width of a key (of all heads together), by group, see `group_of`.
    hidden_size: of the network that gives a prefix in training; 0 where it is trained directly. width: of what goes into it.
    target_modules: the attention modules.
    modules_to_save: modules trained and saved whole, beside the prefix (the task head).
    """

    length: int = field(default=20)
    groups: dict[str, list[int]] = field(default_factory=dict)
    hidden_size: int = field(default=0)
    width: int = field(default=0)
    target_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["ATTENTION_PREFIX"]

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Writes the config of what is saved: the prefix without the network that trained it."""
        super(AttentionPrefixConfig, replace(self, hidden_size=0, width=0)).save_pretrained(save_directory, **kwargs)


def make_encoders(config: Any) -> nn.ModuleDict:
    """What gives the prefix of each group: (length, modules * 2 * width of a key). config: has the first four fields of the above."""
    made: dict[str, PromptEncoder] = {}
    for name, (count, width) in config.groups.items():
        size = count * 2 * width
        if config.hidden_size:
            made[name] = NetworkPrompt(config.length, config.width, tanh_network(config.width, config.hidden_size, size), size)
        else:
            made[name] = DirectPrompt(config.length, size)
    return nn.ModuleDict(made)


class AttentionPrefix(nn.Module, BaseTunerLayer):
    """The prefixes of all attention modules by adapter name."""

    adapter_layer_names: tuple[str, ...] = ("attention_prefix_encoder",)

    def __init__(self) -> None:
        super().__init__()
        self.add_module(self.adapter_layer_names[0], nn.ModuleDict({}))
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter: str | list[str] = []
        self._places: dict[str, dict[str, int]] = {}
        self._groups: dict[str, list[str]] = {}
        self._current: dict[str, Tensor] = {}

    @property
    def encoders(self) -> Any:
        """What gives the prefixes, by adapter name and group."""
        return getattr(self, self.adapter_layer_names[0])

    def update_layer(self, adapter_name: str, config: Any, device: torch.device) -> None:
        """Adds a prefix. config: see `make_encoders`."""
        self.encoders[adapter_name] = make_encoders(config).to(device)
        self._places[adapter_name] = {}

    def serve(self, adapter_name: str, path: str) -> None:
        """Gives the attention module at `path` the next of its group's keys and values in this adapter."""
        places = self._places[adapter_name]
        places[path] = sum(group_of(other) == group_of(path) for other in places)

    def hook(self, module: nn.Module, path: str, stack: nn.Module, stack_path: str) -> list[Callable[[], Any]]:
        """Makes the attention module at `path` inside `stack` attend to the prefix; returns what undoes it."""
        undo = self.connect(module, path)
        if stack_path not in self._groups:
            undo.append(stack.register_forward_pre_hook(partial(self._before_stack, stack_path)).remove)
        groups = self._groups.setdefault(stack_path, [])
        if group_of(path) not in groups:
            groups.append(group_of(path))
        return undo

    def connect(self, module: nn.Module, path: str) -> list[Callable[[], Any]]:
        """Hands the prefix to an attention module; returns what undoes it."""
        return [add_prefix(module, partial(self.prefix, path))]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible. Raises NotImplementedError."""
        raise NotImplementedError("a prefix is an input of attention and cannot be merged into weights")

    def prefix(self, path: str) -> Tensor | None:
        """Keys and values (length, 2, width) for the attention module at `path`; None where the active adapter has none."""
        whole, place = self._current.get(group_of(path)), self._places.get(self._active() or "", {}).get(path)
        return None if whole is None or place is None else whole[:, place]

    def _before_stack(self, stack_path: str, stack: nn.Module, args: tuple[Any, ...]) -> None:
        """Computes the prefix once for each forward pass, and outside of what gradient checkpointing computes again."""
        active = self._active()
        encoders = {} if active is None else self.encoders[active]
        for group in self._groups[stack_path]:
            self._current.pop(group, None)
            if group in encoders:
                flat = encoders[group]()
                count = sum(group_of(path) == group for path in self._places[str(active)])
                self._current[group] = flat.view(len(flat), count, 2, -1)

    def _active(self) -> str | None:
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.encoders]
        return names[0] if names else None

    def __getstate__(self) -> dict[str, Any]:
        """For copies: what was computed belongs to a graph and cannot be copied."""
        return {**self.__dict__, "_current": {}}


class AttentionPrefixModel(HookedTuner):
    """Puts prefixes in front of the keys and values of attention modules."""

    prefix = "attention_prefix_"
    tuner_layer_cls = AttentionPrefix
    container_name = NAME

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        give_prefix(self, AttentionPrefix, peft_config, adapter_name, target, current_key)


def give_prefix(
    tuner: HookedTuner, container: type[AttentionPrefix], config: Any, adapter_name: str, target: nn.Module, path: str
) -> None:
    """Gives the attention module `target` at `path` a prefix of an adapter. container: made for the first one."""
    if tuner.container is None:
        tuner.attach(container())
    layer = tuner.layer
    if adapter_name not in layer.encoders:
        layer.update_layer(adapter_name, config, next(target.parameters()).device)
    if path not in tuner.hooked:
        stack_path = _stack_of(tuner.model, path)
        tuner.undo += layer.hook(target, path, tuner.model.get_submodule(stack_path), stack_path)
        tuner.hooked.add(path)
    layer.serve(adapter_name, path)


def _stack_of(model: nn.Module, path: str) -> str:
    """Path of the innermost transformers model around a module."""
    while path and not isinstance(model.get_submodule(path), PreTrainedModel):
        path = path.rpartition(".")[0]
    return path
