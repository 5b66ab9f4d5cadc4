"""A task without a model: enough of one for reading, dividing and encoding rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftkit.metrics.base import MetricSpec
from ftkit.recipe.schema import Strict
from ftkit.tasks.base import Batch, Column, Features, Head, Prediction, Row, RowError, Task


class Options(Strict):
    max_length: int = 100
    window: int | None = None


class ToyTask(Task):
    """Text and label; tokens are words, their ids the lengths of the words."""

    name = "toy"
    summary = "A task for tests."
    model_kinds = frozenset({"encoder"})
    Options = Options

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options or Options())
        self.labels: list[str] = []
        self.encoded_rows = 0

    def columns(self) -> Mapping[str, Column]:
        return {
            "text": Column(summary="The text.", names=("sentence", "body")),
            "note": Column(summary="A remark.", required=False),
            "label": Column(summary="The class.", target=True, names=("category", "target")),
        }

    def check_row(self, row: Row) -> None:
        if not isinstance(row["text"], str) or not row["text"].strip():
            raise RowError("text", f"{row['text']!r} is not a text", "Give each row a text.")
        if "label" in row and row["label"] in (None, ""):
            raise RowError("label", "the label is empty")

    def stratify_column(self) -> str | None:
        return "label"

    def learn(self, rows: Iterable[Row]) -> None:
        self.labels = sorted({str(row["label"]) for row in rows})

    def check_learned(self, row: Row) -> None:
        if "label" in row and str(row["label"]) not in self.labels:
            raise RowError("label", f"{row['label']!r} is not a label of the training rows")

    def state(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.labels = list(state["labels"])

    def encode(self, rows: Sequence[Row], processor: Any, *, training: bool = False) -> list[Features]:
        self.encoded_rows += len(rows)
        features: list[Features] = []
        for index, row in enumerate(rows):
            ids = [len(word) for word in row["text"].split()][: self.options.max_length]
            size = self.options.window or max(len(ids), 1)
            for start in range(0, max(len(ids), 1), size):
                feature: Features = {"input_ids": ids[start : start + size], "length": len(ids[start : start + size]), "row": index}
                if "label" in row:
                    feature["label"] = self.labels.index(str(row["label"])) if self.labels else 0
                features.append(feature)
        return features

    def head(self) -> Head:
        raise NotImplementedError

    def collate(self, features: Sequence[Features], processor: Any, *, training: bool = False) -> Batch:
        raise NotImplementedError

    @property
    def model_inputs(self) -> tuple[str, ...]:
        return ("input_ids",)

    def target_count(self, batch: Batch) -> int:
        raise NotImplementedError

    def loss(self, outputs: Any, batch: Batch, *, label_smoothing: float = 0.0) -> Any:
        raise NotImplementedError

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        raise NotImplementedError

    def metrics(self) -> Sequence[MetricSpec]:
        return []

    def score(self, predictions: Sequence[Prediction], rows: Sequence[Row], names: Sequence[str] | None = None) -> dict[str, Any]:
        raise NotImplementedError

    def present(self, prediction: Prediction, row: Row) -> dict[str, Any]:
        raise NotImplementedError

    def inspect(self, features: Features, processor: Any) -> list[tuple[str, str]]:
        raise NotImplementedError
