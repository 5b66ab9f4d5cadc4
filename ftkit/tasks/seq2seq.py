"""Sequence to sequence: an encoder-decoder learns to write a text for a text (summaries, translations, any rewriting).

{"source": "The committee met on Monday and ...", "target": "Committee meets."}
{"source": "Guten Morgen!", "target": ["Good morning!", "Morning!"]}        several references: the first is learned
{"translation": {"de": "Guten Morgen!", "en": "Good morning!"}}             both columns are `translation`, with translation_keys
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ftkit.errors import ModelError, Problem
from ftkit.methods.base import Default
from ftkit.metrics import generated_text, language_modeling
from ftkit.metrics.base import LOSS, MetricSpec
from ftkit.metrics.interchange import ExternalMetric
from ftkit.metrics.intervals import headline_intervals
from ftkit.recipe.schema import Auto, Strict
from ftkit.tasks.base import Batch, Column, Features, Head, Prediction, Row, Rows
from ftkit.tasks.parts.generation import GenerationOptions
from ftkit.tasks.parts.lengths import beyond_positions, longest_input
from ftkit.tasks.parts.metric_choice import MetricChoice, finite
from ftkit.tasks.parts.profiles import Profile, Recognized
from ftkit.tasks.parts.target_texts import encode_targets, end_token, language_place, set_languages
from ftkit.tasks.parts.text_pairs import TextPairs, recognize_pairs
from ftkit.tasks.parts.texts import pad_inputs, shown_tokens, spread, tokenize
from ftkit.tasks.parts.written_text import WritesText

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import nn

    from ftkit.models.facts import ModelFacts

_LONGEST = 512
_ROWS_AT_A_TIME = 500
_SHOWN_EXAMPLES = 5
_OF_TOKENS = {name: language_modeling.METRICS[name] for name in ("perplexity", "token_accuracy")}
_AUTO_METRICS = {
    "summarization": ["loss", "perplexity", "rouge1", "rouge2", "rougeL", "rougeLsum"],
    "translation": ["loss", "perplexity", "bleu", "chrf"],
    "other": ["loss", "perplexity", "exact_match", "chrf"],
}


class Options(Strict):
    """Options of sequence-to-sequence tasks."""

    goal: Literal["summarization", "translation", "other"] = Field(
        "other", description="What the texts are; decides the usual metrics."
    )
    prefix: str = Field("", description="Put before each source text, as T5 wants it: `summarize: `.")
    source_language: str | None = Field(None, min_length=1, description="Code of a multilingual tokenizer (mBART, NLLB): `en_XX`.")
    target_language: str | None = Field(None, min_length=1, description="The same for the target.")
    translation_keys: Annotated[list[str], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="For data that holds both texts in one mapping, `{de: ..., en: ...}`: keys of the source and of the target. Map both "
        "columns to it: `columns: {source: translation, target: translation}`.",
    )
    max_source_length: Annotated[int, Field(ge=8)] | Auto = Field(
        "auto",
        description="Longest source in tokens, prefix included; the end of longer ones is cut off. auto: what the model takes, at "
        "most 512.",
    )
    max_target_length: Annotated[int, Field(ge=4)] | Auto = Field("auto", description="The same for targets.")
    generation: GenerationOptions = Field(
        default_factory=GenerationOptions,
        description="How texts are generated. max_new_tokens auto: the longest target of the training rows in tokens, and a tenth.",
    )
    metrics: Annotated[list[str | ExternalMetric], Field(min_length=1)] | Auto = Field(
        "auto",
        description="Metrics to report, the one that picks the best checkpoint first. auto: the loss, and the usual ones of `goal`.",
    )


class Seq2Seq(WritesText):
    """Text to text with an encoder-decoder.

    Training and the loss are teacher-forced: each target token is predicted from the source and the true tokens before it. The loss
    picks the best checkpoint unless `metrics` begins with another one, because it costs one forward pass a batch; metrics of
    generated text cost one a token. They are computed in evaluations during training only if one picks the checkpoint, and always in the
    final ones.
    Where an example has several references, the first is learned and counts for the loss; generated texts are scored against all.
    """

    name = "seq2seq"
    summary = "A text for a text, by an encoder-decoder: summaries, translations."
    model_kinds = frozenset({"encoder-decoder"})
    pretrained_head = True
    takes_pairs = True
    Options = Options

    @classmethod
    def recognize(cls, data: Mapping[str, Profile]) -> Recognized | None:
        """Two texts by their usual names, or one mapping of both."""
        return recognize_pairs(cls(cls.Options()), data)

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        chosen = _AUTO_METRICS[self.options.goal] if self.options.metrics == "auto" else self.options.metrics
        self._metrics = MetricChoice({**_OF_TOKENS, **generated_text.METRICS}, chosen)
        self._pairs = TextPairs(self.options.translation_keys)
        self.pipeline_tag = "text2text-generation" if self.options.goal == "other" else self.options.goal
        self._longest_target = 0
        self._start: int | None = None

    # --- what it needs -------------------------------------------------------------------------------------------

    def columns(self) -> Mapping[str, Column]:
        """Source and target."""
        sources = ("document", "article", "dialogue", "source_text", "src", "input", "text", "en")
        targets = (
            "summary",
            "summaries",
            "highlights",
            "abstract",
            "target_text",
            "tgt",
            "output",
            "translation",
            "de",
            "fr",
            "es",
        )
        return {
            "source": Column(summary="The text to read.", names=sources),
            "target": Column(summary="The text to write, or a list of references.", target=True, names=targets),
        }

    def check_row(self, row: Row) -> None:
        """Raises RowError for an empty source, and for a target that is neither text nor a list of texts."""
        self._pairs.check(row)

    def check_options(self) -> str:
        """Languages that come alone, and unknown metrics."""
        alone = (self.options.source_language is None) != (self.options.target_language is None)
        found = ["source_language and target_language: give both or none"] if alone else []
        return "; ".join([*found, *self._metrics.problems()])

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        """`task.max_source_length`, `task.max_target_length`, `task.metrics`."""
        length = longest_input(facts, _LONGEST)
        usual = Default(
            value=_AUTO_METRICS[self.options.goal], source=f"the loss and the usual metrics of goal: {self.options.goal}"
        )
        return {"task.max_source_length": length, "task.max_target_length": length, "task.metrics": usual}

    def refusal(self, facts: ModelFacts) -> str:
        """Lengths that the model's positions do not reach."""
        lengths = {
            "max_source_length": self.options.max_source_length,
            "max_target_length": self.options.max_target_length,
            "generation.max_new_tokens": self.options.generation.max_new_tokens,
            "generation.min_new_tokens": self.options.generation.min_new_tokens,
        }
        return beyond_positions(facts, lengths)

    # --- what it learns ------------------------------------------------------------------------------------------

    def learn(self, rows: Iterable[Row]) -> None:
        """Loads metric scripts, so that a broken one costs no training."""
        self._metrics.load(self.allow_code)

    def learn_encoded(self, numbers: Callable[[str], ndarray]) -> None:
        """Freezes the length of the longest training target."""
        self._longest_target = int(numbers("target_length").max(initial=0))

    def state(self) -> dict[str, Any]:
        """`longest_target`: tokens of the longest training target, special ones included; 0 before training rows are encoded."""
        return {"longest_target": self._longest_target}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._longest_target = int(state["longest_target"])

    def describe(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Characters of sources and targets, references of a row, and how many tokens are generated at most."""
        sources, targets, references = [], [], []
        for row in rows:
            sources.append(len(self._pairs.source(row)))
            if texts := self._pairs.references(row):
                targets.append(len(texts[0]))
                references.append(len(texts))
        facts = {"rows": len(sources), "source_characters": spread(sources), "target_characters": spread(targets)}
        return {**facts, "references": spread(references), "max_new_tokens": self._max_new_tokens()}

    def _max_new_tokens(self) -> int:
        """Never more than the longest target that the training rows may have, for which the model has positions."""
        if self.options.generation.max_new_tokens != "auto":
            return int(self.options.generation.max_new_tokens)
        longest = int(self.options.max_target_length)
        wanted = self._longest_target + max(4, self._longest_target // 10) if self._longest_target else longest
        return max(min(wanted, longest), self.options.generation.min_new_tokens or 1)

    # --- tensors -------------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """The pretrained output layer."""
        return Head(auto_class="AutoModelForSeq2SeqLM", peft_task_type="SEQ_2_SEQ_LM", pretrained=self.pretrained_head)

    def encode(self, rows: Sequence[Row], processor: Any, *, training: bool = False) -> list[Features]:
        """`input_ids`, where there is a target `target_ids` and `target_length`, `length` (of both together), `source_cut`,
        `truncated` (either was cut)."""
        if "auto" in (self.options.max_source_length, self.options.max_target_length):
            raise ValueError("max_source_length or max_target_length is still `auto`: fill it from defaults()")
        set_languages(processor, self.options.source_language, self.options.target_language)
        iterator = iter(rows)
        blocks = iter(lambda: list(islice(iterator, _ROWS_AT_A_TIME)), [])
        return [feature for block in blocks for feature in self._encode_block(block, processor)]

    def _encode_block(self, rows: Sequence[Row], processor: Any) -> list[Features]:
        texts = [self.options.prefix + self._pairs.source(row) for row in rows]
        sources = tokenize(texts, None, processor, self.options.max_source_length)
        features: list[Features] = [
            {
                "input_ids": source["input_ids"],
                "length": source["length"],
                "source_cut": source["truncated"],
                "truncated": source["truncated"],
            }
            for source in sources
        ]
        with_target = [index for index, row in enumerate(rows) if row.get("target") is not None]
        if not with_target:
            return features
        targets = [self._pairs.references(rows[index])[0] for index in with_target]
        for index, (ids, cut) in zip(with_target, encode_targets(targets, processor, self.options.max_target_length), strict=True):
            feature = features[index]
            feature |= {"target_ids": ids, "target_length": len(ids), "truncated": feature["source_cut"] or cut}
            feature["length"] += len(ids)
        return features

    def bind(self, model: nn.Module, processor: Any) -> None:
        """Finds the token that a decoder begins with, and how the model finishes its logits.

        Gives the generation config, which goes into exports, the language to write and a length that fits the targets.
        Raises ModelError if the model does not say what a decoder begins with.
        """
        from ftkit.tasks.parts.language_loss import LanguageScorer, probe_tokens

        set_languages(processor, self.options.source_language, self.options.target_language)
        plain: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        settings = plain.generation_config
        if settings.decoder_start_token_id is None:
            settings.decoder_start_token_id = getattr(plain.config, "decoder_start_token_id", None)
        if self.options.target_language:
            token, begins_targets = language_place(processor, self.options.target_language)
            settings.forced_bos_token_id = token if begins_targets else None
            if not begins_targets:
                plain.config.decoder_start_token_id = settings.decoder_start_token_id = token
        if settings.max_length is None:
            settings.max_new_tokens = self._max_new_tokens()
        self._start = settings.decoder_start_token_id
        if self._start is None:
            message = "the model's config names no `decoder_start_token_id`"
            raise ModelError(Problem(message=message, key="model.name", hint="Add it to config.json"))
        tokens = probe_tokens(processor)
        self._scorer = LanguageScorer(model, {"input_ids": tokens, "decoder_input_ids": tokens})

    def collate(self, features: Sequence[Features], processor: Any, *, training: bool = False) -> Batch:
        """`input_ids`, `attention_mask`: int64 (B, S); with targets also `targets`: int64 (B, T), padded with -100, and
        `decoder_input_ids`: int64 (B, T), the same one place later, after the token that decoders begin with."""
        import torch

        batch = self._prompts(features, processor)
        batch["example"] = torch.tensor([int(item["example"]) for item in features])
        if all("target_ids" in item for item in features):
            batch |= self._target_tensors([[int(token) for token in item["target_ids"]] for item in features], processor)
        return batch

    def _target_tensors(self, targets: Sequence[list[int]], processor: Any) -> Batch:
        import torch

        from ftkit.tasks.parts.language_loss import IGNORED

        if self._start is None:
            raise ValueError("bind() was not called")
        # BERT's tokenizer begins a text with the very token that the decoder is given.
        targets = [ids[1:] if ids[0] == self._start else ids for ids in targets]
        shape = (len(targets), max(map(len, targets)))
        padding = 0 if processor.pad_token_id is None else processor.pad_token_id
        batch = {"targets": torch.full(shape, IGNORED), "decoder_input_ids": torch.full(shape, padding)}
        for index, ids in enumerate(targets):
            batch["targets"][index, : len(ids)] = torch.tensor(ids)
            batch["decoder_input_ids"][index, : len(ids)] = torch.tensor([self._start, *ids[:-1]])
        return batch

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """What the forward pass takes."""
        return ("input_ids", "attention_mask", "decoder_input_ids")

    # --- results -------------------------------------------------------------------------------------------------

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """`example`; `nll`, `tokens`, `correct`: sums over the tokens of the target."""
        import torch

        rows = len(batch["example"])
        values = (outputs.nll, torch.ones_like(outputs.nll), outputs.correct)
        sums = [outputs.by_row(value, rows).tolist() for value in values]
        return [
            {"example": example, "nll": nll, "tokens": int(tokens), "correct": int(correct)}
            for example, nll, tokens, correct in zip(batch["example"].tolist(), *sums, strict=True)
        ]

    def generates(self, names: Sequence[str] | None) -> bool:
        """Whether one of the metrics compares texts."""
        from_scores = {LOSS.name, *_OF_TOKENS}
        return any(spec.name not in from_scores and (names is None or spec.name in names) for spec in self.metrics())

    def _prompts(self, features: Sequence[Features], processor: Any) -> Batch:
        return pad_inputs([{"input_ids": item["input_ids"], "length": len(item["input_ids"])} for item in features], processor)

    def _limits(self, processor: Any) -> dict[str, Any]:
        padding = 0 if processor.pad_token_id is None else processor.pad_token_id
        return {"max_new_tokens": self._max_new_tokens(), "stop_ids": [end_token(processor)[0]], "pad_id": padding}

    def _written(self, features: Sequence[Features], written: Sequence[Sequence[int]], processor: Any) -> list[Prediction]:
        """`text` for each source, and whether it is `complete`: ended by the model, not by `max_new_tokens`."""
        limit, texts = self._max_new_tokens(), processor.batch_decode(written, skip_special_tokens=True)
        return [{"text": text.strip(), "complete": len(ids) < limit} for text, ids in zip(texts, written, strict=True)]

    def metrics(self) -> Sequence[MetricSpec]:
        """Those of the `metrics` option in its order, then the loss."""
        return self._metrics.specs()

    def _arrays(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, Any]:
        """Sums of the tokens of each example and, where texts were generated, `references` and `predictions`."""
        import numpy as np

        kinds = {"nll": np.float64, "tokens": np.int64, "correct": np.int64}
        arrays: dict[str, Any] = {
            name: np.array([prediction[name] for prediction in predictions], kind) for name, kind in kinds.items()
        }
        if any("text" in prediction for prediction in predictions):
            texts = [prediction["text"] for prediction in predictions]
            arrays |= generated_text.as_arrays([self._pairs.references(row) for row in rows], texts)
        return arrays

    def score(self, predictions: Sequence[Prediction], rows: Rows, names: Sequence[str] | None = None) -> dict[str, Any]:
        """All metrics but the loss. All are None if any prediction is not a finite number."""
        return self._metrics.score(self._arrays(predictions, rows), names, allow_code=self.allow_code)

    def intervals(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, tuple[float, float]]:
        """Of the headline metrics, by resampling examples."""
        arrays = self._arrays(predictions, rows)
        return headline_intervals(self.metrics(), arrays, generated_text.RESAMPLED) if finite(arrays) else {}

    def details(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, Any]:
        """`generated` (how many texts `max_new_tokens` cut off), `examples`, and the `signatures` of BLEU and chrF."""
        if not any("text" in prediction for prediction in predictions):
            return {}
        cut = sum(not prediction["complete"] for prediction in predictions)
        examples = [
            {
                "source": self._pairs.source(rows[index]),
                "references": self._pairs.references(rows[index]),
                "text": prediction["text"],
            }
            for index, prediction in enumerate(predictions[:_SHOWN_EXAMPLES])
        ]
        arrays = self._arrays(predictions, rows)
        found = generated_text.signatures(arrays["references"], arrays["predictions"])
        names = [spec.name for spec in self.metrics()]
        return {
            "generated": {"max_new_tokens": self._max_new_tokens(), "cut": cut},
            "signatures": {name: signature for name, signature in found.items() if name in names},
            "examples": examples,
        }

    def present(self, prediction: Prediction, row: Row) -> dict[str, Any]:
        """`text`; `complete`: false where `max_new_tokens` ended it."""
        return {"text": prediction["text"], "complete": prediction["complete"]}

    def inspect(self, features: Features, processor: Any) -> list[tuple[str, str]]:
        """The tokens of the source, then those of the target, noted as such."""
        pairs = shown_tokens({"input_ids": features["input_ids"], "truncated": features["source_cut"]}, processor)
        tokens = [processor.convert_ids_to_tokens(int(token)) for token in features.get("target_ids", [])]
        pairs += [(token, "target") for token in tokens]
        if features["truncated"] and not features["source_cut"]:
            pairs.append(("", f"target cut at {len(tokens)} tokens"))
        return pairs
