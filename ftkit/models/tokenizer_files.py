"""The files of a tokenizer, and whether transformers has it in Python only. No torch here."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from ftkit.files import read_json

TOKENIZER_PARTS = ("vocab*.txt", "vocab*.json", "*_vocab.json", "*.model", "*.spm", "*.codes", "*.tiktoken")
"""Vocabularies; tokenizer.json, which holds all of a fast tokenizer, apart."""


def written_in_python(folder: Path) -> bool:
    """Whether the tokenizer of a folder is one that transformers has in Python only, as far as its files tell."""
    return _slow_class(folder) is not None


def missing_files(folder: Path) -> list[str] | None:
    """Files that a tokenizer written in Python cannot do without and a folder lacks; None where another one, or none, is named."""
    cls = _slow_class(folder)
    if cls is None:
        return None
    arguments = inspect.signature(cls.__init__).parameters
    needed = [
        name
        for key, name in cls.vocab_files_names.items()
        if key in arguments and arguments[key].default is inspect.Parameter.empty
    ]
    return [name for name in needed if not (folder / name).is_file()]


def _slow_class(folder: Path) -> Any:
    """The class that tokenizer_config.json names, if it is one written in Python and there is no tokenizer.json; else None."""
    settings = folder / "tokenizer_config.json"
    if not settings.is_file() or (folder / "tokenizer.json").is_file():
        return None
    try:
        name = read_json(settings).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        # Whoever loads it says what is wrong with it.
        return None
    return _class_in_python(name) if isinstance(name, str) and name.endswith("Tokenizer") else None


def _class_in_python(name: str) -> Any:
    import transformers
    from transformers.tokenization_python import PythonBackend

    from ftkit.models.quiet import quiet_libraries

    quiet_libraries()
    try:
        found = getattr(transformers, name, None)
    except (ImportError, RuntimeError):
        found = None
    # Where a package is missing that it needs, transformers has an empty class instead, or none; loading it says so.
    return found if isinstance(found, type) and issubclass(found, PythonBackend) else None
