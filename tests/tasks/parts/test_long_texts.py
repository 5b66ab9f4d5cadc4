from __future__ import annotations

import pytest

from ftkit.tasks.parts.long_texts import shorten
from tests.tiny import tiny_tokenizer

TEXT = " ".join(f"w{number}" for number in range(20))


def pieces(family: str, max_length: int, stride: int | None, texts: list[str] | None = None) -> list[list[str]]:
    tokenizer = tiny_tokenizer(family)
    found = shorten(texts or [TEXT], tokenizer, max_length, stride=stride)
    assert all(item["length"] == len(item["input_ids"]) <= max_length for item in found)
    return [tokenizer.convert_ids_to_tokens(item["input_ids"]) for item in found]


@pytest.mark.parametrize(("family", "first", "last"), [("bert", ["<cls>"], ["<sep>"]), ("llama", [], [])])
def test_head_and_tail(family: str, first: list[str], last: list[str]) -> None:
    room = 10 - len(first) - len(last)
    head = round(room / 4)
    words = TEXT.split()
    assert pieces(family, 10, None) == [[*first, *words[:head], *words[20 - (room - head) :], *last]]


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("count", [9, 8, 10, 16, 20])
def test_windows_hold_every_word_and_no_window_is_inside_another(stride: int, count: int) -> None:
    words = TEXT.split()[:count]
    found = pieces("bert", 10, stride, [" ".join(words)])
    assert all(piece[0] == "<cls>" and piece[-1] == "<sep>" for piece in found)
    starts = [words.index(piece[1]) for piece in found]
    assert starts == list(range(0, stride * len(found), stride))
    assert {word for piece in found for word in piece[1:-1]} == set(words)
    ends = [words.index(piece[-2]) for piece in found]
    assert ends == sorted(set(ends))


def test_short_texts_stay_whole_and_rows_are_told_apart() -> None:
    found = shorten(["w1 w2", TEXT, "w3"], tiny_tokenizer("bert"), 10, stride=8)
    assert [item["row"] for item in found] == [0, 1, 1, 1, 2]
    assert not any(item["truncated"] for item in found)
    assert [item["truncated"] for item in shorten(["w1 w2", TEXT], tiny_tokenizer("bert"), 10, stride=None)] == [False, True]


def test_token_types_are_cut_alike() -> None:
    tokenizer = tiny_tokenizer("bert")
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    found = shorten([TEXT], tokenizer, 10, stride=5)
    assert all(len(item["token_type_ids"]) == item["length"] for item in found)
