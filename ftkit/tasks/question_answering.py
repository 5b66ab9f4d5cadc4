"""Extractive question answering: the words of a context that answer a question, or that it does not answer it.

{"question": "Who came?", "context": "Then Anna came.", "answers": {"text": ["Anna"], "answer_start": [5]}}
{"question": "Who left?", "context": "Then Anna came.", "answers": {"text": [], "answer_start": []}}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ftkit.errors import DataError, ModelError, Problem
from ftkit.methods.base import Default
from ftkit.metrics import question_answering as compared
from ftkit.metrics.base import MetricSpec
from ftkit.metrics.interchange import ExternalMetric
from ftkit.metrics.intervals import headline_intervals
from ftkit.recipe.schema import Auto, Strict
from ftkit.tasks.base import Batch, Calibration, Column, Features, Head, Prediction, Row, RowError, Rows, Task
from ftkit.tasks.parts import question_columns as asked
from ftkit.tasks.parts.lengths import beyond_positions, longest_input
from ftkit.tasks.parts.metric_choice import MetricChoice
from ftkit.tasks.parts.profiles import CERTAIN, Profile, Recognized, by_names
from ftkit.tasks.parts.spans import (
    Passage,
    best_text,
    check_answers,
    finite_spans,
    merged_spans,
    no_answer_threshold,
    position_loss,
    read_answers,
    shown_spans,
    tokenize_passages,
    tokens_of,
    window_spans,
    windows_of,
)
from ftkit.tasks.parts.texts import check_text, pad_inputs, shown_tokens, spread
from ftkit.tasks.parts.tokens import gives_offsets

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from ftkit.models.facts import ModelFacts

_ROWS_AT_A_TIME = 1000
"""Rows tokenized in one call."""

_THRESHOLD = "no_answer_threshold"


class Options(Strict):
    """Options of extractive question answering."""

    max_length: Annotated[int, Field(ge=16)] | Auto = Field(
        "auto",
        description="Longest window of question and context in tokens; longer contexts are cut into several. auto: what the model "
        "takes, at most 384.",
    )
    stride: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto",
        description="Tokens of the context that neighboring windows share; at most half of what the question leaves. auto: a third of "
        "`max_length`, at most 128.",
    )
    max_answer_length: int = Field(30, ge=1, description="Longest answer that is predicted, in tokens.")
    n_best: int = Field(20, ge=1, le=1000, description="Answers that are compared between windows; `score` is a share among them.")
    alternatives: int = Field(
        0, ge=0, le=1000, description="Best answers that predictions list under `n_best`, besides the chosen one."
    )
    no_answer: bool | Auto = Field(
        "auto", description="Whether questions may have no answer (SQuAD 2.0). auto: if a training row has none."
    )
    no_answer_threshold: float | Auto = Field(
        "auto",
        description="No answer is predicted where its score exceeds that of the best answer by more than this. auto: best F1 on the "
        "validation rows; 0 during training and without such rows.",
    )
    metrics: Annotated[list[str | ExternalMetric], Field(min_length=1)] | Auto = Field(
        "auto", description="Metrics to report, the one that picks the best checkpoint first. auto: the usual ones."
    )


class QuestionAnswering(Task):
    """The start and the end of the answer in the context (Devlin et al. 2019, sections 4.2 and 4.3).

    Answers are characters of the context, never tokens put together again. Where windows overlap, the best span over all of them
    counts; `no answer` scores as in the window where it scores least, because an answer in any window is an answer. The first of
    several acceptable answers is learned, all of them count in metrics. The metric that picks the best checkpoint is F1: exact match
    moves in steps of whole questions and ranks checkpoints with more noise.
    """

    name = "question-answering"
    summary = "The part of a context that answers a question, or that there is none."
    model_kinds = frozenset({"encoder", "decoder", "encoder-decoder"})
    Options = Options
    supports_label_smoothing = True
    needs_offsets = "question-answering finds answers by their characters"
    measures_share = True
    pipeline_tag = "question-answering"
    group_column = "context"
    prediction_options = frozenset({"alternatives"})
    left_out = "no window holds the whole answer (a larger task.stride or task.max_length helps)"

    @classmethod
    def recognize(cls, data: Mapping[str, Profile]) -> Recognized | None:
        """A question, a context and answers."""
        kinds = {"question": ["text"], "context": ["text"], "answers": ["mapping", "records", "text"]}
        return by_names(cls(cls.Options()), data, kinds, strength=CERTAIN)

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        self._no_answer = self.options.no_answer is True
        chosen = self._usual_metrics() if self.options.metrics == "auto" else self.options.metrics
        self._metrics = MetricChoice(compared.METRICS, chosen)

    def _usual_metrics(self) -> list[str]:
        return asked.ANSWER_METRICS if self.options.no_answer is False else asked.USUAL_METRICS

    # --- what it needs -------------------------------------------------------------------------------------------

    def columns(self) -> Mapping[str, Column]:
        """Question, context, answers, and where they begin if `answers` does not say."""
        return asked.QUESTION_COLUMNS

    def check_options(self) -> str:
        """Options that contradict each other, and unknown metrics."""
        options, found = self.options, []
        if isinstance(options.stride, int) and isinstance(options.max_length, int) and 2 * options.stride > options.max_length:
            found.append(f"stride: {options.stride} is more than half of max_length, {options.max_length}")
        if options.no_answer is False:
            if options.no_answer_threshold != "auto":
                found.append("no_answer_threshold: under `no_answer: false` every question gets an answer")
            chosen = [] if options.metrics == "auto" else options.metrics
            found += [
                f"metrics: {name} needs questions without an answer" for name in chosen if name == asked.NO_ANSWER_METRICS[-1]
            ]
        return "; ".join([*found, *self._metrics.problems()])

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        """`task.max_length`, `task.stride` and `task.metrics`."""
        longest = longest_input(facts, 384, "Devlin et al. 2019")
        length = longest.value if self.options.max_length == "auto" else self.options.max_length
        return {
            "task.max_length": longest,
            "task.stride": Default(value=min(128, length // 3), source="a third of task.max_length, at most 128"),
            "task.metrics": Default(value=self._usual_metrics(), source="those of SQuAD"),
        }

    def refusal(self, facts: ModelFacts) -> str:
        """A `max_length` that the model's positions do not reach."""
        return beyond_positions(facts, {"max_length": self.options.max_length})

    def check_row(self, row: Row) -> None:
        """Raises RowError for a question or context without text, and for answers that do not stand in the context."""
        check_text(row, "question")
        check_text(row, "context")
        if "answers" in row:
            check_answers(row)
            if self.options.no_answer is False:
                self._check_answered(row, "`no_answer: false` says that every question has one")

    def _check_answered(self, row: Row, reason: str) -> None:
        if not read_answers(row):
            raise RowError("answers", f"the question has no answer, but {reason}", "Set task.no_answer to true, or remove the row")

    # --- what it learns from the training rows -------------------------------------------------------------------

    def learn(self, rows: Iterable[Row]) -> None:
        """Freezes whether questions may have no answer; loads metric scripts, so that a broken one costs no training. Raises DataError if
        no training row has an answer, or if none lacks one and the recipe counts on a metric of such rows."""
        self._metrics.load(self.allow_code)
        answered = [bool(read_answers(row)) for row in rows]
        if not any(answered):
            hint = "Is `answers` mapped to the right column under data.columns?"
            raise DataError(Problem(message="no training row has an answer", key="answers", hint=hint))
        self._no_answer = not all(answered) if self.options.no_answer == "auto" else self.options.no_answer
        asked.check_counted_on(self.counted_on, no_answer=self._no_answer)

    def check_learned(self, row: Row) -> None:
        """Raises RowError for a question without an answer where every training row has one."""
        if "answers" in row and not self._no_answer:
            self._check_answered(row, "every training row has one")

    def state(self) -> dict[str, Any]:
        """`no_answer`: whether questions may have none."""
        return {"no_answer": self._no_answer}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._no_answer = bool(state["no_answer"])

    def describe(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Rows, different contexts, characters of questions, contexts and first answers, and rows without an answer."""
        lengths: dict[str, list[int]] = {"question": [], "context": [], "answer": []}
        contexts: set[int] = set()
        unanswered = 0
        for row in rows:
            contexts.add(hash(row["context"]))
            lengths["question"].append(len(row["question"]))
            lengths["context"].append(len(row["context"]))
            answers = read_answers(row) if "answers" in row else []
            lengths["answer"] += [len(text) for text, _ in answers[:1]]
            unanswered += "answers" in row and not answers
        facts = {"rows": len(lengths["question"]), "contexts": len(contexts), "rows_without_answer": unanswered}
        return {**facts, **{f"{name}_characters": spread(values) for name, values in lengths.items()}}

    # --- tensors -------------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """A span head: for each token a logit of being the first one of the answer, and one of being the last one."""
        names = ["start", "end"]
        config = {"num_labels": 2, "id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        return Head(auto_class="AutoModelForQuestionAnswering", peft_task_type=None, config=config)

    def encode(self, rows: Sequence[Row], processor: Any, *, training: bool = False) -> list[Features]:
        """A feature for each window: `input_ids`, `token_type_ids` (where the model has them), `context_at` (place of its first token of
        the context), `char_starts`, `char_ends` (characters of these tokens, equal where it can be no end of an answer), `null_at`,
        `window`, `windows` (its number, and how many the row has), `length`, `row`, `truncated` (the question lost its end), and where
        the row has `answers`: `start`, `end` (first and last token of the answer; `null_at` where the window does not hold it whole).

        A training row whose answer no window holds whole gives no feature.
        Raises ModelError for a tokenizer that does not say which characters its tokens are.
        """
        if "auto" in (self.options.max_length, self.options.stride):
            raise ValueError("max_length or stride is still `auto`: fill it from defaults()")
        if not gives_offsets(processor):
            message = f"{type(processor).__name__} does not say which characters its tokens are; {self.needs_offsets}"
            raise ModelError(
                Problem(message=message, key="model.name", hint="Choose a model with a fast tokenizer (tokenizer.json)")
            )
        typed = "token_type_ids" in processor.model_input_names
        pending, number, features = iter(rows), 0, []
        while chunk := list(islice(pending, _ROWS_AT_A_TIME)):
            passages = tokenize_passages([(row["question"], row["context"]) for row in chunk], processor)
            for row, passage in zip(chunk, passages, strict=True):
                found = list(self._features(row, passage, typed))
                if not training or not read_answers(row) or any(item["start"] != item["null_at"] for item in found):
                    features.append([{**item, "row": number, "windows": len(found)} for item in found])
                number += 1
        return list(chain.from_iterable(features))

    def _features(self, row: Row, passage: Passage, typed: bool) -> Iterator[Features]:
        answers = read_answers(row) if "answers" in row else []
        gold = tokens_of(passage.spans, answers[0][1], answers[0][1] + len(answers[0][0])) if answers else None
        for number, window in enumerate(windows_of(passage, self.options.max_length, self.options.stride)):
            spans = passage.spans[window.first : window.last]
            feature: Features = {"input_ids": [token for token, _ in window.tokens]}
            if typed:
                feature["token_type_ids"] = [kind for _, kind in window.tokens]
            feature |= {"context_at": window.at, "char_starts": [a for a, _ in spans], "char_ends": [b for _, b in spans]}
            feature |= {"null_at": window.null, "window": number}
            if "answers" in row:
                whole = gold is not None and window.first <= gold[0] and gold[1] < window.last
                shift = window.at - window.first
                feature["start"], feature["end"] = (at + shift for at in gold) if whole and gold else (window.null, window.null)
            yield {**feature, "length": len(window.tokens), "truncated": window.cut}

    def collate(self, features: Sequence[Features], processor: Any, *, training: bool = False) -> Batch:
        """`input_ids`, `attention_mask`, `token_type_ids`: int64 (B, T), padded on the right; `char_starts`, `char_ends`: int64 (B, T),
        equal where no answer begins or ends; `null_at`: int64 (B,); `starts`, `ends`, where all have them: int64 (B,); `windows`: list
        (B,); `example`: int64 (B,)."""
        import torch

        batch = pad_inputs(features, processor)
        for name in ("char_starts", "char_ends"):
            batch[name] = torch.zeros_like(batch["input_ids"])
            for index, item in enumerate(features):
                at = int(item["context_at"])
                batch[name][index, at : at + len(item[name])] = torch.as_tensor(item[name], dtype=torch.int64)
        for name, key in (("null_at", "null_at"), ("example", "example"), ("starts", "start"), ("ends", "end")):
            if all(key in item for item in features):
                batch[name] = torch.tensor([int(item[key]) for item in features])
        batch["windows"] = [int(item["windows"]) for item in features]
        return batch

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """What the forward pass takes."""
        return ("input_ids", "attention_mask", "token_type_ids")

    def target_count(self, batch: Batch) -> int:
        """Windows."""
        return len(batch["starts"]) if "starts" in batch else 0

    def loss(self, outputs: Any, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean of the cross-entropies of start and end over the tokens of a window, summed over windows.

        Divided by `target_count` it is transformers' own loss, except that padding is no choice: it would make the loss of a window
        depend on its neighbors in the batch.
        """
        mask = batch["attention_mask"].bool()
        both = zip(_logits(outputs, batch), (batch["starts"], batch["ends"]), strict=True)
        start, end = (position_loss(logits, targets, mask, label_smoothing) for logits, targets in both)
        return (start + end) / 2

    # --- results -------------------------------------------------------------------------------------------------

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """`example`; of the best spans `starts`, `ends` (int64 (n,), characters) and `scores` (float32 (n,), sums of logits, best first);
        `null` (float, score of no answer in this window); `windows`."""
        longest, count = self.options.max_answer_length, self.options.n_best
        found = window_spans(*_logits(outputs, batch), batch, longest, count)
        about = zip(batch["example"].tolist(), batch["windows"], found, strict=True)
        return [{"example": example, "windows": windows, **spans} for example, windows, spans in about]

    def combine(self, parts: Sequence[Prediction]) -> Prediction:
        """The best spans over all windows (of equal characters the best one), and the smallest `null`."""
        example, windows = parts[0]["example"], parts[0]["windows"]
        if len(parts) != windows:
            raise RuntimeError(f"example {example}: {len(parts)} windows were predicted, it has {windows}")
        return {"example": example, **merged_spans(parts, self.options.n_best)}

    def metrics(self) -> Sequence[MetricSpec]:
        """Those of the `metrics` option in its order, then the loss."""
        return self._metrics.specs()

    def _threshold(self) -> float:
        wanted = self.options.no_answer_threshold
        return float(self.calibration.get(_THRESHOLD, 0.0) if wanted == "auto" else wanted)

    def _gives_none(self, prediction: Prediction) -> bool:
        """Whether the prediction is that there is no answer."""
        if not len(prediction["scores"]):
            return True
        return self._no_answer and bool(prediction["null"] - prediction["scores"][0] > self._threshold())

    def _arrays(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, ndarray]:
        """`references` and `predictions` as the metric family takes them."""
        import numpy as np

        references, found = [], []
        for prediction, row in zip(predictions, rows, strict=True):
            references.append([text for text, _ in read_answers(row)])
            found.append("" if self._gives_none(prediction) else best_text(prediction, row))
        return {"references": compared.as_array(references), "predictions": np.array(found, dtype=object)}

    def score(self, predictions: Sequence[Prediction], rows: Rows, names: Sequence[str] | None = None) -> dict[str, Any]:
        """All metrics but the loss. All are None if any prediction is not a finite number."""
        if not finite_spans(predictions):
            return dict.fromkeys(name for name in self._telling() if name != "loss" and (names is None or name in names))
        wanted = self._telling() if names is None else names
        return self._metrics.score(self._arrays(predictions, rows), wanted, allow_code=self.allow_code)

    def _telling(self) -> list[str]:
        """The chosen metrics; without the usual ones that say the same as others where every question has an answer."""
        return asked.telling([spec.name for spec in self.metrics()], no_answer=self._no_answer, counted_on=self.counted_on)

    def intervals(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, tuple[float, float]]:
        """Of the headline metrics over questions, where every prediction is a finite number."""
        if not finite_spans(predictions):
            return {}
        return headline_intervals(self.metrics(), self._arrays(predictions, rows), compared.RESAMPLED)

    def details(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, Any]:
        """`questions`: both metrics of those with and without an answer, where there may be none."""
        if not self._no_answer or not finite_spans(predictions):
            return {}
        return {"questions": compared.by_kind(**self._arrays(predictions, rows))}

    def calibrate(self, predictions: Sequence[Prediction], rows: Rows) -> Calibration:
        """`no_answer_threshold` with the best F1. Nothing if it is given, if there is always an answer, if a prediction is not a finite
        number, or if the rows do not hold questions of both kinds: then every threshold beyond all scores would be best."""
        if not self._no_answer or self.options.no_answer_threshold != "auto" or not finite_spans(predictions):
            return {}
        found = no_answer_threshold(predictions, rows)
        return {} if found is None else {_THRESHOLD: found}

    def present(self, prediction: Prediction, row: Row) -> dict[str, Any]:
        """`answer` ('' for none) with `start` and `end` (characters [start, end) of the context, null for none) and `score`, its
        probability among the `n_best` compared answers (no answer is one of them, where there may be none); where `alternatives` asks
        for some: `n_best`, the best of these."""
        found = shown_spans(prediction, row["context"], none=self._no_answer)
        gives_none = self._gives_none(prediction)
        chosen = next(entry for entry in found if (entry["start"] is None) == gives_none)
        count = self.options.alternatives
        return {**chosen, "n_best": found[:count]} if count else chosen

    def inspect(self, features: Features, processor: Any) -> list[tuple[str, str]]:
        """The tokens with the answer marked, or what stands for no answer; then the cut, and the number of the window."""
        pairs = shown_tokens({**features, "truncated": False}, processor)
        if "start" in features:
            note = "no answer here" if features["start"] == features["null_at"] else "answer"
            for at in range(int(features["start"]), int(features["end"]) + 1):
                pairs[at] = (pairs[at][0], note)
        if features["truncated"]:
            pairs.append(("", "the end of the question was cut"))
        if features["windows"] > 1:
            pairs.append(("", f"window {features['window'] + 1} of {features['windows']}"))
        return pairs


def _logits(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Start and end logits, float32 (B, T): without the positions that virtual tokens (prompt tuning) put in front."""
    length = batch["input_ids"].shape[1]
    return outputs.start_logits[:, -length:].float(), outputs.end_logits[:, -length:].float()
