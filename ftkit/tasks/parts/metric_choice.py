"""The metrics that a task reports, as its `metrics` option chooses them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ftkit.metrics.base import LOSS, MetricSpec
from ftkit.metrics.catalog import compute_metric
from ftkit.metrics.interchange import ExternalMetric, load_external
from ftkit.tasks.parts.labels import duplicates, listed

if TYPE_CHECKING:
    from numpy import ndarray


class MetricChoice:
    """Metrics of a family by name, scripts of `evaluate`, and the loss.

    known: the family's metrics. chosen: what the recipe asks for, in its order.
    """

    def __init__(self, known: Mapping[str, MetricSpec], chosen: Sequence[str | ExternalMetric]) -> None:
        self._known, self._chosen = {**known, LOSS.name: LOSS}, list(chosen)
        self._loaded: dict[str, MetricSpec] = {}

    def problems(self) -> list[str]:
        """Unknown and repeated names."""
        found = []
        for name in (metric for metric in self._chosen if isinstance(metric, str) and metric not in self._known):
            near = get_close_matches(name, self._known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self._known)}"
            found.append(f"metrics: there is no metric {name!r} here; {advice}")
        names = [metric if isinstance(metric, str) else metric.spec().name for metric in self._chosen]
        return [*found, f"metrics: {listed(repeated)} given more than once"] if (repeated := duplicates(names)) else found

    def specs(self) -> list[MetricSpec]:
        """The chosen metrics in their order, then the loss if it is not among them."""
        specs = [self._known[metric] if isinstance(metric, str) else metric.spec() for metric in self._chosen]
        return specs if LOSS in specs else [*specs, LOSS]

    def load(self, allow_code: bool) -> None:
        """Loads the scripts. Raises RecipeError if one cannot be loaded, or if code is not allowed."""
        for metric in self._chosen:
            if isinstance(metric, ExternalMetric) and metric.spec().name not in self._loaded:
                self._loaded[metric.spec().name] = load_external(metric, allow_code=allow_code)

    def score(self, arrays: Mapping[str, ndarray], names: Collection[str] | None, *, allow_code: bool) -> dict[str, Any]:
        """Values of all chosen metrics but the loss, or of those in `names`. All None if an array holds a number that is not finite."""
        self.load(allow_code)
        wanted = [spec for spec in self.specs() if spec is not LOSS and (names is None or spec.name in names)]
        if not finite(arrays):
            return {spec.name: None for spec in wanted}
        return {spec.name: compute_metric(self._loaded.get(spec.name, spec), arrays) for spec in wanted}


def finite(arrays: Mapping[str, ndarray]) -> bool:
    """Whether all numbers are finite; arrays of texts hold none."""
    import numpy as np

    return all(bool(np.isfinite(array).all()) for array in arrays.values() if array.dtype.kind in "biuf")
