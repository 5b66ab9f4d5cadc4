"""Writing files so that a reader at any moment sees a whole one, and strict JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftkit.errors import Problem, RunFolderError

DEEPEST_JSON = 100
"""Levels. No file of ftkit, of a model or of an adapter comes near; what walks through values may use the stack."""


LARGEST_JSON = 2**28
"""Bytes of a file that is read as JSON."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path beside `path`, makes the result durable and moves it into place.

    A link at either path is replaced, never followed.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.unlink(missing_ok=True)
    write(temporary)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Atomically writes UTF-8 text."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Atomically writes strict JSON (see `to_json`), indented."""
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """Strict JSON text: numpy numbers become numbers, numbers that are not finite become null."""
    return json.dumps(to_json(value), allow_nan=False, ensure_ascii=False, indent=indent)


def to_json(value: Any) -> Any:
    """`value` as plain JSON types. Numbers that are not finite become None; paths become text.

    Raises TypeError for what has no place in JSON.
    """
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def read_json(path: Path) -> Any:
    """The JSON value in a file. Raises OSError, or ValueError if it is no plain file of at most `LARGEST_JSON` bytes, no JSON, or nested
    more than `DEEPEST_JSON` levels."""
    _refuse_endless(path)
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"it has more than {LARGEST_JSON // 2**20} MiB")
    return parse_json(path.read_text(encoding="utf-8"))


def _refuse_endless(path: Path) -> None:
    """Raises ValueError for pipes, sockets and devices, also behind a link: reading them may never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError("it is a pipe, a socket or a device")


def parse_json(text: str) -> Any:
    """The value that a JSON text stands for. Raises ValueError if it is no JSON or nested more than `DEEPEST_JSON` levels."""
    too_deep = f"it is nested more than {DEEPEST_JSON} levels deep"
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [value] if _holds(value) else []
    for _ in range(DEEPEST_JSON + 1):
        if not level:
            return value
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item) if _holds(inner)]
    raise ValueError(too_deep)


def _holds(value: Any) -> bool:
    return isinstance(value, (dict, list))


def sync(path: Path) -> None:
    """Makes a file's content or a folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's content. Raises OSError, or ValueError for pipes, sockets and devices."""
    _refuse_endless(path)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        # Large blocks: between two of them a thread that hashes waits until others let go of the interpreter.
        while block := stream.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def refuse_filled(folder: Path, option: str = "--to") -> None:
    """Raises RunFolderError if a folder that is to be written already holds files. option: with which the user named it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problem = Problem(
            message="already holds files", place=str(folder), hint=f"Choose another folder with {option}, or remove it"
        )
        raise RunFolderError(problem)


def size_of(path: Path) -> int:
    """Bytes in a file, or in all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
