"""Finds metric families by file and calls metrics by the names of their arguments.

A family is a module of this folder with
    METRICS: dict[str, MetricSpec]      by metric name
    ARGUMENTS: dict[str, str]           every array that its metrics take: `int`, `float`, `str` an example, or a list of these (`[int]`)
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ftkit.metrics.base import MetricSpec


@cache
def families() -> dict[str, ModuleType]:
    """The metric families, by file name, sorted."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "base", "catalog"))
    modules = {name: importlib.import_module(f"ftkit.metrics.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "METRICS")}


def all_metrics() -> dict[str, list[MetricSpec]]:
    """The metrics of each family, for tables."""
    return {family: list(module.METRICS.values()) for family, module in families().items()}


def compute_metric(spec: MetricSpec, arrays: Mapping[str, Any]) -> float | None:
    """The metric's value, given at least the arrays that its function takes (first axis: examples). None where undefined."""
    if spec.compute is None:
        raise ValueError(f"{spec.name} is not a function of arrays")
    return spec.compute(**{name: arrays[name] for name in inspect.signature(spec.compute).parameters})
