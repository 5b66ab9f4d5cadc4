"""Texts as tokens: checking, tokenizing with a known cut, padding, showing."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from ftkit.tasks.base import Batch, Features, Row, RowError
from ftkit.tasks.parts.labels import shown
from ftkit.tasks.parts.tokens import tokens_of


def check_text(row: Row, column: str) -> None:
    """Raises RowError if the column does not hold a text with something in it."""
    value = row.get(column)
    if not isinstance(value, str):
        found = "missing" if value is None else f"{shown(value)}, which is not text"
        raise RowError(column, f"the text is {found}", "Correct the row, or map another column under data.columns")
    if not value.strip():
        raise RowError(column, "the text is empty", "Fill it in, or remove the row")


def tokenize(texts: Sequence[str], pairs: Sequence[str] | None, processor: Any, max_length: int) -> list[Features]:
    """`input_ids`, `token_type_ids` (where the model has them), `length` and `truncated` of each text or pair.

    Cuts the ends of texts, of the longer of a pair first, and keeps every special token of the tokenizer's template. The cut is made
    here and not by the tokenizer, which returns every combination of the overflows of a pair: two long texts exhaust the memory.
    """
    features = []
    for item in tokens_of(processor, texts, pairs):
        values: Features = dict(item.values)
        if truncated := len(item.ids) > max_length:
            for cut in cuts(item.texts(), max_length):
                values = {name: tokens[: cut.start] + tokens[cut.stop :] for name, tokens in values.items()}
        features.append({**values, "length": len(values["input_ids"]), "truncated": truncated})
    return features


def cuts(sequence_ids: Sequence[int | None], max_length: int) -> list[range]:
    """Positions to leave out, last ones first: ends of the texts (0 and 1), of the longer first; never special tokens (None)."""
    first, second = sequence_ids.count(0), sequence_ids.count(1)
    room = max_length - (len(sequence_ids) - first - second)
    shorter = min(first, second, room // 2)
    kept = (shorter, room - shorter) if first <= second else (room - shorter, shorter)
    found = []
    for text, count in ((1, second), (0, first)):
        if count > kept[text]:
            start = sequence_ids.index(text)
            found.append(range(start + kept[text], start + count))
    return found


def pad_inputs(features: Sequence[Features], processor: Any) -> Batch:
    """`input_ids`, `attention_mask`, `token_type_ids` (where features have them): int64 (B, T), padded on the right.

    The mask comes from lengths, because the padding token can also be a token of a text.
    """
    import torch

    shape = (len(features), max(int(item["length"]) for item in features))
    padding = 0 if processor.pad_token_id is None else processor.pad_token_id
    batch = {"input_ids": torch.full(shape, padding), "attention_mask": torch.zeros(shape, dtype=torch.int64)}
    if "token_type_ids" in features[0]:
        batch["token_type_ids"] = torch.zeros(shape, dtype=torch.int64)
    for index, item in enumerate(features):
        length = int(item["length"])
        batch["attention_mask"][index, :length] = 1
        for name in ("input_ids", "token_type_ids"):
            if name in batch:
                batch[name][index, :length] = torch.as_tensor(item[name])
    return batch


def shown_tokens(features: Features, processor: Any) -> list[tuple[str, str]]:
    """The tokens of `input_ids` with notes on special ones, then a note where the text was cut."""
    special = set(processor.all_special_ids)
    tokens = [int(token) for token in features["input_ids"]]
    pairs = [(processor.convert_ids_to_tokens(token), "special token" if token in special else "") for token in tokens]
    return [*pairs, ("", f"cut at {len(tokens)} tokens")] if features["truncated"] else pairs


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, middle, mean and largest; nothing of nothing."""
    if not values:
        return {}
    return {"min": min(values), "median": median(values), "mean": sum(values) / len(values), "max": max(values)}
