"""Whether a run learned anything: its losses may be finite, and its weights useless."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LAST_STEPS = 10
EACH_WORSE = (1.2, 0.01)
"""Each of the last losses is above this many times the first one, and this much: beyond the noise of batches."""
MEAN_WORSE = (3.0, 1.0)
"""The same for their mean. It tells models that give one answer to everything, which is right for some small batches."""


def step_losses(metrics: Path) -> list[float]:
    """The training loss of each step, read off metrics.jsonl."""
    events = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines())
    return [event["loss"] for event in events if event["type"] == "step"]


def rising_loss(losses: Sequence[float]) -> str:
    """What to say of a run whose last losses are well above its first one, which is that of the untrained model; '' for others."""
    last = losses[-min(LAST_STEPS, len(losses) // 2) :] if len(losses) >= 4 else []
    if not last:
        return ""
    mean = sum(last) / len(last)
    (each, above), (whole, far) = EACH_WORSE, MEAN_WORSE
    if min(last) <= each * losses[0] + above and mean <= whole * losses[0] + far:
        return ""
    return f"the training loss rose from {losses[0]:.4g} in step 1 to {mean:,.4g} (mean of the last {len(last)} steps)"


def lost_ground(splits: Mapping[str, Any], metric: str, direction: str) -> str:
    """What to say where the metric that picks the weights is worse than before training (`train.evaluate_first`); '' otherwise."""
    name = next((name for name in ("validation", "test") if splits.get(name, {}).get("before")), None)
    if name is None:
        return ""
    before, after = splits[name]["before"].get(metric), splits[name]["metrics"].get(metric)
    if before is None or after is None or (after >= before if direction == "max" else after <= before):
        return ""
    return f"{metric} on {name} is {after:.4g}, and was {before:.4g} before training"
