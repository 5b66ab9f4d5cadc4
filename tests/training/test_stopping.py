from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.files import json_text
from ftkit.training.stopping import StoppingRule, Verdict


def run(values: list[float | None], **options: object) -> tuple[int | None, int | None]:
    """(step of the best, step of the stop), steps counting from 1."""
    rule = StoppingRule(**options)  # type: ignore[arg-type]
    for step, value in enumerate(values, start=1):
        if rule.update(value, step).stop:
            return rule.best_step, step
    return rule.best_step, None


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0.1, 0.2, 0.3], {"mode": "max", "patience": 1}, (3, None)),
        ([0.3, 0.2, 0.4], {"mode": "max", "patience": 1}, (1, 2)),
        ([0.3, 0.3, 0.3], {"mode": "max", "patience": 2}, (1, 3)),
        ([3.0, 2.0, 2.5, 2.6], {"mode": "min", "patience": 2}, (2, 4)),
        ([0.50, 0.505, 0.509, 0.52], {"mode": "max", "patience": 2, "min_delta": 0.01}, (3, 3)),
        ([0.50, 0.505, 0.52, 0.52], {"mode": "max", "patience": 2, "min_delta": 0.01}, (3, None)),
        ([math.nan, math.nan], {"mode": "max", "patience": 2}, (None, 2)),
        ([None, 0.1], {"mode": "min", "patience": 2}, (2, None)),
        ([math.inf, 0.1], {"mode": "max", "patience": 5}, (2, None)),
        ([0.1] * 50, {"mode": "max", "patience": None}, (1, None)),
        ([0.0, -1.0], {"mode": "max", "patience": 1, "min_delta": 0.5}, (1, 2)),
    ],
)
def test_sequences(values: list[float | None], options: dict[str, object], expected: tuple[int | None, int | None]) -> None:
    assert run(values, **options) == expected


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=12), st.integers(0, 12), st.sampled_from(["min", "max"]))
def test_restored_rule_goes_on_as_if_never_interrupted(values: list[float], cut: int, mode: str) -> None:
    straight = StoppingRule(mode=mode, patience=2, min_delta=0.1)  # type: ignore[arg-type]
    resumed = StoppingRule(mode=mode, patience=2, min_delta=0.1)  # type: ignore[arg-type]
    for step, value in enumerate(values):
        if step == cut:
            state = resumed.state()
            json_text(state)
            resumed = StoppingRule(mode=mode, patience=2, min_delta=0.1)  # type: ignore[arg-type]
            resumed.restore(state)
        assert straight.update(value, step) == resumed.update(value, step)
    assert straight.state() == resumed.state()


def test_the_lower_loss_wins_a_tie_without_resetting_patience() -> None:
    rule = StoppingRule(mode="max", patience=3)
    assert rule.update(1.0, 1, loss=0.9) == Verdict(is_best=True, stop=False)
    assert rule.update(1.0, 2, loss=0.4) == Verdict(is_best=True, stop=False)
    assert rule.update(1.0, 3, loss=0.5) == Verdict(is_best=False, stop=False)
    assert rule.best_step == 2
    restored = StoppingRule(mode="max", patience=3)
    restored.restore(json.loads(json.dumps(rule.state())))
    assert restored.update(1.0, 4, loss=0.45) == Verdict(is_best=False, stop=True)
    assert restored.update(0.9, 5, loss=0.1).is_best is False
    assert restored.update(None, 6, loss=0.0).is_best is False
