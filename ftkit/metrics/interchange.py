"""ftkit's metrics as `evaluate.Metric`s, and metrics of `evaluate` as ftkit's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ftkit.errors import Problem, RecipeError
from ftkit.metrics.base import MetricSpec
from ftkit.metrics.catalog import families
from ftkit.paths import cache_folder
from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    import evaluate
    from numpy import ndarray

PREFIX = "evaluate:"


class ExternalMetric(Strict):
    """A metric that the `evaluate` library loads. It is Python code: needs --trust-remote-code."""

    name: str = Field(pattern=r"^evaluate:.", description="`evaluate:` and a local script, its folder, or a hub id.")
    result: str = Field(
        min_length=1, description="Key of the number to take from what the metric returns; reported as `evaluate:<key>`."
    )
    direction: Literal["max", "min"] = Field(description="Which way is better.")
    revision: str | None = Field(None, description="Commit of a hub id; required for one.")
    config: str | None = Field(None, description="Configuration of the metric, such as `multilabel`.")
    arguments: dict[str, str | int | float | bool | None] = Field(
        default_factory=dict, description="More arguments, such as `average`."
    )

    def spec(self) -> MetricSpec:
        """What is known of it without running its code."""
        return MetricSpec(name=PREFIX + self.result, summary=f"{self.result} of {self.name}.", direction=self.direction)


def load_external(metric: ExternalMetric, *, allow_code: bool) -> MetricSpec:
    """The metric, loaded; its `compute` takes references and predictions.

    Raises RecipeError if code is not allowed, a hub id has no revision, or it cannot be loaded; `compute` raises it if the result has
    no such number.
    """
    if not allow_code:
        raise _problem(metric, "is Python code, which does not run unasked", "Read it, then add --trust-remote-code")
    import evaluate

    source = metric.name.removeprefix(PREFIX)
    local = Path(source).expanduser()
    if not local.exists() and metric.revision is None:
        raise _problem(
            metric, "is neither a file here nor a hub id with a `revision`", "Correct the path, or pin the commit: `revision:`"
        )
    try:
        module = evaluate.load(
            str(local.resolve()) if local.exists() else source,
            config_name=metric.config,
            module_type="metric",
            revision=metric.revision,
            keep_in_memory=True,
            cache_dir=str(cache_folder() / "evaluate"),
        )
    except Exception as error:
        # Anything can go wrong in the code of others, and the user must learn which metric it was.
        raise _problem(metric, f"cannot be loaded: {type(error).__name__}: {error}", "") from error

    def compute(references: ndarray, predictions: ndarray) -> float | None:
        results = module.compute(references=references.tolist(), predictions=predictions.tolist(), **metric.arguments)
        return _number(metric, results)

    spec = metric.spec()
    return MetricSpec(name=spec.name, summary=spec.summary, direction=spec.direction, compute=compute)


def _number(metric: ExternalMetric, results: dict[str, Any]) -> float | None:
    if metric.result not in results:
        raise _problem(metric, f"returns no {metric.result!r}", f"It returns {', '.join(map(str, results))}")
    try:
        value = float(results[metric.result])
    except (TypeError, ValueError) as error:
        raise _problem(
            metric, f"returns {metric.result!r} as {type(results[metric.result]).__name__}, not as a number", ""
        ) from error
    return value if math.isfinite(value) else None


def _as_array(values: Sequence[Any]) -> ndarray:
    """Examples as an array; those that are lists of different lengths as an array of lists."""
    import numpy as np

    if len({len(value) if isinstance(value, list) else -1 for value in values}) < 2:
        return np.asarray(values)
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def _problem(metric: ExternalMetric, message: str, hint: str) -> RecipeError:
    return RecipeError(Problem(message=f"{metric.name!r} {message}", key="task.metrics", hint=hint))


def as_evaluate_metric(name: str, family: str | None = None) -> evaluate.Metric:
    """One of ftkit's metrics for code that expects an `evaluate.Metric`; also for `evaluate.combine`.

    Its inputs are those of the metric's function (`references` and `predictions`, or `references` and `scores`), its result is
    {name: value or None}. Nothing is fetched. family: where several families have the name (default: the first of `families()`).
    Raises KeyError if there is no such metric.
    """
    import datasets
    import evaluate

    module = next((m for key, m in families().items() if name in m.METRICS and family in (None, key)), None)
    if module is None:
        raise KeyError(name)
    spec: MetricSpec = module.METRICS[name]
    compute = spec.compute
    if compute is None:
        raise KeyError(name)
    inputs = [argument for argument in inspect.signature(compute).parameters if argument in module.ARGUMENTS]
    types = {"int": "int64", "float": "float64", "str": "string"}

    def feature(kind: str) -> Any:
        return [feature(kind[1:-1])] if kind.startswith("[") else datasets.Value(types[kind])

    def _info(self: evaluate.Metric) -> evaluate.MetricInfo:
        features = datasets.Features({argument: feature(module.ARGUMENTS[argument]) for argument in inputs})
        return evaluate.MetricInfo(description=spec.summary, citation="", inputs_description="", features=features)

    def _compute(self: evaluate.Metric, **arrays: Any) -> dict[str, float | None]:
        return {name: compute(**{argument: _as_array(arrays[argument]) for argument in inputs})}

    # `evaluate` names a metric after its class.
    metric_class = type(name, (evaluate.Metric,), {"_info": _info, "_compute": _compute})
    return metric_class(keep_in_memory=True, cache_dir=str(cache_folder() / "evaluate"))
