"""What training changed besides the linear layers of a model: what of it an extracted LoRA can hold beside its updates, and what not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ftkit.run.predictor import Predictor

WRAPPED = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Where it goes. tensors: by the names in an adapter's file. options: of `lora`, that make room for them.

    left_out: names of parameters that have no place, with the reason ('' where nobody asked for one).
    """

    left_out: Mapping[str, str]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def place_rest(tuned: Predictor, rest: Mapping[str, Tensor], updates: Mapping[str, Tensor]) -> Rest:
    """A place for each changed parameter, so far as PEFT has one.

    rest: changes by name of the parameter; updates: those of linear layers by path, which the LoRA adapts.
    """
    import torch

    from ftkit.tuners.whole_modules import obstacle, top_most

    model: Any = tuned.bare_model
    plain = next((path for path in updates if getattr(model.get_submodule(path), "bias", None) is None), None)
    owners: dict[str, None] = {}
    left_out: dict[str, str] = {}
    biases: dict[str, Tensor] = {}
    for name, change in rest.items():
        owner = name.rpartition(".")[0]
        if owner in updates:
            biases[owner] = change
            if plain is not None:
                left_out[name] = f"PEFT adds biases to all adapted layers or to none, and {plain} has none"
        elif reason := obstacle(model, owner, updates):
            left_out[name] = reason
        else:
            owners[owner] = None
    modules = top_most(owners)
    tensors = {
        f"{WRAPPED}{path}.{name}": value.detach().cpu().clone()
        for path in modules
        for name, value in model.get_submodule(path).state_dict().items()
    }
    options: dict[str, Any] = {"modules_to_save": modules} if modules else {}
    if biases and plain is None:
        options["lora_bias"] = True
        none = {path: torch.zeros(len(update)) for path, update in updates.items()}
        tensors |= {f"{WRAPPED}{path}.lora_B.bias": value.float() for path, value in {**none, **biases}.items()}
    return Rest(left_out=left_out, tensors=tensors, options=options)


def rest_facts(rest: Mapping[str, Tensor], updates: Mapping[str, Tensor], placed: Rest, relative_error: float) -> dict[str, Any]:
    """`kept` and `left_out` by part, each with its share of the squared norm of all changes, and `remaining_error`: the norm of what the
    adapter lacks of the whole change, relative to that. relative_error: of the updates of linear layers."""
    squares = {name: float(change.square().sum()) for name, change in rest.items()}
    updated = sum(float(update.square().sum()) for update in updates.values())
    whole = updated + sum(squares.values())

    def table(names: list[str], reasons: Mapping[str, str]) -> list[dict[str, Any]]:
        parts: dict[tuple[str, str], list[str]] = {}
        for name in names:
            parts.setdefault((_part(name, rest[name]), reasons.get(name, "")), []).append(name)
        return [
            {
                "part": part,
                "parameters": sum(rest[name].numel() for name in members),
                "norm": sum(squares[name] for name in members) ** 0.5,
                "share": sum(squares[name] for name in members) / whole,
                **({"why": why} if why else {}),
            }
            for (part, why), members in parts.items()
        ]

    lacking = relative_error**2 * updated + sum(squares[name] for name in placed.left_out)
    return {
        "kept": table([name for name in rest if name not in placed.left_out], {}),
        "kept_bytes": sum(value.numel() * value.element_size() for value in placed.tensors.values()),
        "left_out": table(list(placed.left_out), placed.left_out),
        "remaining_error": (lacking / whole) ** 0.5,
    }


def _part(name: str, change: Tensor) -> str:
    if name.endswith("bias"):
        return "biases"
    return "norms" if change.dim() == 1 else "embeddings and other matrices"
