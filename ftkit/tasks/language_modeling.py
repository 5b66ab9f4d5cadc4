"""Causal language modeling: a decoder learns to continue texts.

{"text": "It was a dark and stormy night ..."}        a row is a document; a .txt file is one document
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ftkit.methods.base import Default
from ftkit.metrics import language_modeling as measures
from ftkit.metrics.base import MetricSpec
from ftkit.metrics.intervals import headline_intervals
from ftkit.recipe.schema import Auto, Strict
from ftkit.tasks.base import Batch, Column, Features, Head, Prediction, Row, Rows
from ftkit.tasks.parts.generation import GenerationOptions
from ftkit.tasks.parts.lengths import beyond_positions, longest_input
from ftkit.tasks.parts.metric_choice import MetricChoice
from ftkit.tasks.parts.packing import Piece, cut, pack
from ftkit.tasks.parts.profiles import LIKELY, POSSIBLE, Profile, Recognized, named_columns
from ftkit.tasks.parts.texts import check_text, spread
from ftkit.tasks.parts.tokens import gives_offsets
from ftkit.tasks.parts.written_text import WritesText

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts

_AUTO_METRICS = ["perplexity", "bits_per_byte", "token_accuracy"]
_LONGEST_BLOCK = 1024
_CHARACTERS_AT_ONCE = 2**20
_CONTINUATION = 64


class Options(Strict):
    """Options of language modeling."""

    max_length: Annotated[int, Field(ge=8)] | Auto = Field(
        "auto", description="Tokens of a block. auto: what the model takes, at most 1024."
    )
    packing: bool = Field(
        True,
        description="Fill training blocks with several documents, which do not see each other. false: no block is shared.",
    )
    stride: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="Distance between evaluation windows. auto: `max_length`, so that windows do not overlap (block perplexity); less: "
        "each token is scored with at least `max_length - stride` tokens before it (sliding-window perplexity).",
    )
    end_token: bool = Field(True, description="Put the tokenizer's end token after each document.")
    generation: GenerationOptions = Field(
        default_factory=GenerationOptions, description="How `ftkit predict` continues a text. max_new_tokens auto: 64."
    )
    metrics: Annotated[list[str], Field(min_length=1)] | Auto = Field(
        "auto", description="Metrics to report, the one that picks the best checkpoint first. auto: the usual ones."
    )


class LanguageModeling(WritesText):
    """Next-token prediction on plain texts.

    The loss of a token counts once, whatever block or window it is in. The first token of a document is given, not predicted; so is
    the first one of each training block and, without overlap, of each evaluation window, as in transformers' run_clm example.
    Documents packed into one training block are told apart by positions that begin anew (and a mask where the architecture needs
    one); `bind` checks on the model itself that none sees another. Evaluation never packs.

    Perplexity picks the best checkpoint. It depends on the tokenizer: compare models by `bits_per_byte`, which counts the UTF-8
    bytes of the scored tokens. A tokenizer that does not say which characters its tokens are is given the bytes of the text in
    proportion to the lengths of the tokens: only the bytes of the first token of each window, which is not scored, are estimated.
    """

    name = "language-modeling"
    summary = "The continuation of texts by a decoder."
    model_kinds = frozenset({"decoder"})
    pretrained_head = True
    pipeline_tag = "text-generation"
    Options = Options
    plain_text = "document"

    @classmethod
    def recognize(cls, data: Mapping[str, Profile]) -> Recognized | None:
        """A column of texts, and none that could be a label."""
        texts = [name for name, column in data.items() if column.is_text]
        named = named_columns(cls(cls.Options()).columns(), data).get("text")
        found = named if named in texts else texts[0] if len(texts) == 1 else None
        if found is None or any(column.like_label or column.fractional for name, column in data.items() if name != found):
            return None
        return Recognized(strength=LIKELY if len(data) == 1 else POSSIBLE, reason=f"{found} alone", columns={"text": found})

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        self._metrics = MetricChoice(measures.METRICS, _AUTO_METRICS if self.options.metrics == "auto" else self.options.metrics)
        self._mask_packed = False
        self._positions: int | None = None

    # --- what it needs -------------------------------------------------------------------------------------------

    def columns(self) -> Mapping[str, Column]:
        """The text."""
        return {"text": Column(summary="The text.", names=("text", "content", "document", "article", "completion"))}

    def check_row(self, row: Row) -> None:
        """Raises RowError for an empty text."""
        check_text(row, "text")

    def check_options(self) -> str:
        """Contradictions and unknown metrics."""
        found = self._metrics.problems()
        length, stride = self.options.max_length, self.options.stride
        if "auto" not in (length, stride) and stride > length:
            found.append(f"stride: {stride} is more than max_length, {length}: tokens between windows would not be scored")
        return "; ".join(found)

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        """`task.max_length`, `task.stride`, `task.metrics`, `task.generation.max_new_tokens`."""
        longest = longest_input(facts, _LONGEST_BLOCK)
        block = longest.value if self.options.max_length == "auto" else self.options.max_length
        return {
            "task.max_length": longest,
            "task.stride": Default(value=block, source="task.max_length: windows that do not overlap"),
            "task.metrics": Default(value=_AUTO_METRICS, source="the usual metrics of language modeling"),
            "task.generation.max_new_tokens": Default(value=_CONTINUATION, source="ftkit: a few sentences"),
        }

    def refusal(self, facts: ModelFacts) -> str:
        """A `max_length` that the model's positions do not reach, or a stride beyond it."""
        wanted, stride = self.options.max_length, self.options.stride
        if reason := beyond_positions(facts, {"max_length": wanted}):
            return reason
        longest = self.defaults(facts)["task.max_length"].value if wanted == "auto" else wanted
        return f"stride is {stride}, more than max_length, {longest}" if isinstance(stride, int) and stride > longest else ""

    def state(self) -> dict[str, Any]:
        """Nothing is learned from the rows."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing."""

    def describe(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Documents and their characters."""
        characters = [len(row["text"]) for row in rows]
        return {"documents": len(characters), "characters": spread(characters), "characters_in_all": sum(characters)}

    # --- tensors -------------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """The pretrained output layer."""
        return Head(auto_class="AutoModelForCausalLM", peft_task_type="CAUSAL_LM", pretrained=self.pretrained_head)

    def encode(self, rows: Sequence[Row], processor: Any, *, training: bool = False) -> list[Features]:
        """`input_ids`, `starts` (where documents begin), `scored_from` (first position that is a target), `bytes` (UTF-8 length of
        the scored text), `last` (whether it ends its row), `length`, `row`."""
        length, stride = self.options.max_length, self.options.stride
        if "auto" in (length, stride):
            raise ValueError("max_length or stride is still `auto`: fill it from defaults()")
        packed = training and self.options.packing
        documents = [
            document
            for texts in _together([row["text"] for row in rows])
            for document in self._tokens(texts, processor, measured=not packed)
        ]
        if packed:
            blocks = pack([document for document, _ in documents], length)
            return [{**block, "length": len(block["input_ids"]), "bytes": 0, "scored_from": 1, "last": False} for block in blocks]
        found: list[Features] = []
        for number, (tokens, ends) in enumerate(documents):
            pieces = list(cut(len(tokens), length, length if training else stride))
            for piece in pieces:
                found.append(self._feature(tokens, ends, piece, number) | {"last": piece is pieces[-1]})
        return found

    def _tokens(self, texts: Sequence[str], processor: Any, *, measured: bool) -> Iterator[tuple[list[int], list[int]]]:
        """Token ids of each document, and, where `measured`, the number of UTF-8 bytes of the text up to the end of each."""
        exact = measured and gives_offsets(processor)
        encoded = processor(list(texts), **({"return_offsets_mapping": True} if exact else {}), verbose=False)
        end_id = processor.eos_token_id
        for number, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
            ends: list[int] = []
            if exact:
                ends = list(_byte_ends(text, [end for _, end in encoded["offset_mapping"][number]]))
            elif measured:
                ends = _shared_bytes(text, ids, processor)
            if self.options.end_token and end_id is not None and (not ids or ids[-1] != end_id):
                yield [*ids, end_id], [*ends, len(text.encode())]
            else:
                yield list(ids), ends

    def _feature(self, tokens: list[int], ends: list[int], piece: Piece, row: int) -> Features:
        first = piece.start + piece.scored_from
        scored = ends[piece.end - 1] - ends[first - 1] if first < piece.end else 0
        ids = tokens[piece.start : piece.end]
        return {"input_ids": ids, "starts": [0], "scored_from": piece.scored_from, "bytes": scored, "length": len(ids), "row": row}

    def bind(self, model: nn.Module, processor: Any) -> None:
        """Looks at how the model finishes its logits, and how it keeps packed documents apart."""
        from ftkit.tasks.parts.isolation import needs_mask
        from ftkit.tasks.parts.language_loss import LanguageScorer, position_count, probe_tokens

        self._scorer = LanguageScorer(model, {"input_ids": probe_tokens(processor)})
        self._positions = position_count(model)
        if self.options.packing:
            self._mask_packed = needs_mask(model, probe_tokens(processor)[0])

    def collate(self, features: Sequence[Features], processor: Any, *, training: bool = False) -> Batch:
        """`input_ids`: int64 (B, T), padded on the right; `targets`: int64 (B, T), the token that each position predicts, or -100;
        `attention_mask`: int64 (B, T), for packed blocks `position_ids` instead, and where needed a bool mask (B, 1, T, T)."""
        import torch

        from ftkit.tasks.parts.isolation import document_mask, packed_positions
        from ftkit.tasks.parts.language_loss import IGNORED

        width = max(int(item["length"]) for item in features)
        shape, padding = (len(features), width), processor.pad_token_id or 0
        ids, targets = torch.full(shape, padding), torch.full(shape, IGNORED)
        mask = torch.zeros(shape, dtype=torch.int64)
        for index, item in enumerate(features):
            tokens = torch.as_tensor(item["input_ids"])
            ids[index, : len(tokens)], mask[index, : len(tokens)] = tokens, 1
            targets[index, int(item["scored_from"]) - 1 : len(tokens) - 1] = tokens[int(item["scored_from"]) :]
            for start in item["starts"]:
                if start:
                    targets[index, start - 1] = IGNORED
        batch: Batch = {"input_ids": ids, "targets": targets, "example": torch.tensor([int(item["example"]) for item in features])}
        batch["bytes"] = torch.tensor([int(item["bytes"]) for item in features])
        if any(len(item["starts"]) > 1 for item in features):
            starts = [[*item["starts"], int(item["length"])] for item in features]
            batch["position_ids"] = packed_positions(starts, width)
            if self._mask_packed:
                batch["attention_mask"] = document_mask(starts, width)
        else:
            batch["attention_mask"] = mask
        return batch

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """What the forward pass takes."""
        return ("input_ids", "attention_mask", "position_ids")

    # --- results -------------------------------------------------------------------------------------------------

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """`example`, and lists with an entry a window: `nll`, `tokens`, `correct`, `bytes`."""
        import torch

        rows = len(batch["example"])
        sums = {
            "nll": outputs.by_row(outputs.nll, rows),
            "tokens": outputs.by_row(torch.ones_like(outputs.nll), rows),
            "correct": outputs.by_row(outputs.correct, rows),
            "bytes": batch["bytes"],
        }
        columns = {name: values.tolist() for name, values in sums.items()}
        return [
            {"example": example, **{name: [values[index]] for name, values in columns.items()}}
            for index, example in enumerate(batch["example"].tolist())
        ]

    def combine(self, parts: Sequence[Prediction]) -> Prediction:
        """All windows of a document."""
        names = [name for name in ("nll", "tokens", "correct", "bytes") if name in parts[0]]
        merged: Prediction = {name: [value for part in parts for value in part[name]] for name in names}
        return {"example": parts[0]["example"], **merged, "continuation": "".join(part.get("continuation", "") for part in parts)}

    def generate(self, model: nn.Module, features: Sequence[Features], processor: Any) -> list[Prediction]:
        """`continuation` of each document: of its last window, whose end token is left out."""
        return super().generate(model, features, processor) if any(item["last"] for item in features) else [{} for _ in features]

    def _prompts(self, features: Sequence[Features], processor: Any) -> Batch:
        """Of each document its last window without the end token, cut at the beginning where the model lacks the positions."""
        from ftkit.tasks.parts.generation import left_pad

        prompts = [list(item["input_ids"]) for item in features if item["last"]]
        prompts = [prompt[:-1] if len(prompt) > 1 and prompt[-1] == processor.eos_token_id else prompt for prompt in prompts]
        if self._positions is not None:
            prompts = [prompt[-max(1, self._positions - int(self.options.generation.max_new_tokens)) :] for prompt in prompts]
        return left_pad(prompts, processor.pad_token_id)

    def _limits(self, processor: Any) -> dict[str, Any]:
        end, new = processor.eos_token_id, int(self.options.generation.max_new_tokens)
        return {"max_new_tokens": new, "stop_ids": [] if end is None else [end], "pad_id": processor.pad_token_id}

    def _written(self, features: Sequence[Features], written: Sequence[Sequence[int]], processor: Any) -> list[Prediction]:
        texts = iter(processor.batch_decode(written, skip_special_tokens=True))
        return [{"continuation": next(texts)} if item["last"] else {} for item in features]

    def metrics(self) -> Sequence[MetricSpec]:
        """Those of the `metrics` option in its order, then the loss."""
        return self._metrics.specs()

    def score(self, predictions: Sequence[Prediction], rows: Rows, names: Sequence[str] | None = None) -> dict[str, Any]:
        """All metrics but the loss, over all tokens of the split."""
        return self._metrics.score(_arrays(predictions), names, allow_code=self.allow_code)

    def intervals(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, tuple[float, float]]:
        """Of the headline metrics, by resampling windows: a split may be one long document."""
        return headline_intervals(self.metrics(), _arrays(predictions), {})

    def present(self, prediction: Prediction, row: Row) -> dict[str, Any]:
        """`continuation`, and how the model takes the text itself: `perplexity`, `bits_per_byte`, `tokens`."""
        arrays = _arrays([prediction])
        found = {"perplexity": measures.perplexity(arrays["nll"], arrays["tokens"])}
        found["bits_per_byte"] = measures.bits_per_byte(arrays["nll"], arrays["bytes"])
        return {"continuation": prediction["continuation"], **found, "tokens": int(arrays["tokens"].sum())}

    def inspect(self, features: Features, processor: Any) -> list[tuple[str, str]]:
        """The tokens; those that are only context are noted."""
        starts, first = set(features["starts"]), int(features["scored_from"])
        notes = [
            "document begins" if index in starts else "context" if index < first else "" for index in range(features["length"])
        ]
        tokens = processor.convert_ids_to_tokens([int(token) for token in features["input_ids"]])
        return list(zip(tokens, notes, strict=True))


def _together(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in groups that are tokenized at once: the tokenizer takes some hundred bytes for each token until it has done them all."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= _CHARACTERS_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _byte_ends(text: str, ends: Sequence[int]) -> Iterator[int]:
    """UTF-8 length of the text up to each character position, which must not fall."""
    done = 0
    for before, after in pairwise([0, *ends]):
        done += len(text[before:after].encode("utf-8", "surrogatepass"))
        yield done


def _shared_bytes(text: str, ids: Sequence[int], processor: Any) -> list[int]:
    """UTF-8 length of the text up to the end of each token where a tokenizer does not say where that is: the bytes of the text, shared
    out by the lengths of the tokens' own texts. The whole is exact, and so is what a document of one window counts, but for its first
    token."""
    named = {processor.bos_token_id, processor.eos_token_id, processor.cls_token_id, processor.sep_token_id}
    # Special tokens around a text are none of it; an unknown one stands for some of it.
    pieces = ["" if token in named else piece for token, piece in zip(ids, processor.convert_ids_to_tokens(ids), strict=True)]
    sizes = list(accumulate(len(piece.replace("\u2581", " ").encode("utf-8", "surrogatepass")) for piece in pieces))
    whole = len(text.encode("utf-8", "surrogatepass"))
    return [round(whole * size / max(1, sizes[-1])) for size in sizes]


def _arrays(predictions: Sequence[Prediction]) -> dict[str, Any]:
    import numpy as np

    kinds = {"nll": np.float64, "tokens": np.int64, "correct": np.int64, "bytes": np.int64}
    return {
        name: np.array([value for prediction in predictions for value in prediction.get(name, [])], kind)
        for name, kind in kinds.items()
    }
