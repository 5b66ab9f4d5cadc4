from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from ftkit.errors import ModelError
from ftkit.tasks.base import Row, RowError
from ftkit.tasks.parts.spans import (
    Passage,
    best_spans,
    check_answers,
    merged_spans,
    no_answer_threshold,
    position_loss,
    read_answers,
    shown_spans,
    tokenize_passages,
    tokens_of,
    windows_of,
)
from tests.tiny import TOKENS, tiny_tokenizer

CONTEXT = "Zoë paid 5 € to Ben 😀, then Ben left."

# --- answers in rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"answers": {"text": ["Ben", "Ben left"], "answer_start": [16, 28]}},
        {"answers": [{"text": "Ben", "answer_start": 16}, {"text": "Ben left", "answer_start": 28.0, "more": 1}]},
        {"answers": ["Ben", "Ben left"], "answer_start": [16, 28]},
        {"answers": ["Ben", "Ben left"], "answer_start": ["16", " 28 "], "is_impossible": "False"},
    ],
)
def test_ways_to_write_several_answers(row: Row) -> None:
    assert read_answers(row) == [("Ben", 16), ("Ben left", 28)]
    check_answers({**row, "context": CONTEXT})


@pytest.mark.parametrize(
    "row", [{"answers": "Ben", "answer_start": "16"}, {"answers": {"text": "Ben", "answer_start": 16}, "answer_start": None}]
)
def test_one_answer_as_a_text(row: Row) -> None:
    assert read_answers(row) == [("Ben", 16)]


@pytest.mark.parametrize(
    "row",
    [
        {"answers": {"text": [], "answer_start": []}},
        {"answers": []},
        {"answers": "", "answer_start": ""},
        {"answers": " ", "answer_start": None, "is_impossible": "1"},
        {"answers": None, "is_impossible": True},
    ],
)
def test_ways_to_write_no_answer(row: Row) -> None:
    assert read_answers(row) == []


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({}, "answers", "the answers are missing"),
        ({"answers": None, "is_impossible": False}, "answers", "the answers are missing"),
        ({"answers": {"text": ["a", "b"], "answer_start": [1]}}, "answers", "2 texts, but 1 starts"),
        ({"answers": {"answer_start": [1]}}, "answers", "have no `text`"),
        ({"answers": {"text": None, "answer_start": [1]}}, "answers", "the answer is None, which is not a text"),
        ({"answers": {"text": ["a"]}}, "answers", "the start of the answer is missing, expected a whole number"),
        ({"answers": [""], "answer_start": [0]}, "answers", "the answer is '', which is not a text"),
        ({"answers": [5], "answer_start": [0]}, "answers", "the answer is 5, which is not a text"),
        ({"answers": "x", "answer_start": -1}, "answer_start", "the start of the answer is -1"),
        ({"answers": "x", "answer_start": 1.5}, "answer_start", "the start of the answer is 1.5"),
        ({"answers": "x", "answer_start": True}, "answer_start", "the start of the answer is True"),
        ({"answers": "x", "answer_start": "two"}, "answer_start", "the start of the answer is 'two'"),
        ({"answers": "x", "answer_start": 0, "is_impossible": True}, "is_impossible", "is true, but there is an answer: 'x'"),
        ({"answers": "x", "answer_start": 0, "is_impossible": "maybe"}, "is_impossible", "'maybe' is neither true nor false"),
    ],
)
def test_answers_that_cannot_be_read(row: Row, column: str, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        read_answers(row)
    assert caught.value.column == column


@pytest.mark.parametrize(
    ("text", "start", "hint"),
    [
        ("Ben", len("Zoë paid 5 € to ".encode()), r"counted in bytes of UTF-8; in characters it is 16"),
        ("then", 24, "counted in UTF-16 units; in characters it is 23"),
        ("Ben", 25, "The nearest place where the text stands is 28"),
        ("Ben ", 17, "The nearest place where the text stands without the blanks around it is 16"),
        ("Eva", 3, "does not contain this text at all"),
        ("Ben", 99, "The nearest place where the text stands is 28"),
    ],
)
def test_answers_that_stand_elsewhere(text: str, start: int, hint: str) -> None:
    with pytest.raises(RowError, match=f"but the answer is {text!r}") as caught:
        check_answers({"context": CONTEXT, "answers": text, "answer_start": start})
    assert hint in caught.value.hint


def test_both_texts_are_shown_and_starts_of_stripped_contexts_explained() -> None:
    with pytest.raises(RowError, match="the context has 'oë ' at 1, but the answer is 'Zoë'"):
        check_answers({"context": CONTEXT, "answers": "Zoë", "answer_start": 1})
    with pytest.raises(RowError) as caught:
        check_answers({"context": "\n  " + CONTEXT, "answers": "paid", "answer_start": 4})
    assert "counted from the first character that is not blank; in characters it is 7" in caught.value.hint


# --- windows ---------------------------------------------------------------------------------------------------------------


def passage(question: int, context: int, family: str = "bert") -> Passage:
    words = [" ".join(f"w{number % 41}" for number in range(count)) for count in (question, context)]
    return next(tokenize_passages([(words[0], words[1])], tiny_tokenizer(family)))


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "gpt2"])
@pytest.mark.parametrize(
    ("question", "context", "length", "stride"),
    [(3, 10, 32, 8), (3, 200, 32, 8), (30, 200, 32, 8), (30, 6, 32, 8), (3, 200, 16, 100), (3, 27, 32, 0), (20, 20, 16, 1)],
)
def test_windows_fill_the_room_cover_the_context_and_overlap(
    family: str, question: int, context: int, length: int, stride: int
) -> None:
    whole = passage(question, context, family)
    found = windows_of(whole, length, stride)
    assert (found[0].first, found[-1].last) == (0, context)
    assert all(len(window.tokens) <= length for window in found)
    assert len(found) == 1 or all(len(window.tokens) == length for window in found)
    for window in found:
        assert window.tokens[window.at : window.at + window.last - window.first] == whole.context[window.first : window.last]
        assert window.tokens[window.at + window.last - window.first :] == whole.after
        assert window.cut == (window.at < len(whole.before) + question + len(whole.between))
    size = found[0].last - found[0].first
    shared = min(stride, size // 2)
    for left, right in itertools.pairwise(found):
        assert left.last - right.first >= shared
        assert right is found[-1] or left.last - right.first == shared
        assert right.last > left.last


def test_every_short_answer_is_whole_in_some_window() -> None:
    found = windows_of(passage(3, 200), 32, 8)
    for start in range(192):
        assert any(window.first <= start and start + 9 <= window.last for window in found)


@pytest.mark.parametrize(
    ("question", "context", "kept"),
    [(3, 100, 3), (30, 100, 14), (14, 100, 14), (15, 100, 14), (30, 5, 24), (30, 3, 26), (20, 9, 20)],
)
def test_a_long_question_leaves_the_context_at_least_half_of_the_room(question: int, context: int, kept: int) -> None:
    # 32 tokens, 3 of them special.
    window = windows_of(passage(question, context), 32, 8)[0]
    assert window.at - 2 == kept
    assert window.cut == (kept < question)


def test_the_null_token_is_cls_or_else_the_last_one() -> None:
    tokens = {"bert": TOKENS["<cls>"], "roberta": None, "t5": TOKENS["</s>"], "gpt2": TOKENS["</s>"]}
    for family, token in tokens.items():
        tokenizer = tiny_tokenizer(family)
        if token is None:
            tokenizer.cls_token = "<s>"
            token = TOKENS["<s>"]
        found = windows_of(next(tokenize_passages([("w1", "w2 " * 50)], tokenizer)), 16, 4)
        assert all(window.tokens[window.null][0] == token for window in found)
        assert {window.null for window in found} == ({0} if family in ("bert", "roberta") else {15})


def test_a_cls_token_at_the_end_is_found() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <cls>", pair="$A <sep> $B <sep> <cls>", special_tokens=[("<cls>", TOKENS["<cls>"]), ("<sep>", TOKENS["<sep>"])]
    )
    window = windows_of(next(tokenize_passages([("w1", "w2 w3")], tokenizer)), 16, 4)[0]
    assert [token for token, _ in window.tokens] == [8, 3, 9, 10, 3, 2]
    assert window.null == 5


def test_decoders_get_separators_and_need_an_end_token() -> None:
    tokenizer = tiny_tokenizer("gpt2")
    end = TOKENS["</s>"]
    window = windows_of(next(tokenize_passages([("w1", "w2 w3")], tokenizer)), 16, 4)[0]
    assert [token for token, _ in window.tokens] == [8, end, 9, 10, end]
    tokenizer.eos_token = tokenizer.sep_token = None
    with pytest.raises(ModelError, match="neither a CLS token in its template nor an EOS or SEP token"):
        list(tokenize_passages([("w1", "w2")], tokenizer))


@pytest.mark.parametrize("family", ["bert", "roberta", "t5"])
def test_a_window_that_holds_all_is_the_tokenizers_own_pair(family: str) -> None:
    tokenizer = tiny_tokenizer(family)
    pair = "w1 w2 w3", "w4 w5 w6 w7"
    if family == "roberta":
        tokenizer.cls_token = "<s>"
    window = windows_of(next(tokenize_passages([pair], tokenizer)), 32, 4)[0]
    encoded = tokenizer(*pair)
    assert [token for token, _ in window.tokens] == encoded["input_ids"]
    if "token_type_ids" in tokenizer.model_input_names:
        assert [kind for _, kind in window.tokens] == encoded["token_type_ids"]


def test_texts_that_the_tokenizer_drops_give_a_window_all_the_same() -> None:
    tokenizer = tiny_tokenizer()
    for pair, at in ((("w1", ""), 4), (("", "w1"), 2)):
        found = windows_of(next(tokenize_passages([pair], tokenizer)), 16, 4)
        assert [token for token, _ in found[0].tokens] == tokenizer(*([text] for text in pair))["input_ids"][0]
        assert (len(found), found[0].at, found[0].null) == (1, at, 0)


def test_no_room_at_all() -> None:
    with pytest.raises(ValueError, match="max_length 4 leaves no room beside 3 special tokens"):
        windows_of(passage(3, 3), 4, 0)


def trained_tokenizer(kind: str) -> Any:
    backend = Tokenizer(models.BPE() if kind == "bytes" else models.Unigram())
    sentences = [CONTEXT, "Ben paid then left, Zoë left then."] * 5
    special = ["<s>", "</s>", "<unk>"]
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
    backend.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_tokens_of_words_are_cut_out_without_blanks(kind: str) -> None:
    found = next(tokenize_passages([("Who?", CONTEXT)], trained_tokenizer(kind)))
    for answer in ("Zoë", "paid", "5 €", "Ben 😀", "then Ben left", "left", "😀"):
        start = CONTEXT.index(answer)
        span = tokens_of(found.spans, start, start + len(answer))
        assert span is not None
        text = CONTEXT[found.spans[span[0]][0] : found.spans[span[1]][1]]
        assert text == text.strip()
        assert answer in text
        assert len(text) <= len(answer) + 1, "no more than the punctuation that shares a token"


def test_characters_without_a_token() -> None:
    assert tokens_of([(0, 3), (3, 3), (4, 6)], 3, 4) is None
    assert tokens_of([(0, 3), (3, 3), (4, 6)], 2, 5) == (0, 2)


# --- scores ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [1, 3, 50])
def test_best_spans_are_those_of_a_plain_search(longest: int) -> None:
    generator = torch.Generator().manual_seed(longest)
    start, end = (torch.randn(4, 12, generator=generator) for _ in range(2))
    allowed = torch.rand(4, 12, generator=generator) < 0.6
    allowed[3] = False
    values, first, last = best_spans(start, end, allowed, longest, 5)
    for row in range(4):
        places = [at for at in range(12) if allowed[row, at]]
        pairs = [(a, b) for a in places for b in places if a <= b < a + longest]
        expected = sorted(pairs, key=lambda pair: -float(start[row, pair[0]] + end[row, pair[1]]))[:5]
        kept = values[row] != -float("inf")
        assert list(zip(first[row][kept].tolist(), last[row][kept].tolist(), strict=True)) == expected
        assert values[row][kept].tolist() == [float(start[row, a] + end[row, b]) for a, b in expected]


def test_position_loss_is_cross_entropy_over_what_is_not_padding() -> None:
    logits, targets = torch.randn(3, 7), torch.tensor([0, 4, 2])
    mask = torch.ones(3, 7, dtype=torch.bool)
    for smoothing in (0.0, 0.2):
        expected = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        assert float(position_loss(logits, targets, mask, smoothing)) == pytest.approx(float(expected), rel=1e-6)
        mask_short = mask.clone()
        mask_short[:, 5:] = False
        expected = functional.cross_entropy(logits[:, :5], targets, reduction="sum", label_smoothing=smoothing)
        assert float(position_loss(logits, targets, mask_short, smoothing)) == pytest.approx(float(expected), rel=1e-6)


def test_padding_gets_no_gradient_and_makes_none_of_it_undefined() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    position_loss(logits, torch.tensor([4, 1]), mask, 0.1).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert logits.grad[1, 2:].tolist() == [0.0, 0.0, 0.0]


def part(null: float, *spans: tuple[float, int, int]) -> dict[str, Any]:
    scores, starts, ends = (
        (np.array(values) for values in zip(*spans, strict=True)) if spans else (np.zeros(0), *[np.zeros(0, int)] * 2)
    )
    return {"null": null, "scores": scores.astype(np.float32), "starts": starts, "ends": ends}


def test_merged_spans_keep_the_best_of_equal_ones_in_any_order() -> None:
    parts = [part(3.0, (5.0, 0, 4), (1.0, 2, 4)), part(-1.0, (6.0, 2, 4), (5.0, 0, 3)), part(9.0)]
    for order in itertools.permutations(parts):
        found = merged_spans(order, 3)
        assert found["null"] == -1.0
        assert list(zip(found["scores"], found["starts"], found["ends"], strict=True)) == [(6.0, 2, 4), (5.0, 0, 3), (5.0, 0, 4)]
    assert len(merged_spans(parts, 1)["scores"]) == 1


def test_shown_spans_share_one_probability() -> None:
    found = shown_spans(part(2.0, (2.0, 0, 3), (0.0, 4, 8)), CONTEXT, none=True)
    assert [(entry["answer"], entry["start"], entry["end"]) for entry in found] == [("Zoë", 0, 3), ("", None, None), ("paid", 4, 8)]
    assert sum(entry["score"] for entry in found) == pytest.approx(1.0)
    assert found[0]["score"] == found[1]["score"] == pytest.approx(found[2]["score"] * np.exp(2.0))
    assert [entry["answer"] for entry in shown_spans(part(2.0, (2.0, 0, 3)), CONTEXT, none=False)] == ["Zoë"]
    assert shown_spans(part(2.0), CONTEXT, none=False) == [{"answer": "", "start": None, "end": None, "score": 1.0}]


def test_the_threshold_needs_both_kinds_of_questions() -> None:
    answered = {"context": CONTEXT, "answers": [{"text": "Zoë", "answer_start": 0}]}
    none = {"context": CONTEXT, "answers": []}
    predictions = [part(1.0, (4.0, 0, 3)), part(3.0, (4.0, 4, 8))]
    assert no_answer_threshold(predictions, [answered, none]) == -2.0
    assert no_answer_threshold(predictions, [answered, answered]) is None
    assert no_answer_threshold([predictions[0], part(0.0)], [answered, none]) is None
