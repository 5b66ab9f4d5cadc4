from __future__ import annotations

import math
from itertools import pairwise

import pytest

from ftkit.training.schedule import learning_rate_factor


def factors(name: str, warmup: int, total: int) -> list[float]:
    factor = learning_rate_factor(name, warmup_steps=warmup, total_steps=total)
    return [factor(step) for step in range(total + 1)]


def test_linear_rises_over_the_warmup_and_ends_at_zero() -> None:
    assert factors("linear", 2, 6) == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_cosine_has_half_the_rate_half_way() -> None:
    found = factors("cosine", 0, 10)
    assert found[0] == 1.0
    assert found[5] == pytest.approx(0.5)
    assert found[10] == pytest.approx(0.0, abs=1e-12)


def test_constant_stays_after_the_warmup() -> None:
    assert factors("constant", 4, 8) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1])


def test_inverse_sqrt_joins_the_warmup_without_a_jump() -> None:
    found = factors("inverse_sqrt", 4, 20)
    assert found[3] == pytest.approx(1.0)
    assert found[15] == pytest.approx(math.sqrt(4 / 16))
    assert all(later <= earlier for earlier, later in pairwise(found[3:]))


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "inverse_sqrt"])
def test_a_warmup_longer_than_the_run_never_exceeds_the_peak(name: str) -> None:
    assert max(factors(name, 50, 10)) <= 1.0
