"""Token classification as transformers' run_ner.py does it: the first piece of each word is labeled, seqeval reads the entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sides.common import IGNORED, Example, Reference


class TokenClassification(Reference):
    """IOB2 tags of words. Sentences that are too long lose their end: their last words are in no metric of this side."""

    task = "token-classification"
    metrics = {"f1": "Entity F1", "precision": "Precision", "recall": "Recall"}
    auto_class = "AutoModelForTokenClassification"
    peft_task_type = "TOKEN_CLS"

    def refusals(self) -> Mapping[str, bool]:
        """Everything but IOB2 tags, given to the first piece of each word."""
        return {
            "task.scheme": self.prepared.task.state()["scheme"] != "IOB2",
            "task.on_invalid": self.options.on_invalid != "error",
            "task.labeling": self.options.labeling != "first",
        }

    def examples(self, rows: Sequence[Mapping[str, Any]], *, training: bool) -> list[Example]:
        """Tokens and the labels of these."""
        words = [_listed(row["tokens"]) for row in rows]
        encoded = self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=self.options.max_length)
        ids = self.prepared.task.head().config["label2id"]
        return [
            {
                **{name: values[index] for name, values in encoded.items()},
                "labels": labels_of(encoded.word_ids(index), [ids[tag] for tag in _listed(row["tags"])]),
            }
            for index, row in enumerate(rows)
        ]

    def translated(self, feature: Mapping[str, Any]) -> Example:
        """`input_ids` and `labels`."""
        return {name: list(feature[name]) for name in ("input_ids", "labels")}

    def collator(self) -> Any:
        """Pads labels, too."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(self.tokenizer)

    def score(self, found: Any, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """By seqeval, of the likeliest tag of each labeled piece."""
        names = self.prepared.task.head().config["id2label"]
        return entity_scores(found.predictions, found.label_ids, names)


def _listed(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else list(value)


def labels_of(word_ids: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """The label of each piece: a word's at its first piece, none elsewhere. word_ids: the word of each piece, None for special tokens."""
    before = [None, *word_ids]
    return [IGNORED if word is None or word == last else labels[word] for word, last in zip(word_ids, before, strict=False)]


def entity_scores(logits: Any, labels: Any, names: Mapping[int, str]) -> dict[str, float]:
    """Micro F1, precision and recall of entities.

    logits: (n, T, tags). labels: (n, T), -100 where there is none. names: tags by id.
    """
    from seqeval.metrics import f1_score, precision_score, recall_score

    pairs = list(zip(logits.argmax(-1), labels, strict=True))
    true = [[names[int(label)] for label in row if label != IGNORED] for _, row in pairs]
    predicted = [[names[int(tag)] for tag, label in zip(tags, row, strict=True) if label != IGNORED] for tags, row in pairs]
    measures = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    return {name: float(measure(true, predicted, zero_division=0)) for name, measure in measures.items()}
