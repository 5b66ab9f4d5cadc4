"""Token classification: a tag for each word of a sentence, as for named entities, chunks or parts of speech.

{"tokens": ["Anna", "lives", "in", "New", "York"], "tags": ["B-PER", "O", "O", "B-LOC", "I-LOC"]}     scheme: IOB2 (see parts/bio.py)
{"tokens": "Anna lives in New York", "tags": "PROPN VERB ADP PROPN PROPN"}                            scheme: none
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ftkit.methods.base import Default
from ftkit.metrics import sequence_labeling
from ftkit.metrics.base import MetricSpec
from ftkit.metrics.interchange import ExternalMetric
from ftkit.metrics.intervals import headline_intervals
from ftkit.recipe.schema import Auto, Strict
from ftkit.tasks.base import Batch, Column, Features, Head, Prediction, Row, RowError, Rows, Task
from ftkit.tasks.parts.bio import IGNORED, PLAIN, Entity, Tags, entities, pairs_of, read
from ftkit.tasks.parts.lengths import beyond_positions, longest_input
from ftkit.tasks.parts.metric_choice import MetricChoice
from ftkit.tasks.parts.profiles import CERTAIN, Profile, Recognized, by_names
from ftkit.tasks.parts.texts import pad_inputs, shown_tokens, spread
from ftkit.tasks.parts.words import (
    Sentence,
    Window,
    at_spaces,
    at_word_breaks,
    check_words,
    of_words,
    tokenize_sentences,
    whole_sentence,
)

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from ftkit.models.facts import ModelFacts

_ENTITY_METRICS = ["f1", "precision", "recall", "f1_macro", "accuracy"]
_PLAIN_METRICS = ["accuracy", "f1_macro"]
_ROWS_AT_A_TIME = 1000
"""Rows tokenized in one call."""


class Options(Strict):
    """Options of token classification."""

    scheme: Literal["auto", "IOB1", "IOB2", "BIOES", "IO", "none"] = Field(
        "auto",
        description="How tags mark entities; BIOES is also BILOU. auto: found out from the prefixes of the training rows' tags. "
        "none: plain tags such as parts of speech.",
    )
    on_invalid: Literal["error", "repair"] = Field(
        "error", description="Sequences that break the scheme's rules, such as I- after O. repair: read them as seqeval does."
    )
    labels: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="All tags as the data writes them, in the order of their ids. Default: those of the training rows, sorted.",
    )
    labeling: Literal["first", "last", "all"] | Auto = Field(
        "auto",
        description="Pieces of a word that are supervised; all: the first as tagged, the rest as inside. A word's tag is read off its "
        "first piece, under `last` off its last one. auto: last for decoders, else first.",
    )
    max_length: Annotated[int, Field(ge=8)] | Auto = Field(
        "auto",
        description="Longest window in tokens; longer sentences are cut into several. auto: what the model takes, at most 512.",
    )
    overlap: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto", description="Tokens that neighboring windows share. auto: a quarter of `max_length`."
    )
    word_split: Literal["spaces", "unicode"] | Auto = Field(
        "auto",
        description="Where a text without tags is divided into words. unicode: at spaces and around punctuation. auto: spaces if the "
        "training rows are texts, unicode if they are lists of words.",
    )
    metrics: Annotated[list[str | ExternalMetric], Field(min_length=1)] | Auto = Field(
        "auto", description="Metrics to report, the one that picks the best checkpoint first. auto: the usual ones."
    )


class TokenClassification(Task):
    """A tag for each word.

    The words are joined by one space and tokenized as a text, as in pretraining; pieces find their words by their characters. So
    byte-level tokenizers need no `add_prefix_space`, and every word has a place in exactly one window, the one with most context.
    Predicted I- after O or after another type begins an entity, in metrics and in what `present` shows (seqeval's default, conlleval).
    The metric that picks the best checkpoint: micro F1 of entities; accuracy for plain tags.
    """

    name = "token-classification"
    summary = "A tag for each word: named entities, chunks, parts of speech."
    model_kinds = frozenset({"encoder", "decoder"})
    pipeline_tag = "token-classification"
    Options = Options
    supports_label_smoothing = True

    @classmethod
    def recognize(cls, data: Mapping[str, Profile]) -> Recognized | None:
        """A list of words and a list of tags."""
        return by_names(cls(cls.Options()), data, {"tokens": ["list"], "tags": ["list"]}, strength=CERTAIN)

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        self._tags = Tags(self.options.scheme, self.options.labels, repair=self.options.on_invalid == "repair")
        self._spaces = self.options.word_split == "spaces"
        usual = _PLAIN_METRICS if self.options.scheme == PLAIN else _ENTITY_METRICS
        self._metrics = MetricChoice(sequence_labeling.METRICS, usual if self.options.metrics == "auto" else self.options.metrics)

    # --- what it needs -------------------------------------------------------------------------------------------

    def columns(self) -> Mapping[str, Column]:
        """Words and tags."""
        return {
            "tokens": Column(
                summary="The words: a list, or a text with spaces between them.", names=("tokens", "words", "sentence", "text")
            ),
            "tags": Column(
                summary="The tag of each word: a list, or a text with spaces between them.",
                target=True,
                names=("tags", "ner_tags", "labels", "ner", "pos_tags", "upos", "chunk_tags", "label"),
            ),
        }

    def check_options(self) -> str:
        """Options that contradict each other, and unknown metrics."""
        options, found = self.options, self._tags.problems()
        if isinstance(options.overlap, int) and isinstance(options.max_length, int) and 2 * options.overlap > options.max_length:
            found.append(f"overlap: {options.overlap} is more than half of max_length, {options.max_length}")
        return "; ".join([*found, *self._metrics.problems()])

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        """`task.max_length`, `task.overlap`, `task.labeling` and `task.metrics`."""
        longest = longest_input(facts, 512)
        length = longest.value if self.options.max_length == "auto" else self.options.max_length
        plain = self.options.scheme == PLAIN
        causal = facts.kind == "decoder"
        return {
            "task.max_length": longest,
            "task.overlap": Default(value=length // 4, source="a quarter of task.max_length"),
            "task.labeling": Default(
                value="last" if causal else "first",
                source="a decoder has read a whole word only at its last piece"
                if causal
                else "BERT (Devlin et al. 2019), section 5.3",
            ),
            "task.metrics": Default(
                value=_PLAIN_METRICS if plain else _ENTITY_METRICS, source=f"the usual metrics of {'tags' if plain else 'entities'}"
            ),
        }

    def refusal(self, facts: ModelFacts) -> str:
        """A `max_length` that the model's positions do not reach."""
        return beyond_positions(facts, {"max_length": self.options.max_length})

    def check_row(self, row: Row) -> None:
        """Raises RowError for sentences without words, words that are not text, and tags that are not one for each word."""
        check_words(row)
        if "tags" not in row:
            return
        tags, words = self._tags.read(row), len(self._sentence(row).spans)
        if len(tags) != words:
            hint = "A text with tags is divided at spaces" if isinstance(row["tokens"], str) else "Give each word one tag"
            raise RowError("tags", f"{len(tags)} tags for {words} words", hint)

    def _sentence(self, row: Row) -> Sentence:
        value = row["tokens"]
        if not isinstance(value, str):
            return of_words(value)
        return at_spaces(value) if self._spaces or row.get("tags") is not None else at_word_breaks(value)

    # --- what it learns from the training rows -------------------------------------------------------------------

    def learn(self, rows: Iterable[Row]) -> None:
        """Freezes the scheme, the tags and how texts are divided; loads metric scripts, so that a broken one costs no training.

        Raises DataError if there is nothing to tell apart.
        """
        self._metrics.load(self.allow_code)
        pairs: Counter[tuple[str, str]] = Counter()
        texts = True
        for row in rows:
            pairs.update(pairs_of(self._tags.read(row)))
            texts = texts and isinstance(row["tokens"], str)
        self._spaces = texts if self.options.word_split == "auto" else self._spaces
        self._tags.learn(pairs)

    def check_learned(self, row: Row) -> None:
        """Raises RowError for tags that were not learned, and for sequences that break the rules of the scheme."""
        if row.get("tags") is not None:
            self._gold(row)

    def _gold(self, row: Row) -> list[str]:
        """The row's tags as IOB2, or plain tags. Raises RowError."""
        return self._tags.convert(row, self._sentence(row).words)

    def state(self) -> dict[str, Any]:
        """`labels` (names by id), `scheme` and `spaces` (whether texts are divided at spaces)."""
        return {"labels": self._tags.names, "scheme": self._tags.scheme, "spaces": self._spaces}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._tags.fix(state["labels"], state["scheme"])
        self._spaces = bool(state["spaces"])

    def describe(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Rows, words, the scheme, how many sequences were repaired, and the distribution of entity types or plain tags."""
        words: list[int] = []
        counts: Counter[str] = Counter()
        repaired = 0
        for row in rows:
            words.append(len(self._sentence(row).spans))
            if row.get("tags") is not None:
                counts.update(self._tags.kinds_in(self._gold(row)))
                repaired += not self._tags.is_valid(row)
        facts = {"rows": len(words), "words": spread(words), "scheme": self._tags.scheme}
        facts["labels"] = {kind: counts[kind] for kind in self._tags.kinds}
        return {**facts, "repaired_rows": repaired} if self.options.on_invalid == "repair" else facts

    # --- tensors -------------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """A token classification head with one output a tag."""
        names = self._tags.names
        config = {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": dict(self._tags.ids)}
        return Head(auto_class="AutoModelForTokenClassification", peft_task_type="TOKEN_CLS", config=config)

    def encode(self, rows: Sequence[Row], processor: Any, *, training: bool = False) -> list[Features]:
        """A feature for each window: `input_ids`, `token_type_ids` (where the model has them), `words` (numbers of the words that are
        read here) and `positions` (where), `word_count` (of the whole sentence), `labels` (of each piece, where the row has tags),
        `length`, `row`, `truncated`."""
        if "auto" in (self.options.max_length, self.options.overlap, self.options.labeling):
            raise ValueError("max_length, overlap or labeling is still `auto`: fill it from defaults()")
        pending = iter(rows)
        features: list[list[Features]] = []
        while chunk := list(islice(pending, _ROWS_AT_A_TIME)):
            sentences = [self._sentence(row) for row in chunk]
            windows = tokenize_sentences(sentences, processor, self.options.max_length, self.options.overlap)
            for number, row in enumerate(chunk, start=len(features)):
                features.append(list(self._features(number, row, next(windows))))
        return list(chain.from_iterable(features))

    def _features(self, number: int, row: Row, windows: Sequence[Window]) -> Iterator[Features]:
        gold = self._gold(row) if row.get("tags") is not None else None
        for window in windows:
            feature: Features = {"input_ids": window.ids, "words": window.words}
            if window.types is not None:
                feature["token_type_ids"] = window.types
            feature["positions"] = [end - 1 if self.options.labeling == "last" else start for start, end in window.spans]
            feature["word_count"] = sum(len(other.words) for other in windows)
            if gold is not None:
                feature["labels"] = [IGNORED] * len(window.ids)
                for word, (start, end) in zip(window.words, window.spans, strict=True):
                    feature["labels"][start:end] = self._tags.piece_labels(gold[word], end - start, self.options.labeling)
            yield {**feature, "length": len(window.ids), "row": number, "truncated": window.cut}

    def collate(self, features: Sequence[Features], processor: Any, *, training: bool = False) -> Batch:
        """`input_ids`, `attention_mask`, `token_type_ids`: int64 (B, T), padded on the right; `labels`, where all have them: int64 (B, T),
        -100 where a piece is not supervised; `word_row`, `word_position`: int64 (W,), where the W words of the batch are read;
        `parts`: what predictions keep of each feature; `example`: int64 (B,)."""
        import torch

        batch = pad_inputs(features, processor)
        if all("labels" in item for item in features):
            batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
            for index, item in enumerate(features):
                batch["labels"][index, : int(item["length"])] = torch.as_tensor(item["labels"])
        batch["word_row"] = torch.tensor([index for index, item in enumerate(features) for _ in item["positions"]])
        batch["word_position"] = torch.tensor([position for item in features for position in item["positions"]])
        batch["parts"] = [{name: item[name] for name in ("example", "words", "word_count")} for item in features]
        batch["example"] = torch.tensor([int(item["example"]) for item in features])
        return batch

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """What the forward pass takes."""
        return ("input_ids", "attention_mask", "token_type_ids")

    def target_count(self, batch: Batch) -> int:
        """Supervised pieces."""
        return int((batch["labels"] != IGNORED).sum()) if "labels" in batch else 0

    def loss(self, outputs: Any, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy, summed over supervised pieces. Divided by `target_count` it is transformers' own loss."""
        from torch.nn import functional

        places = batch["labels"] != IGNORED
        logits = _logits(outputs, batch)[places].float()
        return functional.cross_entropy(logits, batch["labels"][places], reduction="sum", label_smoothing=label_smoothing)

    # --- results -------------------------------------------------------------------------------------------------

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """`example`, and for the words that the feature is to read: `words` (their numbers), `labels` (int64, ids), `scores` (float32,
        probabilities of these); `word_count` of the whole sentence."""
        import numpy as np

        logits = _logits(outputs, batch)[batch["word_row"], batch["word_position"]].float()
        best = logits.softmax(-1).max(-1)
        scores, labels = best.values.detach().cpu().numpy(), best.indices.cpu().numpy()
        ends = np.cumsum([len(part["words"]) for part in batch["parts"]])[:-1]
        parts = zip(batch["parts"], np.split(labels, ends), np.split(scores, ends), strict=True)
        return [{**part, "labels": ids, "scores": found} for part, ids, found in parts]

    def combine(self, parts: Sequence[Prediction]) -> Prediction:
        """`example`, and `labels` (int64 (words,)) and `scores` (float32 (words,)) of the whole sentence."""
        return whole_sentence(parts)

    def metrics(self) -> Sequence[MetricSpec]:
        """Those of the `metrics` option in its order, then the loss."""
        return self._metrics.specs()

    def _arrays(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, ndarray]:
        """`references` and `predictions` as the metric family takes them: every plain tag is an entity of one word and of its type."""
        prefix = "B-" if self._tags.plain else ""
        references = [[prefix + tag for tag in self._gold(row)] for row in rows]
        predicted = [[prefix + self._tags.names[label] for label in item["labels"]] for item in predictions]
        return {"references": sequence_labeling.as_array(references), "predictions": sequence_labeling.as_array(predicted)}

    def score(self, predictions: Sequence[Prediction], rows: Rows, names: Sequence[str] | None = None) -> dict[str, Any]:
        """All metrics but the loss. All are None if any prediction is not a finite number."""
        arrays = self._arrays(predictions, rows)
        if not _finite(predictions):
            return dict.fromkeys(
                spec.name for spec in self.metrics() if spec.name != "loss" and (names is None or spec.name in names)
            )
        return self._metrics.score(arrays, names, allow_code=self.allow_code)

    def intervals(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, tuple[float, float]]:
        """Of the headline metrics over sentences, where every prediction is a finite number."""
        if not _finite(predictions):
            return {}
        return headline_intervals(self.metrics(), self._arrays(predictions, rows), sequence_labeling.RESAMPLED)

    def details(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, Any]:
        """`types` (`labels` for plain tags): precision, recall, F1 and support of each that occurs."""
        table = sequence_labeling.per_type(**self._arrays(predictions, rows))
        if not table:
            return {}
        return {"labels": [{"label": entry.pop("type"), **entry} for entry in table]} if self._tags.plain else {"types": table}

    def present(self, prediction: Prediction, row: Row) -> dict[str, Any]:
        """`tokens` and `tags` (valid IOB2), and `entities`: type, text, characters [start, end) of the text (of the words joined by one
        space), words [word_start, word_end), and as score the mean probability of their tags. For plain tags a score for each word."""
        sentence = self._sentence(row)
        tags = [self._tags.names[label] for label in prediction["labels"]]
        scores = [float(score) for score in prediction["scores"]]
        if self._tags.plain:
            return {"tokens": sentence.words, "tags": tags, "scores": scores}
        found = [_shown_entity(entity, sentence, scores) for entity in entities(tags)]
        return {"entities": found, "tokens": sentence.words, "tags": read(tags, "IOB2").tags}

    def inspect(self, features: Features, processor: Any) -> list[tuple[str, str]]:
        """The tokens with the tags that they are to get, then the words that are read here, where there are several windows."""
        shown_pairs = shown_tokens({**features, "truncated": False}, processor)
        for position, label in enumerate(features.get("labels", ())):
            if label != IGNORED:
                shown_pairs[position] = (shown_pairs[position][0], self._tags.names[label])
        words, count = features["words"], int(features["word_count"])
        if len(words) < count:
            shown_pairs.append(("", f"a window: words {words[0] + 1} to {words[-1] + 1} of {count} are read here"))
        if features["truncated"]:
            shown_pairs.append(("", "a word of more than half a window was cut"))
        return shown_pairs


def _logits(outputs: Any, batch: Batch) -> Tensor:
    """(B, T, labels): without the positions that virtual tokens (prompt tuning) put in front."""
    return outputs.logits[:, -batch["input_ids"].shape[1] :]


def _shown_entity(entity: Entity, sentence: Sentence, scores: Sequence[float]) -> dict[str, Any]:
    kind, first, end = entity
    places = sentence.spans[first][0], sentence.spans[end - 1][1]
    where = {"start": places[0], "end": places[1], "word_start": first, "word_end": end}
    return {"type": kind, "text": sentence.text[slice(*places)], **where, "score": sum(scores[first:end]) / (end - first)}


def _finite(predictions: Sequence[Prediction]) -> bool:
    import numpy as np

    return all(bool(np.isfinite(item["scores"]).all()) for item in predictions)
