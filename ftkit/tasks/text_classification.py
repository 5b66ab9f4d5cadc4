"""Text classification: one label, any number of labels, or a number for a text or a pair of texts.

{"text": "The plot is thin.", "label": "negative"}                    problem_type: single_label
{"text": "Goal in the last minute!", "label": ["sports", "news"]}     problem_type: multi_label
{"text": "A man runs.", "text_pair": "Someone moves.", "label": 4.2}  problem_type: regression
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ftkit.methods.base import Default
from ftkit.metrics import classification, multi_label_classification, regression
from ftkit.metrics.base import MetricSpec
from ftkit.metrics.interchange import ExternalMetric
from ftkit.metrics.intervals import headline_intervals
from ftkit.recipe.schema import Auto, Strict
from ftkit.tasks.base import Batch, Column, Features, Head, Prediction, Row, RowError, Rows, Task
from ftkit.tasks.parts.labels import Labels, duplicates, listed, name_order
from ftkit.tasks.parts.metric_choice import MetricChoice, finite
from ftkit.tasks.parts.texts import check_text, pad_inputs, shown_tokens, spread, tokenize

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from ftkit.models.facts import ModelFacts

_FAMILIES: dict[str, Any] = {"single_label": classification, "multi_label": multi_label_classification, "regression": regression}
_AUTO_METRICS = {
    "single_label": ["accuracy", "f1_macro", "f1_weighted", "precision_macro", "recall_macro", "matthews_correlation", "auroc"],
    "multi_label": ["f1_micro", "f1_macro", "accuracy", "precision_micro", "recall_micro", "auroc_macro"],
    "regression": ["mse", "pearson", "spearman", "mae", "r2"],
}
_PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
_ROWS_AT_A_TIME = 1000
"""Rows tokenized in one call."""


class Options(Strict):
    """Options of text classification."""

    problem_type: Literal["single_label", "multi_label", "regression"] = Field("single_label", description="What a row's label is.")
    labels: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="All label names, in the order of their ids. Default: those of the training rows, sorted."
    )
    label_separator: str | None = Field(
        None, min_length=1, description="multi_label: what separates labels written as one text: `a|b`."
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="multi_label: probability from which a label is predicted.")
    max_length: Annotated[int, Field(ge=8)] | Auto = Field(
        "auto", description="Longest input in tokens; the end of longer texts is cut off. auto: what the model takes, at most 512."
    )
    metrics: Annotated[list[str | ExternalMetric], Field(min_length=1)] | Auto = Field(
        "auto", description="Metrics to report, the one that picks the best checkpoint first. auto: the usual ones."
    )


class TextClassification(Task):
    """Text classification and regression.

    Labels are text, whole numbers or booleans in the data and always text in ftkit; their order is that of `labels`, else
    alphabetical (numerical if all are whole numbers), never that of the rows. Under multi_label a row has a list of labels, a text
    to split at `label_separator`, or, where `data.columns` maps `label` to a list of 0/1 columns, a list of 0/1 as long as `labels`
    (required then, in the order of the columns; labels named `0` or `1` cannot be written so).
    Texts come in pairs if any training row has a `text_pair`; then every row must have one.

    The metric that picks the best checkpoint: accuracy for single_label and micro F1 for multi_label, where every decision counts the
    same, so that small validation splits rank checkpoints with the least noise; mean squared error for regression, because
    correlations ignore scale and offset and are undefined while the model predicts a constant.
    """

    name = "text-classification"
    summary = "A label, several labels or a number for a text or a pair of texts."
    model_kinds = frozenset({"encoder", "decoder", "encoder-decoder"})
    Options = Options

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        self.supports_label_smoothing = self._problem == "single_label"
        self._labels = Labels(self._problem, self.options.labels, self.options.label_separator)
        self._pair = False
        chosen = _AUTO_METRICS[self._problem] if self.options.metrics == "auto" else self.options.metrics
        self._metrics = MetricChoice(_FAMILIES[self._problem].METRICS, chosen)

    @property
    def _problem(self) -> str:
        return self.options.problem_type

    # --- what it needs -------------------------------------------------------------------------------------------

    def columns(self) -> Mapping[str, Column]:
        """Text, optional second text, label."""
        numbers = ("score", "similarity_score", "value", "rating") if self._problem == "regression" else ()
        return {
            "text": Column(
                summary="The text.",
                names=(
                    "text",
                    "sentence",
                    "sentence1",
                    "review",
                    "content",
                    "document",
                    "question1",
                    "question",
                    "premise",
                    "tweet",
                ),
            ),
            "text_pair": Column(
                summary="The second text of a pair.", required=False, names=("text_pair", "sentence2", "question2", "hypothesis")
            ),
            "label": Column(
                summary="A number." if numbers else "The label, or labels.",
                target=True,
                names=("label", "labels", *numbers, "class", "category", "target"),
            ),
        }

    def stratify_column(self) -> str | None:
        """The label, where a row has one."""
        return "label" if self._problem == "single_label" else None

    def check_options(self) -> str:
        """Options that contradict each other, and unknown metrics."""
        options, found = self.options, []
        labels = options.labels or []
        if labels and self._problem == "regression":
            found.append("labels: a regression has none")
        if repeated := duplicates(labels):
            found.append(f"labels: {listed(repeated)} given more than once")
        if self._problem == "single_label" and len(labels) == 1:
            found.append("labels: there must be at least two")
        if self._problem != "multi_label":
            found += [
                f"{key}: only for problem_type multi_label" for key in ("label_separator", "threshold") if _is_set(options, key)
            ]
        return "; ".join([*found, *self._metrics.problems()])

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        """`task.max_length` and `task.metrics`."""
        longest = 512 if facts.max_positions is None else min(facts.max_positions, 512)
        model_takes = "any length" if facts.max_positions is None else f"{facts.max_positions} tokens"
        return {
            "task.max_length": Default(
                value=longest, source=f"{facts.model_type} takes {model_takes}; at most 512 unless asked for"
            ),
            "task.metrics": Default(value=_AUTO_METRICS[self._problem], source=f"the usual metrics of {self._problem}"),
        }

    def refusal(self, facts: ModelFacts) -> str:
        """A `max_length` that the model's positions do not reach."""
        wanted, available = self.options.max_length, facts.max_positions
        if isinstance(wanted, int) and available is not None and wanted > available:
            return f"max_length is {wanted}, but {facts.model_type} takes at most {available} tokens"
        return ""

    def check_row(self, row: Row) -> None:
        """Raises RowError for empty texts and labels that do not fit `problem_type` or `labels`."""
        check_text(row, "text")
        if row.get("text_pair") is not None:
            check_text(row, "text_pair")
        if "label" in row:
            target = self._labels.read(row)
            if self.options.labels:
                self._labels.check_known(target)

    def learn(self, rows: Iterable[Row]) -> None:
        """Freezes the label names and whether texts come in pairs; loads metric scripts, so that a broken one costs no training.

        Raises DataError if there is nothing to tell apart.
        """
        self._metrics.load(self.allow_code)
        counts: Counter[str] = Counter()
        self._pair = False
        for row in rows:
            target = self._labels.read(row)
            counts.update(target if isinstance(target, list) else ())
            self._pair = self._pair or row.get("text_pair") is not None
        if self._problem != "regression":
            self._labels.learn(counts)

    def check_learned(self, row: Row) -> None:
        """Raises RowError for a label that was not learned, and for pairs and single texts in one run."""
        paired = row.get("text_pair") is not None
        if paired != self._pair:
            message = "has a second text, but the training rows have none" if paired else "the second text is missing"
            raise RowError("text_pair", message, "Give every row of every split a pair, or none")
        if row.get("label") is not None:
            self._labels.check_known(self._labels.read(row))

    def state(self) -> dict[str, Any]:
        """`labels` (names by id) and `pair`."""
        return {"labels": self._labels.names, "pair": self._pair}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._labels.fix(state["labels"])
        self._pair = bool(state["pair"])

    def describe(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Rows, characters of text, and the distribution of labels or numbers."""
        characters: list[int] = []
        targets: list[list[str] | float] = []
        for row in rows:
            characters.append(len(row["text"]) + len(row.get("text_pair") or ""))
            if row.get("label") is not None:
                targets.append(self._labels.read(row))
        facts = {"rows": len(characters), "characters": spread(characters)}
        if self._problem == "regression":
            return {**facts, "values": spread([target for target in targets if isinstance(target, float)])}
        counts = Counter(name for target in targets if isinstance(target, list) for name in target)
        order = self._labels.names or sorted(counts, key=name_order(counts))
        facts["labels"] = {label: counts[label] for label in order}
        return {**facts, "rows_without_label": targets.count([])} if self._problem == "multi_label" else facts

    # --- tensors -------------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """A sequence classification head with one output a label, or one for a number."""
        names = self._labels.names or ["value"]
        config = {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": _PROBLEM_TYPES[self._problem],
        }
        return Head(auto_class="AutoModelForSequenceClassification", peft_task_type="SEQ_CLS", config=config)

    def encode(self, rows: Sequence[Row], processor: Any, *, training: bool = False) -> list[Features]:
        """`input_ids`, `token_type_ids` (where the model has them), `label` (where the row has one), `length`, `row`, `truncated`.

        Raises RowError for rows that contradict what was learned.
        """
        if self.options.max_length == "auto":
            raise ValueError("max_length is still `auto`: fill it from defaults()")
        features: list[Features] = []
        pending = iter(rows)
        while chunk := list(islice(pending, _ROWS_AT_A_TIME)):
            for row in chunk:
                self.check_learned(row)
            pairs = [row["text_pair"] for row in chunk] if self._pair else None
            encoded = tokenize([row["text"] for row in chunk], pairs, processor, self.options.max_length)
            for row, item in zip(chunk, encoded, strict=True):
                if row.get("label") is not None:
                    item["label"] = self._labels.encode(row)
                features.append({**item, "row": len(features)})
        return features

    def collate(self, features: Sequence[Features], processor: Any, *, training: bool = False) -> Batch:
        """`input_ids`, `attention_mask`, `token_type_ids`: int64 (B, T), padded on the right; `labels`, where all have one: int64 (B,),
        float32 (B, labels), or float32 (B,) for numbers; `example`: int64 (B,)."""
        import torch

        batch = pad_inputs(features, processor)
        if all("label" in item for item in features):
            kind = torch.int64 if self._problem == "single_label" else torch.float32
            batch["labels"] = torch.stack([torch.as_tensor(item["label"], dtype=kind) for item in features])
        batch["example"] = torch.tensor([int(item["example"]) for item in features])
        return batch

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """What the forward pass takes."""
        return ("input_ids", "attention_mask", "token_type_ids")

    def target_count(self, batch: Batch) -> int:
        """Examples with a label."""
        return len(batch["labels"]) if "labels" in batch else 0

    def loss(self, outputs: Any, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
        """Summed over examples: cross-entropy, mean binary cross-entropy of the labels, or squared error.

        Divided by `target_count` it is transformers' own loss.
        """
        from torch.nn import functional

        logits, labels = outputs.logits.float(), batch["labels"]
        if self._problem == "single_label":
            return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
        if self._problem == "multi_label":
            return functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / logits.shape[1]
        return functional.mse_loss(logits.squeeze(-1), labels, reduction="sum")

    # --- results -------------------------------------------------------------------------------------------------

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """`example` and `probabilities` (float32 (labels,)) or `value` (float)."""
        logits, examples = outputs.logits.float(), batch["example"].tolist()
        if self._problem == "regression":
            values = logits.squeeze(-1).cpu().tolist()
            return [{"example": example, "value": value} for example, value in zip(examples, values, strict=True)]
        found = (logits.softmax(-1) if self._problem == "single_label" else logits.sigmoid()).detach().cpu().numpy()
        return [{"example": example, "probabilities": row} for example, row in zip(examples, found, strict=True)]

    def metrics(self) -> Sequence[MetricSpec]:
        """Those of the `metrics` option in its order, then the loss."""
        return self._metrics.specs()

    def _arrays(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, ndarray]:
        """`references`, `predictions` and (classification) `scores`, as the metric families take them."""
        import numpy as np

        kind = np.float64 if self._problem == "regression" else np.int64
        labels = [self._labels.encode(row) for row in rows]
        if self._problem == "regression":
            return {"references": np.array(labels, kind), "predictions": np.array([item["value"] for item in predictions], kind)}
        scores = np.array([item["probabilities"] for item in predictions], np.float64).reshape(
            len(predictions), len(self._labels.names)
        )
        if self._problem == "single_label":
            return {"references": np.array(labels, kind), "predictions": scores.argmax(axis=1), "scores": scores}
        chosen = (scores >= self.options.threshold).astype(kind)
        return {"references": np.array(labels, kind).reshape(scores.shape), "predictions": chosen, "scores": scores}

    def score(self, predictions: Sequence[Prediction], rows: Rows, names: Sequence[str] | None = None) -> dict[str, Any]:
        """All metrics but the loss. All are None if any prediction is not a finite number."""
        return self._metrics.score(self._arrays(predictions, rows), names, allow_code=self.allow_code)

    def intervals(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, tuple[float, float]]:
        """Of the headline metrics, where every prediction is a finite number."""
        arrays = self._arrays(predictions, rows)
        return headline_intervals(self.metrics(), arrays, _FAMILIES[self._problem].RESAMPLED) if finite(arrays) else {}

    def details(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, Any]:
        """`labels` (precision, recall, F1, support of each) and, for single_label, `confusion_matrix` (row: truth, column: prediction)."""
        if self._problem == "regression" or not predictions:
            return {}
        arrays = self._arrays(predictions, rows)
        given = arrays["references"], arrays["predictions"], len(self._labels.names)
        table = classification.per_label(*given)
        details: dict[str, Any] = {
            "labels": [{"label": name, **entry} for name, entry in zip(self._labels.names, table, strict=True)]
        }
        if self._problem == "single_label":
            details["confusion_matrix"] = {"labels": self._labels.names, "counts": classification.confusion_matrix(*given)}
        return details

    def present(self, prediction: Prediction, row: Row) -> dict[str, Any]:
        """`label` and its `score`, or `labels`, with all `probabilities`; or `value`."""
        if self._problem == "regression":
            return {"value": float(prediction["value"])}
        scores = [float(score) for score in prediction["probabilities"]]
        probabilities = dict(zip(self._labels.names, scores, strict=True))
        if self._problem == "multi_label":
            chosen = [name for name, score in probabilities.items() if score >= self.options.threshold]
            return {"labels": chosen, "probabilities": probabilities}
        best = self._labels.names[scores.index(max(scores))]
        return {"label": best, "score": probabilities[best], "probabilities": probabilities}

    def inspect(self, features: Features, processor: Any) -> list[tuple[str, str]]:
        """The tokens, then the cut and the label as notes without a token."""
        shown = shown_tokens(features, processor)
        return [*shown, ("", f"label: {self._label_text(features['label'])}")] if "label" in features else shown

    def _label_text(self, label: Any) -> str:
        if self._problem == "single_label":
            return self._labels.names[int(label)]
        if self._problem == "regression":
            return f"{float(label):g}"
        return ", ".join(name for name, flag in zip(self._labels.names, label, strict=True) if flag) or "(none)"


def _is_set(options: Strict, key: str) -> bool:
    return getattr(options, key) != type(options).model_fields[key].default
