"""Attention modules of transformers made to attend to more keys and values than their input has.

    Attention(q, [P_K; K], [P_V; V])

Keys are prepended when the attention itself is computed: after rotations, after the cache. So positions, caches, generation,
checkpointing and packed inputs stay as they are. Masks let every query see the prefix; position biases are zero there.

With a gate g for each query (UniPELT), a query meets [g P_K; K] and [g P_V; V], so that no two queries have the same keys. The same
comes out of keys and values of twice the width, with the prefix in one half and the text in the other:

    scores = [g q, q] . [[P_K, 0]; [0, K]],   [y_1, y_2] = softmax(scores) [[P_V, 0]; [0, V]],   y = g y_1 + y_2
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

IMPLEMENTATION = "ftkit_prefix"
"""What transformers' attention interface calls the function below."""

SUPPORTED = ("sdpa", "eager")

Prefix = Callable[[], "Tensor | None"]
"""Gives the prefix in force, (length, 2, width) with keys first; None where there is none."""

Gate = Callable[[], "Tensor"]
"""Gives the factor of the prefix for each query of the current forward pass, (B, T, 1)."""


def attends(module: nn.Module) -> bool:
    """Whether the module computes attention in a way that takes a prefix."""
    return _uses_interface(module) or _is_disentangled(module)


def takes_gate(module: nn.Module) -> bool:
    """Whether the module's prefix can have a gate."""
    return _uses_interface(module)


def add_prefix(module: nn.Module, prefix: Prefix, gate: Gate | None = None) -> Callable[[], None]:
    """Makes an attention module attend to a prefix; returns what undoes it. Raises ValueError for a module of another kind.

    prefix, gate: a bound method or a partial of one, not a closure, so that a copy of the model gets its own; so is what is returned.
    """
    if _uses_interface(module):
        return _PrefixedConfig(module.config, prefix, gate).install(module)
    if _is_disentangled(module) and gate is None:
        return _DisentangledAttention(module, prefix).install()
    raise ValueError(f"{type(module).__name__} computes attention in a way of its own")


def _uses_interface(module: nn.Module) -> bool:
    return "ALL_ATTENTION_FUNCTIONS" in _forward(module).__code__.co_names


def _is_disentangled(module: nn.Module) -> bool:
    return type(module).__name__ == "DisentangledSelfAttention" and hasattr(module, "query_proj")


def _forward(module: nn.Module) -> Any:
    return inspect.unwrap(type(module).forward)


# --- through transformers' attention interface ---------------------------------------------------------------------------


class _PrefixedConfig:
    """The config of one attention module: that of the model, but for the name of the attention function."""

    _attn_implementation = IMPLEMENTATION

    def __init__(self, original: Any, prefix: Prefix, gate: Gate | None) -> None:
        self.original, self.prefix, self.gate = original, prefix, gate

    def install(self, module: nn.Module) -> Callable[[], None]:
        """Hands this to the module; returns what takes it back."""
        module.config = self  # type: ignore[assignment]
        return partial(setattr, module, "config", self.original)

    def __getattr__(self, name: str) -> Any:
        # While it is being copied, the instance has nothing yet.
        if name.startswith("__") or "original" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.original, name)


def _prefixed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    config: Any = module.config
    name, scope = config.original._attn_implementation, _forward(module).__globals__
    attend = scope["ALL_ATTENTION_FUNCTIONS"].get_interface(name, scope.get("eager_attention_forward"))
    prefix = config.prefix()
    if prefix is None:
        return attend(module, query, key, value, attention_mask, **kwargs)
    if name not in SUPPORTED:
        raise ValueError(f"prefixes work with the attention {' and '.join(SUPPORTED)}, not {name}")
    length = len(prefix)
    if attention_mask is None and _is_causal(module, kwargs, query):
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
    if attention_mask is not None:
        attention_mask = _see_all(attention_mask, length)
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = nn.functional.pad(kwargs["position_bias"], (length, 0))
    pairs = [(_heads(part, old), old) for part, old in zip(prefix.unbind(1), (key, value), strict=True)]
    if config.gate is not None:
        return _gated(partial(attend, module), config.gate(), query, pairs, attention_mask, kwargs)
    keys, values = (torch.cat(pair, dim=2) for pair in pairs)
    return attend(module, query, keys, values, attention_mask, **kwargs)


def _gated(
    attend: Callable[..., Any],
    gate: Tensor,
    query: Tensor,
    pairs: list[tuple[Tensor, Tensor]],
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    size, factor = query.shape[-1], gate.to(query.dtype)
    if kwargs.get("scaling") is None:
        kwargs["scaling"] = size**-0.5  # Not that of the doubled width.
    keys, values = (
        torch.cat([nn.functional.pad(part, (0, size)), nn.functional.pad(old, (size, 0))], dim=2) for part, old in pairs
    )
    doubled = torch.cat([query * factor[:, None], query], dim=-1)
    output, weights = attend(doubled, keys, values, mask, **kwargs)
    return output[..., :size] * factor[:, :, None] + output[..., size:], weights


def _is_causal(module: nn.Module, kwargs: dict[str, Any], query: Tensor) -> bool:
    """Whether sdpa would leave out later keys by itself; it counts keys from the first, which is now the prefix's."""
    stated = kwargs.get("is_causal")
    return query.shape[2] > 1 and bool(getattr(module, "is_causal", True) if stated is None else stated)


def _see_all(mask: Tensor, length: int) -> Tensor:
    return nn.functional.pad(mask, (length, 0), value=True if mask.dtype == torch.bool else 0.0)


def _heads(part: Tensor, like: Tensor) -> Tensor:
    """(length, heads * size) as (B, heads, length, size), in the type and shape of keys (B, heads, T, size)."""
    batch, heads, _, size = like.shape
    if part.shape[1] != heads * size:
        raise ValueError(f"the prefix has {part.shape[1]} numbers for each key, the model {heads} x {size}")
    return part.to(like.dtype).view(len(part), heads, size).transpose(0, 1).expand(batch, -1, -1, -1)


AttentionInterface.register(IMPLEMENTATION, _prefixed_attention)


# --- DeBERTa-v2 and v3 -----------------------------------------------------------------------------------------------------


class _DisentangledAttention:
    """DeBERTa's attention computes its scores itself. Its keys and values come out of two linear layers; these give the prefix, too."""

    def __init__(self, module: Any, prefix: Prefix) -> None:
        self.module, self.prefix, self._biasing = module, prefix, False
        self._handles: list[Any] = []

    def install(self) -> Callable[[], None]:
        """Hooks the module; returns what unhooks it."""
        self._handles = [
            self.module.register_forward_pre_hook(self._widen_mask, with_kwargs=True),
            self.module.key_proj.register_forward_hook(self._prepend_keys),
            self.module.value_proj.register_forward_hook(self._prepend_values),
        ]
        self.module.disentangled_attention_bias = self._bias
        return self._remove

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        del self.module.disentangled_attention_bias

    def _widen_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        prefix = self.prefix()
        if prefix is None:
            return None
        mask = args[1] if len(args) > 1 else kwargs["attention_mask"]
        mask = nn.functional.pad(mask, (len(prefix), 0), value=1)
        return ((args[0], mask, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "attention_mask": mask})

    def _prepend_keys(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return self._prepend(0, output)

    def _prepend_values(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return self._prepend(1, output)

    def _prepend(self, part: int, output: Tensor) -> Tensor | None:
        prefix = None if self._biasing else self.prefix()
        if prefix is None:
            return None
        return torch.cat([prefix[:, part].to(output.dtype).expand(len(output), -1, -1), output], dim=1)

    def _bias(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Relative positions count between tokens only. The bias is made with the key projection where the two are shared."""
        prefix = self.prefix()
        length = 0 if prefix is None else len(prefix)
        original = type(self.module).disentangled_attention_bias
        self._biasing = True
        try:
            bias = original(self.module, query, key[:, length:], *args, **kwargs)
        finally:
            self._biasing = False
        return nn.functional.pad(bias, (length, 0)) if isinstance(bias, Tensor) else bias
