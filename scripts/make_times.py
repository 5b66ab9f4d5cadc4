#!/usr/bin/env python3
"""Writes recipes/seq2seq/data: every minute of a day in words, and as hours and minutes.

    scripts/make_times.py FOLDER

{"source": "twenty past four in the afternoon", "target": "16 20"}
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

SEED = 0
SPLITS = {"train": 1140, "validation": 150, "test": 150}
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = {2: "twenty", 3: "thirty", 4: "forty", 5: "fifty"}
PARTS = ["at night", "in the morning", "in the afternoon", "in the evening"]


def in_words(number: int) -> str:
    """A number below 60."""
    if number < 20:
        return NUMBERS[number]
    return f"{TENS[number // 10]} {NUMBERS[number % 10]}" if number % 10 else TENS[number // 10]


def phrase(hour: int, minute: int) -> str:
    """The time as people say it."""
    nearest = NUMBERS[((hour if minute <= 30 else hour + 1) - 1) % 12 + 1]
    if minute in (0, 30):
        said = f"half past {nearest}" if minute else f"{nearest} o'clock"
    else:
        distance = minute if minute < 30 else 60 - minute
        count = "a quarter" if distance == 15 else in_words(distance)
        said = f"{count} {'past' if minute < 30 else 'to'} {nearest}"
    return f"{said} {PARTS[hour // 6]}"


def main(folder: Path) -> None:
    """Writes train.jsonl, validation.jsonl and test.jsonl; no time is in two of them."""
    times = [(hour, minute) for hour in range(24) for minute in range(60)]
    random.Random(SEED).shuffle(times)
    rows = iter([{"source": phrase(*time), "target": "{:02d} {:02d}".format(*time)} for time in times])
    for name, count in SPLITS.items():
        lines = [json.dumps(next(rows)) + "\n" for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
