"""Modules that are trained and saved whole beside an adapter (PEFT's `modules_to_save`): which of them PEFT can copy."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from ftkit.errors import ModelError, Problem

KEY = "method.modules_to_save"


def obstacle(model: nn.Module, path: str, adapted: Collection[str]) -> str:
    """Why a module cannot be a copy of its own beside the adapted layers; '' if it can. model: the plain one."""
    if not path:
        return "it belongs to the model itself and no module of it"
    if any(layer == path or layer.startswith(f"{path}.") or path.startswith(f"{layer}.") for layer in adapted):
        return "the adapter changes layers of it"
    inside = {id(parameter) for parameter in model.get_submodule(path).parameters()}
    outside = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in inside and not name.startswith(f"{path}.")
    ]
    return f"it shares its values with {outside[0]}, which a copy would not reach" if outside else ""


def find_whole_modules(model: nn.Module, names: Sequence[str], adapted: Collection[str]) -> list[str]:
    """Paths of the modules that end in these names, the top-most only. Raises ModelError for a name without one, or that cannot be."""
    paths: dict[str, None] = {}
    problems = []
    for name in names:
        found = [path for path, _ in model.named_modules() if path == name or path.endswith(f".{name}")]
        reasons = [reason for path in found if (reason := obstacle(model, path, adapted))]
        if not found or not any(True for path in found for _ in model.get_submodule(path).parameters()):
            reasons = ["the model has no such module with parameters"]
        problems += [Problem(message=f"{name!r} cannot be trained whole: {reason}", key=KEY) for reason in reasons[:1]]
        paths |= dict.fromkeys(found)
    if problems:
        raise ModelError(problems)
    return top_most(paths)


def top_most(paths: Collection[str]) -> list[str]:
    """Those that lie in no other one."""
    return [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
