"""Mix-and-match adapters as a PEFT tuner: a prefix at each attention and a scaled parallel adapter beside each feed-forward part.

Prefixes are those of `ftkit.tuners.attention_prefix`, adapters those of `ftkit.tuners.adapter`; here they make up one PEFT adapter.
Source: He et al. 2022, https://arxiv.org/abs/2110.04366, section 4.6.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn

from ftkit.models.naming import matches
from ftkit.tuners.adapter import AdapterConfig, AdapterModel, Patterns
from ftkit.tuners.attention_prefix import AttentionPrefix, give_prefix
from ftkit.tuners.bottleneck import AdapterLayer
from ftkit.tuners.hooked import HookedTuner, frozen_prompts


@dataclass
class MixAndMatchConfig(AdapterConfig):
    """Config of an adapter with a prefix.

    prefix_modules: the attention modules; they are among `target_modules`, too.
    length, groups, hidden_size, width: of the prefix, see `ftkit.tuners.attention_prefix.AttentionPrefixConfig`.
    """

    prefix_modules: Patterns = field(default=None)
    length: int = field(default=30)
    groups: dict[str, list[int]] = field(default_factory=dict)
    hidden_size: int = field(default=0)
    width: int = field(default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["MIX_AND_MATCH"]

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Writes the config of what is saved: the prefix without the network that trained it."""
        super(MixAndMatchConfig, replace(self, hidden_size=0, width=0)).save_pretrained(save_directory, **kwargs)


class MixAndMatchLayer(AdapterLayer):
    """A module of the model with adapters."""

    adapter_layer_names: tuple[str, ...] = ("mix_and_match_parts",)


class MixAndMatchPrefix(AttentionPrefix):
    """The prefixes of all attention modules."""

    adapter_layer_names: tuple[str, ...] = ("mix_and_match_encoder",)


class MixAndMatchModel(HookedTuner, AdapterModel):
    """Puts prefixes and adapters into a model. prefix_class: what holds the prefixes; layer_class: what holds the adapters."""

    prefix = "mix_and_match_"
    # Of both kinds of layers.
    tuner_layer_cls: Any = BaseTunerLayer
    container_name = "mix_and_match_prefix"
    prefix_class: type[AttentionPrefix] = MixAndMatchPrefix
    layer_class: type[AdapterLayer] = MixAndMatchLayer

    @classmethod
    def adapter_layer_class(cls) -> type[AdapterLayer]:
        """The class of the layers with adapters."""
        return cls.layer_class

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
        if matches(config.prefix_modules or [], current_key):
            give_prefix(self, self.prefix_class, config, adapter_name, target, current_key)
            return
        AdapterModel._create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Adapters as they are, prefixes as they come out of their encoders."""
        arguments: tuple[Any, ...] = (model, config, adapter_name, state_dict, unwanted_adapter_names)
        encoders = f".{cls.prefix_class.adapter_layer_names[0]}."
        # PEFT's own, past the method of hooked tuners.
        found: dict[str, Tensor] = super(HookedTuner, cls)._get_adapter_state_dict(*arguments)
        kept = {name: value for name, value in found.items() if encoders not in name}
        return kept | frozen_prompts(model, cls.prefix_class, adapter_name)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """PEFT's own looks for it at the end of a name only."""
        for container in (*cls.layer_class.adapter_layer_names, *cls.prefix_class.adapter_layer_names):
            before, found, inside = key.partition(f".{container}.")
            if found:
                return before + found + inside.removeprefix(f"{adapter_name}.")
        return super(AdapterModel, cls)._remove_adapter_name_from_key(key, adapter_name)
