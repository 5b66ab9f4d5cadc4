from __future__ import annotations

from tests.matrix.case import Case
from tests.tiny import DECODERS

CASE = Case(
    architectures=tuple(DECODERS),
    row=lambda number: {"text": f"w1 w{number} w2 w{2 * number} w3"},
    options={"max_length": 16, "generation": {"max_new_tokens": 4}},
)
