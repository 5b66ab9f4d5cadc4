"""Randomness as a pure function of where a run stands.

Every optimizer step starts from a seed made of (run seed, step, process), so dropout at step k is the same whether or not the
run was interrupted before it, evaluated in between, or restarted on another day. There is no generator state to save.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def mix(*numbers: int) -> int:
    """A 63-bit seed out of several whole numbers; near numbers give unrelated seeds."""
    text = ",".join(str(number) for number in numbers).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def seed_everything(*numbers: int) -> None:
    """Seeds Python, numpy and torch (all devices) from whole numbers."""
    seed = mix(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
