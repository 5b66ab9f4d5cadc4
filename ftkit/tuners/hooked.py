"""What tuners share that change a model through hooks instead of replacing its modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from ftkit.tuners.prompt_encoders import PromptEncoder


class HookedTuner(BaseTuner):
    """A tuner with one layer for the whole model, a module at its root that PEFT finds like any other tuner layer.

    The layer keeps a `PromptEncoder`, or several in a ModuleDict, for each adapter. container_name: what it is called.
    hooked: paths of the modules that have their hooks; undo: what takes the hooks out again.
    """

    container_name: str
    tuner_layer_cls: type[BaseTunerLayer]
    target_module_mapping: dict[str, list[str]] = {}
    undo: list[Callable[[], Any]]
    hooked: set[str]

    def attach(self, layer: nn.Module) -> None:
        """Puts the layer into the model."""
        self.model.add_module(self.container_name, layer)
        self.undo, self.hooked = [], set()

    @property
    def container(self) -> nn.Module | None:
        """The layer, None before the first adapter."""
        return getattr(self.model, self.container_name, None)

    @property
    def layer(self) -> Any:
        """The layer. Raises RuntimeError before the first adapter."""
        if self.container is None:
            raise RuntimeError(f"the model has no {self.container_name}")
        return self.container

    def unload(self) -> nn.Module:
        """The model as it was: without hooks and adapters."""
        for undo in self.undo:
            undo()
        delattr(self.model, self.container_name)
        return super().unload()

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Not possible. Raises NotImplementedError."""
        raise NotImplementedError(f"{type(self).__name__} has nothing that could be merged into weights")

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """What is saved: prompts as they come out of their encoders."""
        return frozen_prompts(model, cls.tuner_layer_cls, adapter_name)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """PEFT's own looks for it at the end of a name only."""
        attribute = cls.tuner_layer_cls.adapter_layer_names[0]
        found = f".{attribute}.{adapter_name}."
        return key.replace(found, f".{attribute}.") if found in key else super()._remove_adapter_name_from_key(key, adapter_name)


def frozen_prompts(model: nn.Module, container: type[BaseTunerLayer], adapter_name: str) -> dict[str, Tensor]:
    """The prompts of an adapter as they come out of their encoders, by full name. container: class of the layer that holds them."""
    path, layer = next((path, module) for path, module in model.named_modules() if isinstance(module, container))
    attribute = layer.adapter_layer_names[0]
    saved: dict[str, Tensor] = {}
    for name, encoder in getattr(layer, attribute)[adapter_name].named_modules():
        if isinstance(encoder, PromptEncoder):
            names = (path, attribute, adapter_name, *([name] if name else []))
            saved |= {".".join([*names, key]): value for key, value in encoder.frozen_form().items()}
    return saved
