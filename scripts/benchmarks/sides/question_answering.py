"""Question answering as transformers' run_qa.py does it: windows that overlap, the best of the likeliest starts and ends of all windows.

Exact match and F1 by the formulas of the official SQuAD 2.0 script, from 0 to 1; for questions that have an answer they are those
of SQuAD 1.1. Windows are padded to the longest of a batch (`--pad_to_max_length False`).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sides.common import Example, Reference

Offsets = Sequence["tuple[int, int] | None"]
"""For each token its characters of the context, None for tokens that are not of the context."""


class QuestionAnswering(Reference):
    """The part of a context that answers a question.

    PEFT's own task type for it is left out: the wrapper of PEFT 0.21 does not hand `token_type_ids` on. In the check before
    training each window is a batch of its own, because for transformers padding is one of the choices, and for ftkit it is not.
    """

    task = "question-answering"
    metrics = {"exact_match": "Exact match", "f1": "F1"}
    auto_class = "AutoModelForQuestionAnswering"
    peft_task_type = None
    heads = ["qa_outputs"]
    batch = 1

    def refusals(self) -> Mapping[str, bool]:
        """A threshold that is chosen on the validation rows; smoothing, which the Trainer leaves out where targets are positions."""
        chosen = self.prepared.splits.validation is not None and self.options.no_answer_threshold == "auto"
        return {
            "task.no_answer_threshold": chosen and self._may_be_unanswerable(),
            "train.label_smoothing": self.plan.recipe.train.label_smoothing != 0,
        }

    def _may_be_unanswerable(self) -> bool:
        if self.options.no_answer != "auto":
            return bool(self.options.no_answer)
        return any(not answers_of(row) for row in self.prepared.rows("train"))

    def examples(self, rows: Sequence[Mapping[str, Any]], *, training: bool) -> list[Example]:
        """Windows: tokens, first and last token of the answer; `_row` and `_offsets`."""
        encoded = self.tokenizer(
            [row["question"].lstrip() for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=self.options.max_length,
            stride=self.options.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        found = []
        for index, row in enumerate(owners):
            kinds = encoded.sequence_ids(index)
            window = [place if kind == 1 else None for place, kind in zip(offsets[index], kinds, strict=True)]
            example = {name: values[index] for name, values in encoded.items()}
            if training:
                null = self._null(example["input_ids"])
                places = answer_tokens(window, answers_of(rows[row])) or (null, null)
                example |= {"start_positions": places[0], "end_positions": places[1]}
            found.append({**example, "_row": row, "_offsets": window})
        return found

    def _null(self, tokens: Sequence[int]) -> int:
        """Place of what stands for no answer: the CLS token, else the one that begins a text, else the first one."""
        special = (self.tokenizer.cls_token_id, self.tokenizer.bos_token_id)
        return next((tokens.index(token) for token in special if token in tokens), 0)

    def translated(self, feature: Mapping[str, Any]) -> Example:
        """`input_ids`, `start_positions` and `end_positions`."""
        places = {"start_positions": int(feature["start"]), "end_positions": int(feature["end"])}
        return {"input_ids": list(feature["input_ids"]), **places}

    def score(self, found: Any, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Means over the questions of the best answers' exact match and F1."""
        start, end = (np.asarray(logits) for logits in found.predictions[:2])
        windows: list[list[int]] = [[] for _ in rows]
        for index, example in enumerate(examples):
            windows[example["_row"]].append(index)
        given = self.options.no_answer_threshold
        threshold = (0.0 if given == "auto" else float(given)) if self._may_be_unanswerable() else None
        answers = [
            best_answer(
                row["context"],
                [(start[index], end[index], examples[index]["_offsets"]) for index in chosen],
                count=self.options.n_best,
                longest=self.options.max_answer_length,
                threshold=threshold,
            )
            for row, chosen in zip(rows, windows, strict=True)
        ]
        return squad_scores(answers, [[text for text, _ in answers_of(row)] for row in rows])


def answers_of(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Acceptable answers and the characters that they begin at, in any of the layouts of SQuAD."""
    found = row.get("answers")
    if isinstance(found, str):
        return [(found, int(row["answer_start"]))] if found else []
    if isinstance(found, Mapping):
        return list(zip(found["text"], found["answer_start"], strict=True))
    return [(answer["text"], answer["answer_start"]) for answer in found or ()]


def answer_tokens(window: Offsets, answers: Sequence[tuple[str, int]]) -> tuple[int, int] | None:
    """First and last token of the first answer, None if the window does not hold all of it.

    run_qa.py lets the start of an answer that begins in the last token of the context slip behind the context; this does not.
    """
    inside = [(token, *place) for token, place in enumerate(window) if place is not None]
    if not answers or not inside:
        return None
    first, last = answers[0][1], answers[0][1] + len(answers[0][0])
    if inside[0][1] > first or inside[-1][2] < last:
        return None
    return max(token for token, start, _ in inside if start <= first), min(token for token, _, end in inside if end >= last)


def best_answer(
    context: str, windows: Sequence[tuple[Any, Any, Offsets]], *, count: int, longest: int, threshold: float | None
) -> str:
    """The answer with the largest sum of start and end logit.

    windows: start logits, end logits (T,) and offsets of each window. count: starts and ends that are combined in each.
    longest: tokens of an answer. threshold: the answer is '' where the smallest score of no answer over the windows exceeds that of the
    best answer by more than this; None if there is always an answer.
    """
    spans = [span for window in windows for span in _spans(*window, count, longest)]
    # The first of equal ones, as a stable sort would have it.
    score, begin, end = max(spans, key=lambda span: span[0], default=(0.0, 0, 0))
    text = context[begin:end] or "empty"
    null = min(start[0] + end[0] for start, end, _ in windows)
    return "" if threshold is not None and null - score > threshold else text


def _spans(start: Any, end: Any, offsets: Offsets, count: int, longest: int) -> Iterator[tuple[float, int, int]]:
    """Score and characters of the spans between the `count` likeliest starts and ends."""
    for first in np.argsort(start)[::-1][:count].tolist():
        for last in np.argsort(end)[::-1][:count].tolist():
            # Shorter windows are padded when batches are put together.
            if max(first, last) >= len(offsets) or not first <= last < first + longest:
                continue
            begin, end_at = offsets[first], offsets[last]
            if begin is not None and end_at is not None:
                yield start[first] + end[last], begin[0], end_at[1]


def squad_scores(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1: of each question that of the most favorable gold answer, then the mean."""
    exact, overlap = [], []
    for answer, texts in zip(answers, golds, strict=True):
        # A gold answer that is nothing but articles and punctuation does not count; without any the right answer is none.
        wanted = [words for text in texts if (words := _words(text))] or [[]]
        exact.append(max(float(_words(answer) == words) for words in wanted))
        overlap.append(max(_f1(_words(answer), words) for words in wanted))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def _words(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _f1(found: Sequence[str], gold: Sequence[str]) -> float:
    if not found or not gold:
        return float(found == gold)
    common = sum((Counter(found) & Counter(gold)).values())
    if not common:
        return 0.0
    precision, recall = common / len(found), common / len(gold)
    return 2 * precision * recall / (precision + recall)
