from __future__ import annotations

from tests.matrix.case import Case
from tests.tasks.parts.pictures import encoded, noise
from tests.tiny import VISION

PICTURES = 16

CASE = Case(
    architectures=tuple(VISION),
    row=lambda number: {"image": f"{number}.png", "label": ("cat", "dog")[number % 2]},
    files={f"{number}.png": encoded(noise(size=(8, 8), seed=number)) for number in range(PICTURES)},
    options={"metrics": ["accuracy"]},
)
