from __future__ import annotations

from tests.matrix.architectures import PAIR
from tests.matrix.case import Case
from tests.tiny import ENCODER_DECODERS

CASE = Case(
    architectures=(*ENCODER_DECODERS, PAIR),
    row=lambda number: {"source": f"w1 w{number} w2", "target": f"w3 w{number}"},
    options={"metrics": ["loss", "token_accuracy"], "generation": {"max_new_tokens": 4}},
)
