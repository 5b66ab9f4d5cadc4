"""The members of an AdapterFusion: exported adapters, what their configs say, and how their weights get into the fusion."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ftkit.errors import ModelError, Problem
from ftkit.tuners.adapter import OUTPUT_PLACES, AdapterConfig
from ftkit.tuners.adapter_fusion import AdapterFusionConfig, AdapterFusionLayer, FusedAdapters
from ftkit.tuners.bottleneck import ACTIVATIONS, AdapterLayer
from ftkit.tuners.compacter import CompacterConfig, CompacterLayer

SHAPING = ("bottleneck", "reduction_factor", "activation", "layer_norm", "scaling")
SHAPING_COMPACTER = (*SHAPING, "kronecker_terms", "rank")
PATTERNS = ("output_modules", "around_modules", "carry_modules")
LAYER_NORMS = ("none", "before", "after")
KEY = "method.adapters"
OTHER_BASE = "Give adapters of this base, whole as they were exported"
WRAPPED, SHARED = "base_model.model.", "base_model.compacter_rules"


@dataclass(frozen=True)
class Member:
    """One trained adapter: the place of its file, its config and its weights, by module path and name in the adapter."""

    folder: Path
    config: AdapterConfig
    weights: Mapping[str, Mapping[str, Tensor]]


def read_member(folder: Path, fields: Mapping[str, Any]) -> Member:
    """Reads an exported adapter. fields: what its adapter_config.json says. Raises ModelError if its weights cannot be read."""
    config = member_config(fields, folder / CONFIG_NAME)
    layer = CompacterLayer if isinstance(config, CompacterConfig) else AdapterLayer
    file = folder / SAFETENSORS_WEIGHTS_NAME
    try:
        saved = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(Problem(message=f"cannot read the adapter's weights: {error}", place=str(file))) from error
    container = f".{layer.adapter_layer_names[0]}.adapter."
    _check_weights(saved, container, config, file)
    return Member(folder, config, _by_module(saved, container))


def member_config(fields: Mapping[str, Any], file: Path) -> AdapterConfig:
    """The config in an adapter_config.json. file: where it stands. Raises ModelError for values of which no adapter can be built."""
    cls = CompacterConfig if fields["peft_type"] == "COMPACTER" else AdapterConfig
    known = {name: value for name, value in fields.items() if name in cls.__dataclass_fields__ and name != "peft_type"}
    config = cls(**known)
    _check_shape(config, file)
    return config


def _check_weights(saved: Mapping[str, Tensor], container: str, config: AdapterConfig, file: Path) -> None:
    """Raises ModelError for what a whole adapter does not hold."""
    heads = tuple(f".{name}." for name in config.modules_to_save or ())
    known = (container, f".{SHARED}", *heads)
    messages = [f"{name} is no part of such an adapter" for name in saved if not any(mark in f".{name}" for mark in known)]
    messages += [
        f"{name} has values that are not finite numbers" for name, tensor in saved.items() if not tensor.float().isfinite().all()
    ]
    if messages:
        hint = "Export that adapter again"
        raise ModelError([Problem(message=text, place=str(file), key=KEY, hint=hint) for text in messages[:20]])


def _check_shape(config: AdapterConfig, file: Path) -> None:
    """Raises ModelError for values of which no adapter can be built."""
    names: dict[str, Collection[str]] = {"placement": OUTPUT_PLACES, "activation": ACTIVATIONS, "layer_norm": LAYER_NORMS}
    wrong = [(name, f"one of {', '.join(known)}") for name, known in names.items() if getattr(config, name) not in list(known)]
    sizes = ("bottleneck", "reduction_factor", "kronecker_terms", "rank")
    wrong += [(name, "a number above 0") for name in sizes if not _is_size(getattr(config, name, None))]
    messages = [f"`{name}` is {getattr(config, name)!r}, expected {expected}" for name, expected in wrong]
    if config.bottleneck is None and config.reduction_factor is None:
        messages.append("`bottleneck` and `reduction_factor` are both missing")
    if messages:
        hint = "Export that adapter again"
        raise ModelError([Problem(message=message, place=str(file), key=KEY, hint=hint) for message in messages])


def _is_size(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0)


def _by_module(saved: Mapping[str, Tensor], container: str) -> dict[str, dict[str, Tensor]]:
    """The adapter's weights by module path; shared factors are given to each layer that uses them. The head is left out."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        path, _, name = key.partition(container)
        if name:
            found.setdefault(path.removeprefix(WRAPPED), {})[name] = tensor
    if SHARED in saved:
        for tensors in found.values():
            tensors.update({"down.rules": saved[SHARED], "up.rules": saved[SHARED]})
    return found


def fusion_config(members: Sequence[Member], dropout: float) -> AdapterFusionConfig:
    """The config of a fusion of these members, at their places. Raises ModelError if they are not at the same places."""
    first = members[0]
    for member in members[1:]:
        different = first.weights.keys() ^ member.weights.keys()
        if first.config.placement != member.config.placement or different:
            what = f"for instance {min(different)}" if different else f"{member.config.placement}, {first.config.placement}"
            message = f"its adapters are at other places than those of {first.folder}: {what}"
            hint = "Train the members with the same placement, blocks and cross_attention"
            raise ModelError(Problem(message=message, place=str(member.folder), key=KEY, hint=hint))
    patterns = {name: getattr(first.config, name) for name in PATTERNS}
    return AdapterFusionConfig(
        target_modules=first.config.target_modules,
        **patterns,
        placement=first.config.placement,
        dropout=dropout,
        members=[_shape(member.config) for member in members],
    )


def _shape(config: AdapterConfig) -> dict[str, Any]:
    names = SHAPING_COMPACTER if isinstance(config, CompacterConfig) else SHAPING
    return {name: getattr(config, name) for name in names}


def check_places(model: nn.Module, members: Sequence[Member]) -> None:
    """Raises ModelError if a member has adapters at modules that the model lacks."""
    known = {path for path, _ in model.named_modules()}
    for member in members:
        if missing := sorted(member.weights.keys() - known):
            message = f"it was trained on another kind of model: {type(model).__name__} has no {missing[0]}"
            raise ModelError(Problem(message=message, place=str(member.folder), key=KEY, hint=OTHER_BASE))


def fill_members(wrapped: PeftModel, members: Sequence[Member]) -> None:
    """Puts the members' weights into the fusions of a model. Raises ModelError where they do not fit."""
    problems = []
    places = dict(_fused(wrapped))
    for number, member in enumerate(members):
        for path in sorted(places.keys() ^ member.weights.keys()):
            message = f"{path}: only the member or only this model has an adapter there"
            problems.append(Problem(message=message, place=str(member.folder), hint=OTHER_BASE))
        for path in sorted(places.keys() & member.weights.keys()):
            problems += _filled(places[path].members[number], member, path)
    if problems:
        raise ModelError(problems[:20])


def _fused(wrapped: PeftModel) -> list[tuple[str, FusedAdapters]]:
    layers = [(path, layer) for path, layer in wrapped.named_modules() if isinstance(layer, AdapterFusionLayer)]
    parts: list[Any] = [(path.removeprefix(WRAPPED), next(iter(layer.parts.values()))) for path, layer in layers]
    return [(path, part.adapter) for path, part in parts if hasattr(part, "adapter")]


def _filled(module: Any, member: Member, path: str) -> list[Problem]:
    saved, own = member.weights[path], module.state_dict()
    if own.keys() != saved.keys() or any(own[name].shape != saved[name].shape for name in own):
        shapes = {name: list(tensor.shape) for name, tensor in saved.items()}
        return [
            Problem(
                message=f"{path}: the adapter's weights {shapes} do not fit this model", place=str(member.folder), hint=OTHER_BASE
            )
        ]
    module.load_state_dict(saved)
    return []
