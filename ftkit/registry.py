"""Finds tasks and methods by file, so that adding one touches no list.

A component called `some-name` is the one subclass of its base in `some_name.py` of the package folder, in a module that an
installed distribution names under the entry point group (`ftkit.methods`, `ftkit.tasks`), or in a plug-in file that the
user names on the command line (`--plugin FILE`). A plug-in is code: recipes and run folders cannot name one.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar, cast

from ftkit.errors import RecipeError
from ftkit.methods.base import Method
from ftkit.tasks.base import Task

T = TypeVar("T")

NOT_COMPONENTS = {"__init__", "base"}


class Registry(Generic[T]):
    """The components of one kind, imported one at a time when asked for."""

    def __init__(self, package: str, base: type[T]) -> None:
        self._package, self._base = package, base
        self._plugins: dict[str, type[T]] = {}

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted({*self._own_files(), *(point.name for point in self._entry_points()), *self._plugins})

    def get(self, name: str) -> type[T]:
        """The component called `name`. Raises KeyError if there is none."""
        if name in self._plugins:
            return self._plugins[name]
        if name in self._own_files():
            return self._find(importlib.import_module(f"{self._package}.{name.replace('-', '_')}"), name)
        for point in self._entry_points():
            if point.name == name:
                loaded = point.load()
                return cast("type[T]", loaded) if inspect.isclass(loaded) else self._find(loaded, name)
        raise KeyError(name)

    def nearest(self, name: str) -> str | None:
        """The known name most like a misspelt one."""
        matches = get_close_matches(name.replace("_", "-").lower(), self.names(), n=1, cutoff=0.5)
        return matches[0] if matches else None

    def add(self, module: ModuleType) -> list[str]:
        """Registers the components that a plug-in module defines; returns their names."""
        found = [cls for cls in self._classes(module) if getattr(cls, "name", None)]
        for cls in found:
            self._plugins[cls.name] = cls  # type: ignore[attr-defined]
        return [cls.name for cls in found]  # type: ignore[attr-defined]

    def _own_files(self) -> list[str]:
        folder = Path(importlib.import_module(self._package).__path__[0])
        return [path.stem.replace("_", "-") for path in folder.glob("*.py") if path.stem not in NOT_COMPONENTS]

    def _entry_points(self) -> EntryPoints:
        return _entry_points(self._package, tuple(sys.path))

    def _classes(self, module: ModuleType) -> list[type[T]]:
        members = vars(module).values()
        return [
            cls
            for cls in members
            if inspect.isclass(cls)
            and issubclass(cls, self._base)
            and cls.__module__ == module.__name__
            and not inspect.isabstract(cls)
        ]

    def _find(self, module: ModuleType, name: str) -> type[T]:
        classes = [cls for cls in self._classes(module) if getattr(cls, "name", None) == name]
        if len(classes) != 1:
            raise TypeError(f"{module.__name__} must define exactly one {self._base.__name__} called {name!r}, has {len(classes)}")
        return classes[0]


@cache
def _entry_points(group: str, search_path: tuple[str, ...]) -> EntryPoints:
    """Those of all distributions on a search path; reading their metadata takes tens of milliseconds."""
    return entry_points(group=group)


METHODS: Registry[Method] = Registry("ftkit.methods", Method)  # type: ignore[type-abstract]
TASKS: Registry[Task] = Registry("ftkit.tasks", Task)  # type: ignore[type-abstract]

PLUGIN_FILES: list[Path] = []
"""Plug-in files loaded in this process, for the processes that it starts."""


def load_plugin(path: Path) -> list[str]:
    """Runs a plug-in file and registers its methods and tasks; returns their names.

    Raises RecipeError if the file is missing, fails to import or defines neither.
    """
    path = path.resolve()
    if not path.is_file():
        raise RecipeError(f"--plugin {path}: no such file")
    module_name = f"ftkit_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"--plugin {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RecipeError(f"--plugin {path}: {type(error).__name__}: {error}") from error
    names = [*METHODS.add(module), *TASKS.add(module)]
    if not names:
        raise RecipeError(
            f"--plugin {path}: defines no Method and no Task", hint="See docs/adding-a-method.md and docs/adding-a-task.md"
        )
    PLUGIN_FILES.append(path)
    return names
