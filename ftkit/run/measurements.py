"""What a finished run measured, out of its results. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftkit.recipe.expectations import EXPORTED


def gated_split(splits: Mapping[str, Any]) -> str:
    """The split that gates are read off: test, or validation where there is no test."""
    return "test" if "test" in splits else "validation"


def resources_of(results: Mapping[str, Any]) -> dict[str, float | None]:
    """What a run took, by the names that gates have for it; None for what it does not know."""
    seconds, exports = results.get("seconds") or {}, results.get("exports") or {}
    sizes = {name: (exports.get(form) or {}).get("bytes") for name, form in EXPORTED.items()}
    return {
        "peak_memory_mib": results.get("peak_memory_mib"),
        "training_seconds": seconds.get("training"),
        "evaluation_seconds": seconds.get("evaluation"),
        "tokens_per_second": results.get("tokens_per_second"),
        "examples_per_second": results.get("examples_per_second"),
        "trainable_parameters": (results.get("parameters") or {}).get("trainable"),
        **sizes,
    }
