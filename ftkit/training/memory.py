"""Running out of memory: how it shows, and how to go on."""

from __future__ import annotations

import gc

import torch

SIGNS = ("can't allocate memory", "out of memory")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or this machine, has no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in SIGNS)


def free_memory() -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
