"""Gold in, perfect score out, for every task; and one wrong answer costs exactly what it should.

A stand-in for the model knows what it is to say about each input, found by what a model sees of it and nothing else. It is driven through
the evaluation that runs use: encoding, batches, collating, the forward pass or generation, windows put together, metrics. A row that
changes places with another, a target that slips by one, or padding that is taken for text costs the perfect score.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import GenerationConfig

from ftkit.data.batching import epoch_batches, eval_batches
from ftkit.data.building import table_from_rows
from ftkit.data.features import FeatureStore, encode_table
from ftkit.data.table import Table
from ftkit.metrics import generated_text
from ftkit.registry import TASKS
from ftkit.tasks.base import Features, Prediction, Task
from ftkit.training import evaluation
from tests.tasks.parts.chat_tokenizers import byte_tokenizer
from tests.tasks.parts.pictures import encoded, noise
from tests.tasks.parts.word_tokenizers import byte_level, random_rows, sentence_pieces, word_pieces
from tests.tiny import tiny_config, tiny_tokenizer

SURE = 30.0
"""A logit of which softmax and sigmoid make 1 but for 1e-13."""

COUNTS = [1, 2, 5, 9, 13]
BATCH_SIZES = [1, 3, 7]
BUDGET = 40
"""Tokens of a batch; more than most rows have, less than the longest."""

BEST = {"bleu": 100.0, "chrf": 100.0, "perplexity": 1.0}
"""Best values that are neither 1 nor, where smaller is better, 0."""

UNDEFINED_ON_FEW = {
    "auroc",
    "auroc_macro",
    "matthews_correlation",
    "pearson",
    "spearman",
    "r2",
    "bleu",
    "rouge2",
    "no_answer_accuracy",
}
"""Metrics that need examples of several kinds, or of some length; None is right for the first few rows."""


# --- models that know ----------------------------------------------------------------------------------------------------


class Knowing(nn.Module):
    """Says what it was told about each input. A model sees `inputs` of `answers`' keys; what it does not know it is unsure of.

    task, processor, features: all features of the split. rows: its rows. wrong: examples about which it is told something false.
    """

    def __init__(self, task: Task, processor: Any, features: Sequence[Features], rows: Table, wrong: Sequence[int] = ()) -> None:
        super().__init__()
        self.task, self.processor, self.rows = task, processor, rows
        self.anchor = nn.Parameter(torch.zeros(1))
        self.answers: dict[Any, Any] = {}
        self.prepare()
        for feature in features:
            example = int(feature["example"])
            batch = task.collate([feature], processor)
            self.tell(self.key(batch, 0), self.answer(feature, rows[example], example in wrong))

    def prepare(self) -> None:
        """What must be there before the first batch is collated."""

    def tell(self, key: Any, answer: Any) -> None:
        known = self.answers.setdefault(key, answer)
        assert str(known) == str(answer), f"the rows of this case ask the same and want {known} and {answer}"

    def key(self, inputs: Mapping[str, Any], row: int) -> Any:
        """What the model sees of a row: its tokens, without padding."""
        return tuple(inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist())

    def answer(self, feature: Features, row: Mapping[str, Any], wrong: bool) -> Any:
        """What is to be said about a feature."""
        raise NotImplementedError


class KnowsLabels(Knowing):
    """Logits of a label, of several, or a number (B, outputs)."""

    def answer(self, feature: Features, row: Mapping[str, Any], wrong: bool) -> list[float]:
        config, label = self.task.head().config, row["label"]
        if config["problem_type"] == "regression":
            return [float(label) + 3.0 * wrong]
        count = len(config["label2id"])
        if config["problem_type"] == "single_label_classification":
            chosen = {(config["label2id"][str(label)] + wrong) % count}
        else:
            chosen = {config["label2id"][name] for name in label}
            chosen = chosen ^ {0} if wrong else chosen
        return [SURE if number in chosen else -SURE for number in range(count)]

    def forward(self, **inputs: Any) -> Any:
        rows = len(next(iter(inputs.values())))
        return SimpleNamespace(logits=torch.tensor([self.answers[self.key(inputs, row)] for row in range(rows)]))


class KnowsPictures(KnowsLabels):
    """The same of images."""

    def key(self, inputs: Mapping[str, Any], row: int) -> bytes:
        return bytes(inputs["pixel_values"][row].numpy().tobytes())


VIRTUAL = 2
"""Positions that prompt tuning puts in front; the outputs of a model hold them, too."""


class KnowsTags(Knowing):
    """Logits of each position (B, VIRTUAL + T, labels): noise where nothing is to be said."""

    def answer(self, feature: Features, row: Mapping[str, Any], wrong: bool) -> list[int]:
        outside = self.task.head().config["label2id"]["O"]
        return [outside if wrong and label >= 0 else int(label) for label in feature["labels"]]

    def forward(self, **inputs: Any) -> Any:
        count, (rows, width) = len(self.task.head().config["label2id"]), inputs["input_ids"].shape
        logits = torch.randn(rows, VIRTUAL + width, count, generator=torch.Generator().manual_seed(0))
        for row in range(rows):
            told = torch.tensor(self.answers[self.key(inputs, row)])
            places = (told >= 0).nonzero()[:, 0]
            logits[row, VIRTUAL + places] = SURE * torch.nn.functional.one_hot(told[places], count).float()
        return SimpleNamespace(logits=logits)


class KnowsSpans(Knowing):
    """Start and end logits (B, VIRTUAL + T): certain of two positions. What is false is the first word of the context."""

    def answer(self, feature: Features, row: Mapping[str, Any], wrong: bool) -> tuple[int, int]:
        if not wrong:
            return int(feature["start"]), int(feature["end"])
        place = int(feature["context_at"]) if feature["window"] == 0 else int(feature["null_at"])
        return place, place

    def forward(self, **inputs: Any) -> Any:
        rows, width = inputs["input_ids"].shape
        both = torch.zeros(2, rows, VIRTUAL + width)
        for row in range(rows):
            for side, place in enumerate(self.answers[self.key(inputs, row)]):
                both[side, row, VIRTUAL + place] = SURE
        return SimpleNamespace(start_logits=both[0], end_logits=both[1])


class Writer(Knowing):
    """A language model: the next token is certain; the output layer takes it from hidden states that name it."""

    family = "llama"

    def prepare(self) -> None:
        size = len(self.processor)
        self.config, self.generation_config = tiny_config(self.family, vocab_size=size), GenerationConfig()
        if self.family == "llama":
            self.config.max_position_embeddings = 256
        self.output = nn.Linear(size, size, bias=False)
        self.output.weight.data = torch.eye(size)
        self.written: dict[Any, list[int]] = {}
        self.task.bind(self, self.processor)

    def get_output_embeddings(self) -> nn.Module:
        return self.output

    def hidden(self, tokens: Sequence[Sequence[int]], width: int) -> Tensor:
        """(B, width, vocabulary): what each position is to predict; nothing where nothing is known."""
        states = torch.zeros(len(tokens), width, self.output.in_features)
        for row, known in enumerate(tokens):
            states[row, torch.arange(min(len(known), width)), torch.tensor(known[:width], dtype=torch.int64)] = SURE
        return states

    def other(self, token: int) -> int:
        """Another token, that ends nothing."""
        words = self.processor.convert_tokens_to_ids(self.filler)
        return words[0] if token != words[0] else words[1]

    filler = ("w0", "w1")

    def generate(self, generation_config: Any, **inputs: Any) -> Tensor:
        """What was told about each prompt and a stop token, padded; after the prompt, or what decoders begin with."""
        rows = [
            [*self.written[self.key(inputs, row)], generation_config.eos_token_id[0]] for row in range(len(inputs["input_ids"]))
        ]
        width = min(max(map(len, rows)), generation_config.max_new_tokens)
        new = torch.full((len(rows), width), generation_config.pad_token_id)
        for row, ids in enumerate(rows):
            new[row, : len(ids)] = torch.tensor(ids[:width])
        return torch.cat([self.before(inputs), new], dim=1)

    def before(self, inputs: Mapping[str, Any]) -> Tensor:
        return inputs["input_ids"]


class KnowsDocuments(Writer):
    """Continues each window as it is."""

    def answer(self, feature: Features, row: Mapping[str, Any], wrong: bool) -> list[int]:
        following = [int(token) for token in feature["input_ids"][1:]]
        return [self.other(token) for token in following] if wrong else following

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        known = [self.answers.get(self.key(inputs, row), []) if mask.dim() == 2 else [] for row in range(len(input_ids))]
        return SimpleNamespace(logits=self.output(self.hidden(known, input_ids.shape[1])))


class KnowsConversations(KnowsDocuments):
    """The same; written for a prompt is the answer, for a false one something else."""

    filler = ("!", '"')

    def answer(self, feature: Features, row: Mapping[str, Any], wrong: bool) -> list[int]:
        answer = "!" if wrong else row["messages"][-1]["content"] if "messages" in row else row["completion"]
        self.written[tuple(int(token) for token in feature["prompt_ids"])] = self.processor(answer, add_special_tokens=False)[
            "input_ids"
        ]
        return super().answer(feature, row, wrong)


class KnowsTargets(Writer):
    """An encoder-decoder: the first reference is what the decoder expects, the last one what is written."""

    family = "bart"

    def answer(self, feature: Features, row: Mapping[str, Any], wrong: bool) -> list[int]:
        references = row["target"] if isinstance(row["target"], list) else [row["target"]]
        text = "w0" if wrong else references[-1]
        key = tuple(int(token) for token in feature["input_ids"])
        self.written[key] = self.processor(text, add_special_tokens=False)["input_ids"]
        learned = [int(token) for token in feature["target_ids"]]
        # What decoders begin with is given to them, not written.
        learned = learned[1:] if learned[0] == self.generation_config.decoder_start_token_id else learned
        return [self.other(token) for token in learned] if wrong else learned

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        known = [self.answers.get(self.key(inputs, row), []) for row in range(len(input_ids))]
        return SimpleNamespace(logits=self.output(self.hidden(known, decoder_input_ids.shape[1])))

    def before(self, inputs: Mapping[str, Any]) -> Tensor:
        return torch.full((len(inputs["input_ids"]), 1), self.generation_config.decoder_start_token_id)


class KnowsTargetsOfT5(KnowsTargets):
    family = "t5"


# --- what one false answer costs -----------------------------------------------------------------------------------------

Rows = Sequence[Mapping[str, Any]]
Cost = Callable[[Rows, int, Sequence[Prediction]], Mapping[str, float]]
"""Metrics after a false answer, of the rows, the number of the one it is about, and the predictions without it."""


def share(*names: str) -> Cost:
    """Metrics in which each example counts the same, 0 for the false one."""
    return lambda rows, wrong, gold: dict.fromkeys(names, (len(rows) - 1) / len(rows))


def tokens_lost(rows: Rows, wrong: int, gold: Sequence[Prediction]) -> Mapping[str, float]:
    """All tokens of the false one are missed, each by the whole distance of the logits."""
    counts = [int(np.sum(item["tokens"])) for item in gold]
    lost = counts[wrong] / sum(counts)
    return {"token_accuracy": 1 - lost, "perplexity": math.exp(SURE * lost)}


def texts_and_tokens_lost(rows: Rows, wrong: int, gold: Sequence[Prediction]) -> Mapping[str, float]:
    return {**tokens_lost(rows, wrong, gold), **share("exact_match", "rouge1", "rougeL")(rows, wrong, gold)}


def label_too_many_or_few(rows: Rows, wrong: int, gold: Sequence[Prediction]) -> Mapping[str, float]:
    """One flag, that of the first label, is false."""
    true = sum(len(row["label"]) for row in rows)
    found, hits = (true - 1, true - 1) if "a" in rows[wrong]["label"] else (true + 1, true)
    return {"f1_micro": 2 * hits / (true + found), "accuracy": (len(rows) - 1) / len(rows)}


def number_off(rows: Rows, wrong: int, gold: Sequence[Prediction]) -> Mapping[str, float]:
    return {"mse": 9.0 / len(rows), "mae": 3.0 / len(rows)}


def entities_missed(rows: Rows, wrong: int, gold: Sequence[Prediction]) -> Mapping[str, float]:
    """All words of a sentence are taken for words outside."""
    total, missed = (sum(tag.startswith("B") for row in part for tag in row["tags"]) for part in (rows, rows[wrong : wrong + 1]))
    words, others = sum(len(row["tags"]) for row in rows), sum(tag != "O" for tag in rows[wrong]["tags"])
    recall = (total - missed) / total
    return {"precision": float(recall > 0), "recall": recall, "f1": 2 * recall / (1 + recall), "accuracy": 1 - others / words}


def tags_missed(rows: Rows, wrong: int, gold: Sequence[Prediction]) -> Mapping[str, float]:
    words, others = sum(len(row["tags"]) for row in rows), sum(tag != "O" for tag in rows[wrong]["tags"])
    return {"accuracy": 1 - others / words}


# --- rows ------------------------------------------------------------------------------------------------------------------

DRAW = random.Random(11)
LENGTHS = [6, 30, 1, 12, 7, 25, 2, 18, 5, 9, 40, 4, 21]
"""Words of the 13 rows."""


def words(count: int, begin: str = "") -> str:
    """Words of the tiny vocabulary, drawn; the first as given."""
    return " ".join([*([begin] if begin else []), *(f"w{DRAW.randrange(2, 40)}" for _ in range(count - bool(begin)))])


TEXTS = [words(length, f"w{number + 10}") for number, length in enumerate(LENGTHS)]
SINGLE = [{"text": text, "label": ("news", "sport", "arts")[number % 3]} for number, text in enumerate(TEXTS)]
PAIRS = [{**row, "text_pair": words(length)} for row, length in zip(SINGLE, reversed(LENGTHS), strict=True)]
SEVERAL = [
    {"text": text, "label": [["a", "c"], ["b"], ["a"], [], ["c", "b", "a"]][number % 5]} for number, text in enumerate(TEXTS)
]
NUMBERS = [{"text": text, "label": (-1.5, 4, 0.25, 7.5)[number % 4]} for number, text in enumerate(TEXTS)]

PICTURES = [encoded(noise(size=(20 + number, 31 - number), seed=number)) for number in range(13)]
SEEN = [{"image": {"bytes": picture}, "label": row["label"]} for picture, row in zip(PICTURES, SINGLE, strict=True)]
SEEN_SEVERAL = [{**row, "label": other["label"]} for row, other in zip(SEEN, SEVERAL, strict=True)]
SEEN_NUMBERS = [{**row, "label": other["label"]} for row, other in zip(SEEN, NUMBERS, strict=True)]

CONTEXT = "w40 " + words(150)
STARTS = [0, *(place + 1 for place, character in enumerate(CONTEXT) if character == " ")]


def asked(number: int, first: int, count: int) -> dict[str, Any]:
    """A question whose answer is `count` words of the context from the word `first` on; none where there are none."""
    text = " ".join(CONTEXT.split()[first : first + count])
    answers = {"text": [text], "answer_start": [STARTS[first]]} if count else {"text": [], "answer_start": []}
    return {"question": f"w{number} w{number + 1}", "context": CONTEXT, "answers": answers}


# Answers at the edges of windows, at both ends of the context, and as long as windows overlap.
ANSWERED = [
    asked(number, first, 1 + number % 6) for number, first in enumerate([1, 7, 22, 23, 24, 45, 60, 75, 90, 101, 120, 140, 144])
]
UNANSWERED = [asked(number, 0, 0) if number in (3, 6, 9) else row for number, row in enumerate(ANSWERED)]

TALKS = [
    {"prompt": f"{'What is it? ' * (1 + number % 3)}{number}", "completion": f"It is number {number}{' and more' * (number % 4)}."}
    for number in range(13)
]
CHATS = [
    {"messages": [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, turns, strict=True)]}
    for turns in [
        (f"Say {number}", "No.", "Please" + "!" * number, f"Well then, {number}" + " it is" * number) for number in range(13)
    ]
]
PAIRED = [
    {"source": text, "target": [words(8, f"w{number + 2}"), words(LENGTHS[-number] + 4), words(5)][: 1 + number % 3]}
    for number, text in enumerate(TEXTS)
]


# --- the cases -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A task with rows and a model that knows about them.

    rows: 13. cost: see `Cost`. shown: whether what `present` gives for a row is right. max_length: of features, in tokens; 0: no limit.
    left_out: metrics that say nothing of these rows.
    """

    name: str
    task: str
    rows: Rows
    knows: type[Knowing]
    cost: Cost
    processor: Callable[[], Any] = tiny_tokenizer
    options: Mapping[str, Any] = field(default_factory=dict)
    shown: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = lambda shown, row: True
    max_length: int = 0
    left_out: frozenset[str] = frozenset()


def bert() -> Any:
    return tiny_tokenizer("bert")


def llama() -> Any:
    return tiny_tokenizer("llama")


def bart() -> Any:
    return tiny_tokenizer("bart")


def t5() -> Any:
    return tiny_tokenizer("t5")


def vit() -> Any:
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.4] * 3, image_std=[0.6] * 3)


def labels(name: str, task: str, rows: Rows, problem: str, cost: Cost, **options: Any) -> Case:
    """A case of classification or regression."""
    key = {"single_label": "label", "multi_label": "labels", "regression": "value"}[problem]

    def shown(found: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
        expected = row["label"]
        return sorted(found[key]) == sorted(expected) if problem == "multi_label" else found[key] == expected

    knows = KnowsPictures if task == "image-classification" else KnowsLabels
    own = {"channels": 3} if knows is KnowsPictures else {"max_length": 64}
    processor = vit if knows is KnowsPictures else bert
    given = {**own, "problem_type": problem, **options}
    return Case(name, task, rows, knows, cost, processor, given, shown, given.get("max_length", 0))


def tags(name: str, processor: Callable[[], Any], rows: Rows, cost: Cost, **options: Any) -> Case:
    return Case(
        name, "token-classification", rows, KnowsTags, cost, processor, options,
        lambda found, row: bool(found["tags"] == row["tags"]), options["max_length"],
    )  # fmt: skip


def spans(name: str, family: str, rows: Rows, **options: Any) -> Case:
    def shown(found: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        return (found["answer"], found["start"]) == ((texts[0], starts[0]) if texts else ("", None))

    given = {"max_length": 32, "stride": 8, **options}
    parts = frozenset({"has_answer_f1", "has_answer_exact_match", "no_answer_accuracy"})
    cost = share("exact_match", "f1")
    return Case(
        name,
        "question-answering",
        rows,
        KnowsSpans,
        cost,
        lambda: tiny_tokenizer(family),
        given,
        shown,
        given["max_length"],
        left_out=frozenset() if rows is UNANSWERED else parts,
    )


def writes(
    name: str, task: str, rows: Rows, knows: type[Knowing], cost: Cost, processor: Callable[[], Any], **options: Any
) -> Case:
    return Case(name, task, rows, knows, cost, processor, options)


TEXT_METRICS = ["loss", "perplexity", "token_accuracy", *generated_text.METRICS]
IMAGES = "image-classification"
TEXT = "text-classification"

CASES = [
    labels("one label", TEXT, SINGLE, "single_label", share("accuracy")),
    labels("one label, cut", TEXT, SINGLE, "single_label", share("accuracy"), max_length=8),
    labels("one label, head and tail", TEXT, SINGLE, "single_label", share("accuracy"), max_length=12, long_texts="head_tail"),
    labels("one label, windows", TEXT, SINGLE, "single_label", share("accuracy"), max_length=10, long_texts="windows", window_stride=5),
    labels("one label of pairs, cut", TEXT, PAIRS, "single_label", share("accuracy"), max_length=24),
    labels("several labels", TEXT, SEVERAL, "multi_label", label_too_many_or_few),
    labels("several labels, windows, tuned", TEXT, SEVERAL, "multi_label", label_too_many_or_few,
           max_length=9, long_texts="windows", window_stride=7, threshold="tuned"),
    labels("numbers", TEXT, NUMBERS, "regression", number_off),
    labels("numbers, windows", TEXT, NUMBERS, "regression", number_off, max_length=11, long_texts="windows", window_stride=3),
    labels("one label of images", IMAGES, SEEN, "single_label", share("accuracy")),
    labels("several labels of images", IMAGES, SEEN_SEVERAL, "multi_label", label_too_many_or_few),
    labels("numbers of images", IMAGES, SEEN_NUMBERS, "regression", number_off),
    tags("entities, whole", word_pieces, random_rows(13), entities_missed, max_length=4000, overlap=6, labeling="first"),
    tags("entities, small windows", word_pieces, random_rows(13), entities_missed, max_length=13, overlap=6, labeling="all"),
    tags("entities of bytes", byte_level, random_rows(13), entities_missed, max_length=24, overlap=3, labeling="last"),
    tags("plain tags", sentence_pieces, random_rows(13, "none"), tags_missed, max_length=16, overlap=7, labeling="first", scheme="none"),
    spans("answers", "bert", ANSWERED),
    spans("answers, or none", "bert", UNANSWERED),
    spans("answers of a decoder", "gpt2", UNANSWERED, max_length=20, stride=9),
    spans("answers without token types", "roberta", UNANSWERED, max_length=40, no_answer_threshold=0.0),
    writes("documents, whole", "language-modeling", SINGLE, KnowsDocuments, tokens_lost, llama, max_length=64, stride=64, packing=False),
    writes("documents, blocks", "language-modeling", SINGLE, KnowsDocuments, tokens_lost, llama, max_length=8, stride=8),
    writes("documents, sliding", "language-modeling", SINGLE, KnowsDocuments, tokens_lost, llama, max_length=8, stride=3),
    writes("prompts", "instruction-tuning", TALKS, KnowsConversations, texts_and_tokens_lost, byte_tokenizer,
           max_length=128, chat_template="zephyr", metrics=TEXT_METRICS),
    writes("prompts, answers cut", "instruction-tuning", TALKS, KnowsConversations, share("exact_match"), byte_tokenizer,
           max_length=64, chat_template="none", metrics=TEXT_METRICS),
    writes("conversations", "instruction-tuning", CHATS, KnowsConversations, texts_and_tokens_lost, byte_tokenizer,
           max_length=250, chat_template="chatml", train_on="last_answer", metrics=TEXT_METRICS),
    writes("references", "seq2seq", PAIRED, KnowsTargets, texts_and_tokens_lost, bart,
           max_source_length=64, max_target_length=64, generation={"max_new_tokens": 60}, metrics=TEXT_METRICS),
    writes("references, sources cut", "seq2seq", PAIRED, KnowsTargetsOfT5, texts_and_tokens_lost, t5,
           max_source_length=8, max_target_length=64, generation={"max_new_tokens": 60}, metrics=TEXT_METRICS),
]  # fmt: skip


# --- running them ----------------------------------------------------------------------------------------------------------

ORDERS: dict[str, Callable[..., Sequence[np.ndarray]]] = {
    "longest first": eval_batches,
    "shortest first": lambda lengths, **sizes: [batch[::-1] for batch in reversed(list(eval_batches(lengths, **sizes)))],
    "length buckets": lambda lengths, **sizes: list(epoch_batches(lengths, seed=1, epoch=0, bucket=True, **sizes)),
    "random": lambda lengths, **sizes: list(epoch_batches(lengths, seed=2, epoch=3, bucket=False, **sizes)),
}
"""Ways to put features into batches. The first is the evaluation's own; results must depend on none."""


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@dataclass(frozen=True)
class Subject:
    """The first rows of a case, encoded, by a task that has learned from all."""

    task: Task
    processor: Any
    rows: Rows
    table: Table
    store: FeatureStore

    def model(self, knows: type[Knowing], wrong: Sequence[int] = ()) -> Knowing:
        return knows(self.task, self.processor, self.store.take(np.arange(len(self.store))), self.table, wrong)


def subject(case: Case, count: int) -> Subject:
    found = _subject(case.name, count)
    found.task.calibration = {}
    return found


@cache
def _subject(name: str, count: int) -> Subject:
    case = next(case for case in CASES if case.name == name)
    cls, processor = TASKS.get(case.task), case.processor()
    task = cls(cls.Options(**case.options))
    assert task.check_options() == ""
    everything, rows = table_from_rows(case.rows, "all"), case.rows[:count]
    for row in everything:
        task.check_row(row)
    task.learn(everything)
    task.learn_encoded(encode_table(everything, task, processor, processor_key="k", cache=False, training=True).numbers)
    table = table_from_rows(rows, "rows")
    store = encode_table(table, task, processor, processor_key="k", cache=False)
    assert not case.max_length or store.lengths.max() <= case.max_length
    return Subject(task, processor, rows, table, store)


def run(given: Subject, model: nn.Module, accelerator: Accelerator, size: int, budget: int | None = None) -> evaluation.Evaluation:
    return evaluation.evaluate(
        model,
        given.task,
        given.store,
        given.table,
        given.processor,
        batch_size=size,
        max_tokens=budget,
        accelerator=accelerator,
    )


def best(task: Task, case: Case) -> dict[str, float]:
    """The best value of each metric."""
    specs = (spec for spec in task.metrics() if spec.name not in case.left_out)
    return {spec.name: BEST.get(spec.name, float(spec.direction == "max")) for spec in specs}


def check_perfect(found: Mapping[str, Any], case: Case, given: Subject) -> None:
    expected = best(given.task, case)
    assert set(found) == set(expected)
    undefined = UNDEFINED_ON_FEW if len(given.rows) < max(COUNTS) else set()
    for name, value in found.items():
        if value is None:
            assert name in undefined, f"{name} of {len(given.rows)} rows is undefined"
        else:
            assert value == pytest.approx(expected[name], abs=1e-6), name


@pytest.mark.parametrize("name", TASKS.names())
def test_every_task_has_a_case(name: str) -> None:
    missing = (
        f"{name} has no case. Add one to CASES: 13 rows, a model that knows what to say about them, and what a false answer costs"
    )
    assert any(case.task == name for case in CASES), missing


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gold_in_perfect_scores_out(case: Case, count: int, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    given = subject(case, count)
    model, expected = given.model(case.knows), best(given.task, case)
    orders = list(ORDERS)
    for number, (size, budget) in enumerate((size, budget) for size in BATCH_SIZES for budget in (None, BUDGET)):
        monkeypatch.setattr(evaluation, "eval_batches", ORDERS[orders[(count + number) % len(orders)]])
        found = run(given, model, accelerator, size, budget)
        check_perfect(found.metrics, case, given)
        assert list(found.metrics)[: len(expected) - 1] == [name for name in expected if name != "loss"]
        for prediction, row in zip(found.predictions, given.rows, strict=True):
            shown = given.task.present(prediction, row)
            assert case.shown(shown, row), (shown, row)
            json.dumps(shown)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_intervals_details_and_what_validation_decides_agree(case: Case, accelerator: Accelerator) -> None:
    given = subject(case, max(COUNTS))
    task, expected = given.task, best(given.task, case)
    found = run(given, given.model(case.knows), accelerator, 7)
    intervals = task.intervals(found.predictions, given.table)
    assert set(intervals) <= {spec.name for spec in task.metrics() if spec.headline}
    assert intervals
    for name, (low, high) in intervals.items():
        assert (low, high) == (pytest.approx(expected[name], abs=1e-6),) * 2, name
    json.dumps(task.details(found.predictions, given.table))
    task.calibration = task.calibrate(found.predictions, given.table)
    check_perfect({**task.score(found.predictions, given.table), "loss": 0.0}, case, given)


@pytest.mark.parametrize("count", [2, 13])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_false_answer_costs_what_it_should(case: Case, count: int, accelerator: Accelerator) -> None:
    given = subject(case, count)
    gold = run(given, given.model(case.knows), accelerator, 3)
    expected = best(given.task, case)
    for wrong in sorted({0, count // 2, count - 1}):
        found = run(given, given.model(case.knows, [wrong]), accelerator, 3)
        costs = case.cost(given.rows, wrong, gold.predictions)
        assert {name: found.metrics[name] for name in costs} == pytest.approx(dict(costs), rel=1e-6)
        assert any(abs(value - expected[name]) > 1e-3 for name, value in costs.items())
        assert [item["example"] for item in found.predictions] == list(range(count))
