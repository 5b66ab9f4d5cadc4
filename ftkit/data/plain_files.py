"""Files that are a row, or a part of one: read whole, and therefore only if they end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

LARGEST_FILE = 256 * 2**20
"""Bytes. Pictures of as many pixels as Pillow reads are smaller, but for a few that nothing compresses."""


def read_plain(path: Path) -> bytes:
    """What a file holds. Raises OSError if it cannot be read, ValueError if it is no plain file, which may never end, or too large."""
    facts = path.stat()
    if stat.S_ISFIFO(facts.st_mode) or stat.S_ISSOCK(facts.st_mode) or stat.S_ISCHR(facts.st_mode) or stat.S_ISBLK(facts.st_mode):
        raise ValueError("it is a pipe, a socket or a device; a plain file is expected")
    if facts.st_size > LARGEST_FILE:
        raise ValueError(f"it has {facts.st_size / 2**20:,.0f} MiB; a file of a row may have {LARGEST_FILE // 2**20} MiB")
    with open(path, "rb", opener=_open_at_once) as stream:
        return stream.read(facts.st_size)


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file without waiting, as a named pipe would that has taken its place meanwhile."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
