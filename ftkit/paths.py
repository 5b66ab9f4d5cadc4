"""Paths as recipes write them, and where ftkit keeps its own files."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

PACKAGE_PREFIX = "package:"


def resolve_package(text: str) -> Path:
    """The path that `package:<importable package>/<path inside it>` names.

    The package is located, never imported: no code of it runs. `text` without the prefix is accepted too.
    Raises FileNotFoundError, with a message fit for the user, if the package or the path in it is missing.
    """
    package, _, inside = text.removeprefix(PACKAGE_PREFIX).partition("/")
    if not package.isidentifier():
        raise FileNotFoundError(f"{text!r} does not name an importable package")
    spec = importlib.util.find_spec(package)
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations:
        raise FileNotFoundError(f"the package {package!r} is not installed")
    for location in locations:
        path = (Path(location) / inside).resolve()
        if path.exists() and path.is_relative_to(Path(location).resolve()):
            return path
    raise FileNotFoundError(f"the package {package!r} holds no {inside!r}")


def home_expanded(text: str) -> Path:
    """The path with a leading `~` replaced; as it is where that is the home of nobody."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def cache_folder() -> Path:
    """Folder of reusable files: $FTKIT_CACHE, else $XDG_CACHE_HOME/ftkit, else ~/.cache/ftkit."""
    if chosen := os.environ.get("FTKIT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftkit"
