"""The learning rate as a pure function of the optimizer step: nothing to save, nothing that a number of processes can change."""

from __future__ import annotations

import math
from collections.abc import Callable

Factor = Callable[[int], float]


def learning_rate_factor(name: str, *, warmup_steps: int, total_steps: int) -> Factor:
    """Multiplier of the peak rate for optimizer step `step` (counted from 0).

    All schedules rise linearly over `warmup_steps` (step 0 already moves: its factor is 1 / warmup_steps). After that:
    linear: falls to 0 at `total_steps`; cosine: half a cosine to 0 (Loshchilov & Hutter 2017, without restarts);
    constant: stays; inverse_sqrt: sqrt(warmup / step) (Vaswani et al. 2017; with warmup 1 where none is given).
    """

    def after(step: int) -> float:
        share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        if name == "linear":
            return max(0.0, 1.0 - share)
        if name == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
        if name == "inverse_sqrt":
            return math.sqrt(max(1, warmup_steps) / max(1, step + 1, warmup_steps))
        return 1.0

    def factor(step: int) -> float:
        return (step + 1) / warmup_steps if step < warmup_steps else after(step)

    return factor
