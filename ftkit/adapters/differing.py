"""`ftkit adapters diff`: in what two trained states differ, tensor by tensor and setting by setting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ftkit.adapters.sources import RUN, Trained, same_base
from ftkit.recipe.plan import recipe_values

if TYPE_CHECKING:
    from torch import Tensor

NOT_SETTINGS = ("output",)


def diff(one: Trained, other: Trained) -> dict[str, Any]:
    """{`a`, `b`, `same_base`, `base`, `tensors`, `only_in_a`, `only_in_b`, `other_shape`, `settings`, `equal`}.

    tensors: for each that both have {`name`, `max_difference`, `relative_difference`, `cosine`}: max |a - b|, |a - b| / |a| (Frobenius)
    and <a, b> / (|a| |b|), null where a norm is zero or not finite. settings: {`key`, `a`, `b`} of runs from their plans, of adapters from
    adapter_config.json; null where one is a run and the other an adapter.
    """
    first, second = one.tensors(), other.tensors()
    shared = [name for name in first if name in second]
    fitting = [name for name in shared if first[name].shape == second[name].shape]
    same, how = same_base(one, other)
    tensors = [{"name": name, **distance(first[name], second[name])} for name in fitting]
    only = [sorted(mine.keys() - theirs.keys()) for mine, theirs in ((first, second), (second, first))]
    misfits = [
        {"name": name, "a": list(first[name].shape), "b": list(second[name].shape)} for name in shared if name not in fitting
    ]
    return {
        "a": str(one.path),
        "b": str(other.path),
        "same_base": same,
        "base": how,
        "tensors": tensors,
        "only_in_a": only[0],
        "only_in_b": only[1],
        "other_shape": misfits,
        "settings": _settings(one, other),
        "equal": not any((*only, misfits)) and all(entry["max_difference"] == 0 for entry in tensors),
    }


def distance(one: Tensor, other: Tensor) -> dict[str, float | None]:
    """How far apart two tensors of one shape are, computed in float64."""
    a, b = one.double().flatten(), other.double().flatten()
    size_a, size_b = float(a.norm()), float(b.norm())
    apart = a - b
    product = float(a @ b) / (size_a * size_b) if size_a and size_b else math.nan
    return {
        "max_difference": float(apart.abs().max()) if apart.numel() else 0.0,
        "relative_difference": float(apart.norm()) / size_a if size_a else None,
        "cosine": min(1.0, max(-1.0, product)) if math.isfinite(product) else None,
    }


def _settings(one: Trained, other: Trained) -> list[dict[str, Any]] | None:
    if one.kind != other.kind:
        return None
    first, second = (dict(_flat(_values(found))) for found in (one, other))
    keys = dict.fromkeys([*first, *second])
    return [{"key": key, "a": first.get(key), "b": second.get(key)} for key in keys if first.get(key) != second.get(key)]


def _values(found: Trained) -> Mapping[str, Any]:
    if found.kind == RUN and found.recipe is not None:
        return {key: value for key, value in recipe_values(found.recipe).items() if key not in NOT_SETTINGS}
    return found.config


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", sorted(value, key=str) if isinstance(value, list) and prefix == "" else value
