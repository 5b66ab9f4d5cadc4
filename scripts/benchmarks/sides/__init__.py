"""Both sides of the comparison with transformers' Trainer: a file for each task that has a reference, and what they share.

A reference is the one subclass of `Reference` in a file of this folder, named as its task; adding one touches no other file.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sides.common import Reference


def references() -> dict[str, type[Reference]]:
    """The references by task."""
    from sides.common import Reference

    modules = [importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)]
    found = [value for module in modules for value in vars(module).values() if inspect.isclass(value)]
    return {cls.task: cls for cls in found if issubclass(cls, Reference) and not inspect.isabstract(cls)}
