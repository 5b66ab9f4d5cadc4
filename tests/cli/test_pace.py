from __future__ import annotations

from ftkit.cli.pace import Pace


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_figures_where_the_total_is_known_where_only_the_share_is_and_where_nothing_is() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.figures(0, 100) == "0/100"
    clock.now = 10.0
    assert pace.figures(2500, 10_000) == "2,500/10,000  250 rows/s  30.0 s left"
    assert pace.figures(2500, None, 0.1) == "2,500 rows  250 rows/s  1 min 30 s left"
    assert pace.figures(2500, None) == "2,500 rows  250 rows/s"
    assert pace.figures(10_000, 10_000) == "10,000/10,000  1,000 rows/s"


def test_the_speed_is_that_of_the_last_half_minute() -> None:
    clock = Clock()
    pace = Pace(clock)
    for second in range(1, 101):
        clock.now = float(second)
        # A hundred rows a second, and ten from the fiftieth second on.
        done = 100 * min(second, 50) + 10 * max(0, second - 50)
        figures = pace.figures(done, 6000)
    assert figures == "5,500/6,000  10 rows/s  50.0 s left"
