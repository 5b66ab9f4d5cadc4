from __future__ import annotations

from typing import Any

from tests.matrix.case import Case
from tests.tiny import DECODERS, ENCODER_DECODERS, ENCODERS


def row(number: int) -> dict[str, Any]:
    context = f"w1 w2 w{3 + number} w4"
    return {"question": "w5 w6", "context": context, "answers": {"text": [context.split()[2]], "answer_start": [6]}}


CASE = Case(architectures=(*ENCODERS, *DECODERS, *ENCODER_DECODERS), row=row, options={"max_answer_length": 4, "n_best": 3})
