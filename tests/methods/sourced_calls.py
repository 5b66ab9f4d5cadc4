"""What every method with a `source_column` refuses of a caller."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from ftkit.errors import ModelError


def check_refusals(model: Any, inputs: dict[str, Tensor], ids: Tensor) -> None:
    """Calls that do not say, or say wrongly, which of the sources calm, glad and sad their 4 rows are from. ids: right ones."""
    with pytest.raises(ModelError, match=r"does not say which.*source_ids.*0 calm, 1 glad, 2 sad"):
        model(**inputs)
    with pytest.raises(ModelError, match="2 numbers of sources were given for 4 rows"):
        model(**inputs, source_ids=ids[:2])
    with pytest.raises(ModelError, match="are not all numbers of sources"):
        model(**inputs, source_ids=ids + 1)
    # A refused call leaves nothing behind.
    with pytest.raises(ModelError, match="does not say which"):
        model(**inputs)
