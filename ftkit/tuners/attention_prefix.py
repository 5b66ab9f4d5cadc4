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

    def make_encoders(self) -> nn.ModuleDict:
        """What gives the prefix of each group: (length, modules * 2 * width of a key)."""
        made: dict[str, PromptEncoder] = {}
        for name, (count, width) in self.groups.items():
            size = count * 2 * width
            if self.hidden_size:
                made[name] = NetworkPrompt(self.length, self.width, tanh_network(self.width, self.hidden_size, size), size)
            else:
                made[name] = DirectPrompt(self.length, size)
        return nn.ModuleDict(made)


class AttentionPrefix(nn.Module, BaseTunerLayer):
    """The prefixes of all attention modules by adapter name."""

    adapter_layer_names = ("attention_prefix_encoder",)

    def __init__(self) -> None:
        super().__init__()
        self.attention_prefix_encoder = nn.ModuleDict({})
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter: str | list[str] = []
        self._places: dict[str, dict[str, int]] = {}
        self._groups: dict[str, list[str]] = {}
        self._current: dict[str, Tensor] = {}

    def update_layer(self, adapter_name: str, config: AttentionPrefixConfig, device: torch.device) -> None:
        """Adds a prefix."""
        self.attention_prefix_encoder[adapter_name] = config.make_encoders().to(device)
        self._places[adapter_name] = {}

    def serve(self, adapter_name: str, path: str) -> None:
        """Gives the attention module at `path` the next of its group's keys and values in this adapter."""
        places = self._places[adapter_name]
        places[path] = sum(group_of(other) == group_of(path) for other in places)

    def hook(self, module: nn.Module, path: str, stack: nn.Module, stack_path: str) -> list[Callable[[], Any]]:
        """Makes the attention module at `path` inside `stack` attend to the prefix; returns what undoes it."""
        undo: list[Callable[[], Any]] = [add_prefix(module, partial(self.prefix, path))]
        if stack_path not in self._groups:
            undo.append(stack.register_forward_pre_hook(partial(self._before_stack, stack_path)).remove)
        groups = self._groups.setdefault(stack_path, [])
        if group_of(path) not in groups:
            groups.append(group_of(path))
        return undo

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
        encoders: Any = {} if active is None else self.attention_prefix_encoder[active]
        for group in self._groups[stack_path]:
            self._current.pop(group, None)
            if group in encoders:
                flat = encoders[group]()
                count = sum(group_of(path) == group for path in self._places[str(active)])
                self._current[group] = flat.view(len(flat), count, 2, -1)

    def _active(self) -> str | None:
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.attention_prefix_encoder]
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
        config: Any = peft_config
        if self.container is None:
            self.attach(AttentionPrefix())
        if adapter_name not in self.layer.attention_prefix_encoder:
            self.layer.update_layer(adapter_name, config, next(target.parameters()).device)
        if current_key not in self.hooked:
            stack_path = _stack_of(self.model, current_key)
            self.undo += self.layer.hook(target, current_key, self.model.get_submodule(stack_path), stack_path)
            self.hooked.add(current_key)
        self.layer.serve(adapter_name, current_key)


def _stack_of(model: nn.Module, path: str) -> str:
    """Path of the innermost transformers model around a module."""
    while path and not isinstance(model.get_submodule(path), PreTrainedModel):
        path = path.rpartition(".")[0]
    return path
