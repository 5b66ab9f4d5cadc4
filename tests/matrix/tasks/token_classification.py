from __future__ import annotations

from tests.matrix.case import Case
from tests.tiny import DECODERS, ENCODERS

CASE = Case(
    architectures=(*ENCODERS, *DECODERS),
    row=lambda number: {"tokens": ["w1", f"w{number}", "w2"], "tags": ["O", ("B-ITEM", "B-PLACE")[number % 2], "O"]},
    options={"metrics": ["f1"]},
)
