"""Text classification: one label, any number of labels, or a number for a text or a pair of texts.

{"text": "The plot is thin.", "label": "negative"}                    problem_type: single_label
{"text": "Goal in the last minute!", "label": ["sports", "news"]}     problem_type: multi_label
{"text": "A man runs.", "text_pair": "Someone moves.", "label": 4.2}  problem_type: regression
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ftkit.errors import DataError, Problem
from ftkit.methods.base import Default
from ftkit.recipe.schema import Auto, Strict
from ftkit.tasks.base import Batch, Column, Features, Head, Row, RowError
from ftkit.tasks.parts.label_results import LabelOptions, LabelTask
from ftkit.tasks.parts.lengths import beyond_positions, longest_input
from ftkit.tasks.parts.long_texts import shorten
from ftkit.tasks.parts.profiles import LIKELY, POSSIBLE, Profile, Recognized, guess_columns, listed, named_columns
from ftkit.tasks.parts.texts import check_text, pad_inputs, shown_tokens, spread, tokenize

if TYPE_CHECKING:
    from ftkit.models.facts import ModelFacts

_ROWS_AT_A_TIME = 1000
"""Rows tokenized in one call."""


class Options(LabelOptions):
    """Options of text classification."""

    max_length: Annotated[int, Field(ge=8)] | Auto = Field(
        "auto", description="Longest input in tokens, see `long_texts`. auto: what the model takes, at most 512."
    )
    long_texts: Literal["cut", "head_tail", "windows"] = Field(
        "cut",
        description="What happens to longer texts. cut: the end is cut off. head_tail: the middle is left out (Sun et al. 2019). windows: "
        "each window is a training example of its own, and the logits of a text's windows are averaged; single texts only.",
    )
    window_stride: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="Tokens from one window to the next. auto: half of `max_length`."
    )


class TextClassification(LabelTask):
    """Text classification and regression.

    Labels are text, whole numbers or booleans in the data and always text in ftkit; their order is that of `labels`, else
    alphabetical (numerical if all are whole numbers), never that of the rows. Under multi_label a row has a list of labels, a text
    to split at `label_separator`, or, where `data.columns` maps `label` to a list of 0/1 columns, a list of 0/1 as long as `labels`
    (required then, in the order of the columns; labels named `0` or `1` cannot be written so).
    Texts come in pairs if any training row has a `text_pair`; then every row must have one.
    """

    name = "text-classification"
    summary = "A label, several labels or a number for a text or a pair of texts."
    model_kinds = frozenset({"encoder", "decoder", "encoder-decoder"})
    pipeline_tag = "text-classification"
    Options = Options

    @classmethod
    def recognize(cls, data: Mapping[str, Profile]) -> Recognized | None:
        """A text, and labels or numbers."""
        columns, lacking = guess_columns(cls(cls.Options()), data)
        if lacking or not data[columns["text"]].is_text:
            return None
        label = data[columns["label"]]
        if not (label.like_label or label.numeric or label.kind == "list"):
            return None
        named = named_columns(cls(cls.Options()).columns(), data)
        strength = LIKELY if {"text", "label"} <= named.keys() else POSSIBLE
        return Recognized(strength=strength, reason=listed([columns["text"], columns["label"]]), columns=columns)

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        self._pair = False

    # --- what it needs -------------------------------------------------------------------------------------------

    def columns(self) -> Mapping[str, Column]:
        """Text, second text (needed once it is learned that there are pairs), label."""
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
                summary="The second text of a pair.",
                required=self._pair,
                names=("text_pair", "sentence2", "question2", "hypothesis"),
            ),
            "label": self._label_column(),
        }

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        """`task.max_length` and `task.metrics`."""
        longest = longest_input(facts, 512)
        return {
            "task.max_length": longest,
            "task.metrics": self._metric_default(),
            "task.window_stride": Default(
                value=self._half(longest.value), source="half of task.max_length: every word is once near a middle"
            ),
        }

    def _half(self, longest: int) -> int:
        return max(1, (longest if self.options.max_length == "auto" else self.options.max_length) // 2)

    def refusal(self, facts: ModelFacts) -> str:
        """A `max_length` that the model's positions do not reach."""
        return beyond_positions(facts, {"max_length": self.options.max_length})

    def check_row(self, row: Row) -> None:
        """Raises RowError for empty texts and labels that do not fit `problem_type` or `labels`."""
        check_text(row, "text")
        if row.get("text_pair") is not None:
            check_text(row, "text_pair")
        self._check_label(row)

    def learn(self, rows: Iterable[Row]) -> None:
        """Freezes the label names and whether texts come in pairs; loads metric scripts, so that a broken one costs no training.

        Raises DataError if there is nothing to tell apart.
        """
        self._pair = False
        super().learn(rows)
        if self._pair and self.options.long_texts != "cut":
            message = f"long_texts: {self.options.long_texts} is for single texts, and these rows have pairs"
            raise DataError(Problem(message=message, key="task.long_texts", hint="Use `long_texts: cut`"))

    def _note_input(self, row: Row) -> None:
        self._pair = self._pair or row.get("text_pair") is not None

    def check_learned(self, row: Row) -> None:
        """Raises RowError for a label that was not learned, and for pairs and single texts in one run."""
        paired = row.get("text_pair") is not None
        if paired != self._pair:
            message = "has a second text, but the training rows have none" if paired else "the second text is missing"
            raise RowError("text_pair", message, "Give every row of every split a pair, or none")
        super().check_learned(row)

    def state(self) -> dict[str, Any]:
        """`labels` (names by id) and `pair`."""
        return {**super().state(), "pair": self._pair}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        super().restore(state)
        self._pair = bool(state["pair"])

    def _describe_inputs(self, rows: Iterable[Row]) -> dict[str, Any]:
        characters = [len(row["text"]) + len(row.get("text_pair") or "") for row in rows]
        return {"rows": len(characters), "characters": spread(characters)}

    # --- tensors -------------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """A sequence classification head with one output a label, or one for a number."""
        return self._head("AutoModelForSequenceClassification", "SEQ_CLS")

    def encode(self, rows: Sequence[Row], processor: Any, *, training: bool = False) -> list[Features]:
        """`input_ids`, `token_type_ids` (where the model has them), `label` (where the row has one), `length`, `row`, `truncated`.

        Raises RowError for rows that contradict what was learned.
        """
        if self.options.max_length == "auto":
            raise ValueError("max_length is still `auto`: fill it from defaults()")
        features: list[Features] = []
        pending, start = iter(rows), 0
        while chunk := list(islice(pending, _ROWS_AT_A_TIME)):
            for row in chunk:
                self.check_learned(row)
            for item in self._pieces(chunk, processor):
                number = item["row"]
                features.append({**item, **self._label_features(chunk[number]), "row": start + number})
            start += len(chunk)
        return features

    def _pieces(self, rows: Sequence[Row], processor: Any) -> list[Features]:
        """Inputs of rows, each with its `row`."""
        texts, longest = [row["text"] for row in rows], self.options.max_length
        if self.options.long_texts != "cut":
            stride = int(self.options.window_stride) if self.options.long_texts == "windows" else None
            return shorten(texts, processor, longest, stride=stride)
        pairs = [row["text_pair"] for row in rows] if self._pair else None
        return [{**item, "row": number} for number, item in enumerate(tokenize(texts, pairs, processor, longest))]

    def collate(self, features: Sequence[Features], processor: Any, *, training: bool = False) -> Batch:
        """`input_ids`, `attention_mask`, `token_type_ids`: int64 (B, T), padded on the right; `labels`, where all have one: int64 (B,),
        float32 (B, labels), or float32 (B,) for numbers; `example`: int64 (B,)."""
        return {**pad_inputs(features, processor), **self._label_tensors(features)}

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """What the forward pass takes."""
        return ("input_ids", "attention_mask", "token_type_ids")

    def inspect(self, features: Features, processor: Any) -> list[tuple[str, str]]:
        """The tokens, then the cut and the label as notes without a token."""
        return [*shown_tokens(features, processor), *self._shown_label(features)]
