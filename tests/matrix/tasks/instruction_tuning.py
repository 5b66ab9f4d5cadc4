from __future__ import annotations

from tests.matrix.case import Case
from tests.tiny import DECODERS

CASE = Case(
    architectures=tuple(DECODERS),
    row=lambda number: {"prompt": f"w1 w{number}", "completion": f"w2 w{2 * number}"},
    options={"chat_template": "zephyr", "generation": {"max_new_tokens": 4}},
)
