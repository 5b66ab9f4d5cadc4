from __future__ import annotations

from tests.matrix.case import Case
from tests.tiny import DECODERS, ENCODER_DECODERS, ENCODERS

CASE = Case(
    architectures=(*ENCODERS, *DECODERS, *ENCODER_DECODERS),
    row=lambda number: {"text": f"w1 w{number} w{2 * number}", "label": ("calm", "glad")[number % 2]},
    options={"metrics": ["accuracy"]},
)
