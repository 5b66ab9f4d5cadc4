"""Tasks whose rows have a label, labels or a number, whatever the input is: options, loss, predictions, metrics, presentation."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ftkit.errors import DataError, Problem
from ftkit.methods.base import Default
from ftkit.metrics import classification, multi_label_classification, regression
from ftkit.metrics.base import MetricSpec
from ftkit.metrics.interchange import ExternalMetric
from ftkit.metrics.intervals import headline_intervals
from ftkit.recipe.schema import Auto, Strict
from ftkit.tasks.base import Batch, Calibration, Column, Features, Head, Prediction, Row, Rows, Task
from ftkit.tasks.parts.imbalance import label_weights, log_odds, several_labels_loss, single_label_loss, tuned_thresholds
from ftkit.tasks.parts.labels import Labels, Target, duplicates, listed, name_order
from ftkit.tasks.parts.metric_choice import MetricChoice, finite
from ftkit.tasks.parts.texts import spread

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

_FAMILIES: dict[str, Any] = {"single_label": classification, "multi_label": multi_label_classification, "regression": regression}
_AUTO_METRICS = {
    "single_label": ["accuracy", "f1_macro", "f1_weighted", "precision_macro", "recall_macro", "matthews_correlation", "auroc"],
    "multi_label": ["f1_micro", "f1_macro", "accuracy", "precision_micro", "recall_micro", "auroc_macro"],
    "regression": ["mse", "pearson", "spearman", "mae", "r2"],
}
_TINY = 1e-7
"""Distance of a probability from 0 and 1 at which its logit is taken."""
_PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


class LabelOptions(Strict):
    """Options of tasks with labels."""

    problem_type: Literal["single_label", "multi_label", "regression"] = Field("single_label", description="What a row's label is.")
    labels: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="All label names, in the order of their ids. Default: those of the training rows, sorted."
    )
    label_separator: str | None = Field(
        None, min_length=1, description="multi_label: what separates labels written as one text: `a|b`."
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["tuned"] = Field(
        0.5,
        description="multi_label: probability from which a label is predicted. tuned: for each label what gives the best F1 on the "
        "validation split, decided after training.",
    )
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="Weight of each label in the training loss. balanced: rare labels weigh more, so that all labels count the same; or "
        "{label: weight}. Under multi_label the weight of a label's positives.",
    )
    focal_gamma: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Focal loss (Lin et al. 2017): training examples that are already right count less. 2 is usual.",
    )
    metrics: Annotated[list[str | ExternalMetric], Field(min_length=1)] | Auto = Field(
        "auto", description="Metrics to report, the one that picks the best checkpoint first. auto: the usual ones."
    )


class LabelTask(Task):
    """A task whose model gives one logit for each label, or one for a number. Subclasses add the input.

    The metric that picks the best checkpoint: accuracy for single_label and micro F1 for multi_label, where every decision counts the
    same, so that small validation splits rank checkpoints with the least noise; mean squared error for regression, because
    correlations ignore scale and offset and are undefined while the model predicts a constant.
    """

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        self.supports_label_smoothing = self._problem == "single_label"
        self.measures_share = self._problem != "regression"
        self._labels = Labels(self._problem, self.options.labels, self.options.label_separator)
        self._weights: list[float] | None = None
        self._head_bias: list[float] = []
        self.needs_validation = "threshold: tuned" if self.options.threshold == "tuned" else ""
        chosen = _AUTO_METRICS[self._problem] if self.options.metrics == "auto" else self.options.metrics
        self._metrics = MetricChoice(_FAMILIES[self._problem].METRICS, chosen)

    @property
    def _problem(self) -> str:
        return self.options.problem_type

    # --- what it needs -------------------------------------------------------------------------------------------

    def _label_column(self) -> Column:
        numbers = ("score", "similarity_score", "value", "rating") if self._problem == "regression" else ()
        return Column(
            summary="A number." if numbers else "The label, or labels.",
            target=True,
            names=("label", "labels", *numbers, "class", "category", "target"),
        )

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
        if self._problem == "regression":
            found += [f"{key}: a regression has no labels" for key in ("class_weights", "focal_gamma") if _is_set(options, key)]
        named = set(options.class_weights) if isinstance(options.class_weights, dict) else set()
        if labels and (unknown := sorted(named - set(labels))):
            found.append(f"class_weights: {listed(unknown)} not in labels")
        return "; ".join([*found, *self._metrics.problems()])

    def _metric_default(self) -> Default:
        return Default(value=_AUTO_METRICS[self._problem], source=f"the usual metrics of {self._problem}")

    def _check_label(self, row: Row) -> None:
        """Raises RowError for a label that does not fit `problem_type` or `labels`; rows to predict have none."""
        if "label" in row:
            target = self._labels.read(row)
            if self.options.labels:
                self._labels.check_known(target)

    # --- what it learns ------------------------------------------------------------------------------------------

    def learn(self, rows: Iterable[Row]) -> None:
        """Freezes the label names; loads metric scripts, so that a broken one costs no training.

        Raises DataError if there is nothing to tell apart.
        """
        self._metrics.load(self.allow_code)
        counts: Counter[str] = Counter()
        total, value_sum = 0, 0.0
        for row in rows:
            target = self._labels.read(row)
            if isinstance(target, list):
                counts.update(target)
            else:
                value_sum += target
            total += 1
            self._note_input(row)
        if self._problem == "regression":
            self._head_bias = [value_sum / max(1, total)]
            return
        self._labels.learn(counts)
        self._weigh(counts, total)
        if self._problem == "multi_label":
            self._head_bias = log_odds(counts, self._labels.names, total, self._weights)

    def _weigh(self, counts: Mapping[str, int], rows: int) -> None:
        choice, names = self.options.class_weights, self._labels.names
        if choice is None:
            return
        if isinstance(choice, dict) and (unknown := sorted(set(choice) - set(names))):
            hint = f"The training rows have {listed(names)}"
            raise DataError(Problem(message=f"no row has the label {listed(unknown)}", key="task.class_weights", hint=hint))
        self._weights = label_weights(choice, names, counts, rows, several=self._problem == "multi_label")

    def _note_input(self, row: Row) -> None:
        """Takes notice of a training row's input in `learn`, where the task learns from it."""

    def check_learned(self, row: Row) -> None:
        """Raises RowError for a label that was not learned."""
        if row.get("label") is not None:
            self._labels.check_known(self._labels.read(row))

    def state(self) -> dict[str, Any]:
        """`labels`: names by id. `head_bias`: what the outputs of a new head begin with."""
        return {"labels": self._labels.names, "head_bias": self._head_bias}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._labels.fix(state["labels"])
        self._head_bias = list(state["head_bias"])

    def describe(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Rows, facts about their inputs, and the distribution of labels or numbers."""
        targets: list[Target] = []

        def noted() -> Iterable[Row]:
            for row in rows:
                if row.get("label") is not None:
                    targets.append(self._labels.read(row))
                yield row

        facts = self._describe_inputs(noted())
        if self._problem == "regression":
            return {**facts, "values": spread([target for target in targets if isinstance(target, float)])}
        counts = Counter(name for target in targets if isinstance(target, list) for name in target)
        order = self._labels.names or sorted(counts, key=name_order(counts))
        facts["labels"] = {label: counts[label] for label in order}
        return {**facts, "rows_without_label": targets.count([])} if self._problem == "multi_label" else facts

    @abstractmethod
    def _describe_inputs(self, rows: Iterable[Row]) -> dict[str, Any]:
        """`rows` (their number) and facts about the inputs; reads all rows once."""

    # --- tensors -------------------------------------------------------------------------------------------------

    def _head(self, auto_class: str, peft_task_type: str | None) -> Head:
        names = self._labels.names or ["value"]
        config = {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": _PROBLEM_TYPES[self._problem],
        }
        return Head(auto_class=auto_class, peft_task_type=peft_task_type, config=config, bias=tuple(self._head_bias))

    def _label_features(self, row: Row) -> Features:
        """`label`, where the row has one."""
        return {} if row.get("label") is None else {"label": self._labels.encode(row)}

    def _label_tensors(self, features: Sequence[Features]) -> Batch:
        """`example` and, where all have one, `labels`."""
        import torch

        batch: Batch = {"example": torch.tensor([int(item["example"]) for item in features])}
        if all("label" in item for item in features):
            kind = torch.int64 if self._problem == "single_label" else torch.float32
            batch["labels"] = torch.stack([torch.as_tensor(item["label"], dtype=kind) for item in features])
        return batch

    def target_count(self, batch: Batch) -> int:
        """Examples with a label."""
        return len(batch["labels"]) if "labels" in batch else 0

    def loss(self, outputs: Any, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
        """Summed over examples: cross-entropy, mean binary cross-entropy of the labels, or squared error.

        Divided by `target_count` it is transformers' own loss. In training `class_weights` and `focal_gamma` change it.
        """
        import torch
        from torch.nn import functional

        logits, labels, training = outputs.logits.float(), batch["labels"], torch.is_grad_enabled()
        if self._problem == "regression":
            return functional.mse_loss(logits.squeeze(-1), labels, reduction="sum")
        weights = torch.tensor(self._weights, device=logits.device) if training and self._weights else None
        gamma = self.options.focal_gamma if training else 0.0
        if self._problem == "single_label":
            return single_label_loss(logits, labels, weights, gamma, label_smoothing)
        return several_labels_loss(logits, labels, weights, gamma)

    # --- results -------------------------------------------------------------------------------------------------

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """`example` and `probabilities` (float32 (labels,)) or `value` (float)."""
        logits, examples = outputs.logits.float(), batch["example"].tolist()
        if self._problem == "regression":
            values = logits.squeeze(-1).cpu().tolist()
            return [{"example": example, "value": value} for example, value in zip(examples, values, strict=True)]
        found = (logits.softmax(-1) if self._problem == "single_label" else logits.sigmoid()).detach().cpu().numpy()
        return [{"example": example, "probabilities": row} for example, row in zip(examples, found, strict=True)]

    def combine(self, parts: Sequence[Prediction]) -> Prediction:
        """The mean of the logits (or values) of all windows of an example."""
        import numpy as np

        if len(parts) == 1:
            return parts[0]
        if self._problem == "regression":
            return {**parts[0], "value": sum(part["value"] for part in parts) / len(parts)}
        found = np.stack([part["probabilities"] for part in parts]).astype(np.float64).clip(_TINY, 1 - _TINY)
        # Log probabilities differ from logits by a number that softmax takes out again.
        if self._problem == "single_label":
            pooled = np.exp(np.log(found).mean(0))
            return {**parts[0], "probabilities": (pooled / pooled.sum()).astype(np.float32)}
        odds = np.exp((np.log(found) - np.log1p(-found)).mean(0))
        return {**parts[0], "probabilities": (odds / (1 + odds)).astype(np.float32)}

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
        chosen = (scores >= np.array(self._thresholds())).astype(kind)
        return {"references": np.array(labels, kind).reshape(scores.shape), "predictions": chosen, "scores": scores}

    def _thresholds(self) -> list[float]:
        """Of each label: the option's, or what `calibrate` found."""
        given = 0.5 if self.options.threshold == "tuned" else float(self.options.threshold)
        tuned = self.calibration.get("thresholds", {})
        return [float(tuned.get(name, given)) for name in self._labels.names]

    def calibrate(self, predictions: Sequence[Prediction], rows: Rows) -> Calibration:
        """`thresholds`: for each label the best for its F1 on these rows, where `threshold` is tuned."""
        if self.options.threshold != "tuned":
            return {}
        arrays = self._arrays(predictions, rows)
        return {"thresholds": dict(zip(self._labels.names, tuned_thresholds(arrays["scores"], arrays["references"]), strict=True))}

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
            thresholds = dict(zip(self._labels.names, self._thresholds(), strict=True))
            chosen = [name for name, score in probabilities.items() if score >= thresholds[name]]
            return {"labels": chosen, "probabilities": probabilities}
        best = self._labels.names[scores.index(max(scores))]
        return {"label": best, "score": probabilities[best], "probabilities": probabilities}

    def _shown_label(self, features: Features) -> list[tuple[str, str]]:
        """The label as a note for `inspect`, where there is one."""
        return [("", f"label: {self._label_text(features['label'])}")] if "label" in features else []

    def _label_text(self, label: Any) -> str:
        if self._problem == "single_label":
            return self._labels.names[int(label)]
        if self._problem == "regression":
            return f"{float(label):g}"
        return ", ".join(name for name, flag in zip(self._labels.names, label, strict=True) if flag) or "(none)"


def _is_set(options: Strict, key: str) -> bool:
    return getattr(options, key) != type(options).model_fields[key].default
