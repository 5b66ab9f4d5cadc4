"""Text classification as transformers' run_classification.py does it: texts cut at a length, padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sides.common import Example, Reference


class TextClassification(Reference):
    """One label for a text or a pair of texts. Metrics by scikit-learn."""

    task = "text-classification"
    metrics = {"accuracy": "Accuracy", "f1_macro": "Macro F1"}
    auto_class = "AutoModelForSequenceClassification"
    peft_task_type = "SEQ_CLS"

    def refusals(self) -> Mapping[str, bool]:
        """Everything but one label, equally weighted, for a text whose end is cut off."""
        return {
            "task.problem_type": self.options.problem_type != "single_label",
            "task.long_texts": self.options.long_texts != "cut",
            "task.class_weights": self.options.class_weights is not None,
            "task.focal_gamma": self.options.focal_gamma != 0,
        }

    def examples(self, rows: Sequence[Mapping[str, Any]], *, training: bool) -> list[Example]:
        """Tokens and the label's id."""
        paired = rows[0].get("text_pair") is not None
        texts = [[row[name] for row in rows] for name in ("text", "text_pair")[: 1 + paired]]
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.options.max_length)
        ids = self.prepared.task.head().config["label2id"]
        return [
            {**{name: values[index] for name, values in encoded.items()}, "labels": ids[str(row["label"])]}
            for index, row in enumerate(rows)
        ]

    def translated(self, feature: Mapping[str, Any]) -> Example:
        """`input_ids` and `labels`."""
        return {"input_ids": list(feature["input_ids"]), "labels": int(feature["label"])}

    def score(self, found: Any, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Accuracy and macro F1 of the likeliest label."""
        from sklearn.metrics import accuracy_score, f1_score

        predictions, labels = found.predictions.argmax(-1), found.label_ids
        return {
            "accuracy": float(accuracy_score(labels, predictions)),
            "f1_macro": float(f1_score(labels, predictions, average="macro", zero_division=0)),
        }
