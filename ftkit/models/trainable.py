"""Trained parameters of a model: choosing them, keeping them in float32, saving and strictly loading them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ftkit.errors import ModelError, Problem
from ftkit.models.sharding import divided_like

if TYPE_CHECKING:
    from ftkit.models.layout import ModelLayout

HALF_PRECISION = (torch.float16, torch.bfloat16)
SHOWN_PROBLEMS = 20
_HOOKS = "_ftkit_float32_hooks"


def train_only(model: nn.Module, names: Collection[str], layout: ModelLayout) -> nn.Module:
    """The same model with exactly the named parameters trainable, those in float32.

    Raises ModelError if there is nothing to train, or if a newly initialized parameter would be left as it is.
    """
    if not names:
        raise ModelError(f"there is nothing to train in this {layout.architecture}")
    check_fresh(layout, names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    hold_in_float32(model, layout)
    return model


def check_fresh(layout: ModelLayout, trained: Collection[str]) -> None:
    """Raises ModelError if a parameter without trained values is not among the (plain) names of those that train."""
    if left_out := sorted(layout.fresh.intersection(dict(layout.model.named_parameters())).difference(trained)):
        raise ModelError(
            f"the checkpoint has no values for {shortened(left_out)}, and this method would leave them random",
            hint="Use a checkpoint that has them, or the method `full`",
        )


def fixed_parameters(model: nn.Module) -> set[str]:
    """Parameters that hold a formula, not learned values (sinusoidal positions); no method trains them."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if "Sinusoidal" in type(module).__name__
        for name, _ in module.named_parameters(recurse=False)
    }


def shortened(names: Collection[str], count: int = 5) -> str:
    """The first names, and how many more there are."""
    first = ", ".join(sorted(names)[:count])
    return first if len(names) <= count else f"{first} and {len(names) - count} more"


# --- float32 -----------------------------------------------------------------------------------------------------------


def hold_in_float32(model: nn.Module, layout: ModelLayout) -> None:
    """Turns every half-precision module that owns a trainable parameter into float32, inside a model that may stay half.

    Half-precision weights lose updates below 1/256 of their size (bfloat16). Each such module gets its inputs in float32 and
    hands on the type it would have handed on before; only the head's output stays float32. Undone by `to_uniform_dtype`.
    """
    training = {
        id(parameter)
        for module in model.modules()
        if _trains_half(module)
        for parameter in module.parameters(recurse=False)
        if parameter.dtype in HALF_PRECISION
    }
    # Not only the modules that train: an output layer shares its weights with the embeddings.
    owners = {path: module for path, module in model.named_modules() if _owns_any(module, training)}
    everything = all(parameter.requires_grad for parameter in model.parameters() if parameter.dtype in HALF_PRECISION)
    for path, module in owners.items():
        if not everything:
            _bridge(module, None if _in_head(path, module, layout) else _own_half(module).dtype)
    for module in list(model.modules()) if everything else owners.values():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dtype in HALF_PRECISION:
                tensor.data = tensor.data.float()


def to_uniform_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same model with all floating point weights in one type, as plain transformers expects it. For exports."""
    for module in model.modules():
        for handle in module.__dict__.pop(_HOOKS, ()):
            handle.remove()
    return model.to(dtype)


def _trains_half(module: nn.Module) -> bool:
    return any(parameter.requires_grad and parameter.dtype in HALF_PRECISION for parameter in module.parameters(recurse=False))


def _owns_any(module: nn.Module, parameters: set[int]) -> bool:
    return any(id(parameter) in parameters for parameter in module.parameters(recurse=False))


def _own_half(module: nn.Module) -> Tensor:
    return next(parameter for parameter in module.parameters(recurse=False) if parameter.dtype in HALF_PRECISION)


def _in_head(path: str, module: nn.Module, layout: ModelLayout) -> bool:
    if layout.assembled:
        return False  # Its new parts lie between pretrained ones, which take the type that they were loaded in.
    names = {layout.canonical(f"{path}.{name}" if path else name) for name, _ in module.named_parameters(recurse=False)}
    return not names.isdisjoint(layout.head_parameters())


def _bridge(module: nn.Module, output_dtype: torch.dtype | None) -> None:
    handles = []
    # The children of a module that only owns a bare parameter (a class token) see to their own inputs.
    if not any(True for _ in module.children()):
        handles.append(module.register_forward_pre_hook(_inputs_to_own_dtype))
    if output_dtype is not None:
        handles.append(module.register_forward_hook(partial(_output_to, output_dtype)))
    module.__dict__[_HOOKS] = handles


def _inputs_to_own_dtype(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    own = next(module.parameters(recurse=False))
    if torch.is_autocast_enabled(own.device.type):
        return None
    return tuple(_cast(value, own.dtype) for value in inputs)


def _output_to(dtype: torch.dtype, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return tuple(_cast(value, dtype) for value in output) if isinstance(output, tuple) else _cast(output, dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


# --- saving and loading ------------------------------------------------------------------------------------------------


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that training changes, by its full name: trainable parameters and the statistics of batch norms.

    The tensors share memory with the model; copy them if training goes on.
    """
    return {name: tensor.detach() for name, tensor in _changing(model)}


def load_trainable(model: nn.Module, tensors: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Puts the values of `trainable_state` back into a model that the same method was applied to.

    Raises ModelError, and changes nothing, if a shape differs or (strict) a tensor is missing or belongs to nothing here.
    """
    expected = trainable_state(model)
    problems = [
        f"{name} has the shape {list(tensors[name].shape)}, the model needs {list(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    if strict:
        problems += [f"{name} is missing" for name in expected.keys() - tensors.keys()]
        problems += [f"{name} belongs to no trained parameter" for name in tensors.keys() - expected.keys()]
    if problems:
        raise ModelError([Problem(message=text) for text in _limited(sorted(problems))])
    for name in sorted(expected.keys() & tensors.keys()):
        expected[name].copy_(divided_like(tensors[name], expected[name]))


def share_frozen(owner: nn.Module, owner_layout: ModelLayout, model: nn.Module, layout: ModelLayout) -> int:
    """Lets a model hold its frozen parameters in the memory of another one, wherever they are bit for bit the same.

    Returns the bytes saved.
    layouts: of the plain models. A parameter that one of the two changed (a start that moves part of a weight) stays its own.
    """
    known = {owner_layout.canonical(name): parameter for name, parameter in owner.named_parameters() if not parameter.requires_grad}
    saved = 0
    for name, parameter in model.named_parameters():
        twin = known.get(layout.canonical(name))
        if parameter.requires_grad or twin is None or twin.shape != parameter.shape or twin.dtype != parameter.dtype:
            continue
        if torch.equal(twin, parameter):
            parameter.data = twin.data
            saved += parameter.numel() * parameter.element_size()
    return saved


def _changing(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield from ((f"{path}.{name}", buffer) for name, buffer in module.named_buffers(recurse=False))


def _limited(texts: Iterable[str]) -> list[str]:
    listed = list(texts)
    more = len(listed) - SHOWN_PROBLEMS
    return listed if more <= 0 else [*listed[:SHOWN_PROBLEMS], f"and {more} more"]
