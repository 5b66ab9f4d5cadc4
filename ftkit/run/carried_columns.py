"""Columns of an input row that go into its result, so that the result can be told apart and joined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ftkit.data.splits import IDENTIFIERS

RENAMED = "input_"
"""Goes before the name of a column whose own name the result needs."""


def carried_columns(row: Mapping[str, Any], result: Mapping[str, Any], *, everything: bool) -> dict[str, Any]:
    """The identifier of a row where it has one, or all of its columns, as JSON values.

    A column that is called as an entry of the result, or as a part of one (`probabilities.sports`), is renamed. Of files and other
    bytes only the path is kept.
    """
    carried: dict[str, Any] = {}
    for name in row:
        if everything or name in IDENTIFIERS:
            shown = f"{RENAMED}{name}" if name in result or name.partition(".")[0] in result else name
            while shown != name and (shown in row or shown in result):
                shown = f"{RENAMED}{shown}"
            carried[shown] = _json_value(row[name])
    return carried


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _json_value(item) for name, item in value.items() if not isinstance(item, bytes)}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return None
    return _json_value(value.tolist()) if hasattr(value, "tolist") else str(value)
