"""Tokens from tokenizers written in Python: the same as from their own call, and cut as those of fast ones are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from ftkit.errors import ModelError, RecipeError
from ftkit.tasks.parts.long_texts import shorten
from ftkit.tasks.parts.target_texts import encode_targets, end_token, language_place, set_languages
from ftkit.tasks.parts.texts import tokenize
from ftkit.tasks.parts.tokens import around, gives_offsets, plain_ids, tokens_of
from tests.slow_models import (
    PAIRS,
    bertweet_tokenizer,
    byt5_tokenizer,
    m2m_tokenizer,
    marian_tokenizer,
    sw3_tokenizer,
)
from tests.tiny import tiny_tokenizer

TEXTS = [PAIRS[0]["source"], "x", "the old, old house!", " ".join(pair["source"] for pair in PAIRS), "日本 ~"]


@pytest.fixture(scope="module", params=["marian", "m2m", "byt5", "sw3", "bertweet"])
def slow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    makers: dict[str, Callable[[Path], Any]] = {
        "marian": marian_tokenizer,
        "m2m": m2m_tokenizer,
        "byt5": lambda _: byt5_tokenizer(),
        "sw3": sw3_tokenizer,
        "bertweet": bertweet_tokenizer,
    }
    tokenizer = makers[request.param](tmp_path_factory.mktemp(request.param) / "files")
    if hasattr(tokenizer, "src_lang"):
        set_languages(tokenizer, "en", "de")
    return tokenizer


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return marian_tokenizer(tmp_path_factory.mktemp("marian") / "files")


@pytest.fixture(scope="module")
def m2m(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return m2m_tokenizer(tmp_path_factory.mktemp("m2m") / "files")


def test_whole_texts_and_pairs_are_those_of_the_tokenizers_own_call(slow: PreTrainedTokenizerBase) -> None:
    assert not gives_offsets(slow)
    assert [item.ids for item in tokens_of(slow, TEXTS)] == slow(TEXTS)["input_ids"]
    assert [item.ids for item in tokens_of(slow, TEXTS, target=True)] == slow(text_target=TEXTS)["input_ids"]
    assert [item.ids for item in tokens_of(slow, TEXTS, TEXTS[::-1])] == slow(TEXTS, TEXTS[::-1])["input_ids"]


def test_every_token_is_of_a_text_or_around_texts(slow: PreTrainedTokenizerBase) -> None:
    bodies = plain_ids(slow, TEXTS)
    for item, body in zip(tokens_of(slow, TEXTS), bodies, strict=True):
        assert [token for token, text in zip(item.ids, item.texts(), strict=True) if text == 0] == body
    for item, first, second in zip(tokens_of(slow, TEXTS, TEXTS[::-1]), bodies, bodies[::-1], strict=True):
        for number, body in enumerate((first, second)):
            assert [token for token, text in zip(item.ids, item.texts(), strict=True) if text == number] == body


@pytest.mark.parametrize("paired", [False, True])
def test_cut_as_the_tokenizer_itself_cuts(slow: PreTrainedTokenizerBase, paired: bool) -> None:
    pairs = TEXTS[::-1] if paired else None
    for length in (9, 12):
        found = tokenize(TEXTS, pairs, slow, length)
        assert all(item["length"] == len(item["input_ids"]) <= length for item in found)
        if not paired:
            assert [item["input_ids"] for item in found] == slow(TEXTS, truncation=True, max_length=length)["input_ids"]
        whole = slow(TEXTS, pairs)["input_ids"] if pairs else slow(TEXTS)["input_ids"]
        assert [item["truncated"] for item in found] == [len(ids) > length for ids in whole]


def test_targets_keep_their_end_and_language(slow: PreTrainedTokenizerBase) -> None:
    end, added = end_token(slow)
    for (ids, cut), whole in zip(encode_targets(TEXTS, slow, 12), slow(text_target=TEXTS)["input_ids"], strict=True):
        assert ids[-1] == end
        assert len(ids) <= 12
        assert cut == (len(whole) + len(added) > 12)
        if not cut:
            assert ids == [*whole, *added]


def test_long_texts_in_windows_and_by_head_and_tail(slow: PreTrainedTokenizerBase) -> None:
    before, after = around(slow)
    body, room = plain_ids(slow, [TEXTS[3]])[0], 16 - len(before) - len(after)
    windows = shorten([TEXTS[3]], slow, 16, stride=5)
    inner = [item["input_ids"][len(before) : len(item["input_ids"]) - len(after)] for item in windows]
    assert all(item["input_ids"] == [*before, *ids, *after] for item, ids in zip(windows, inner, strict=True))
    assert [ids[:5] for ids in inner[:-1]] == [body[start : start + 5] for start in range(0, 5 * (len(inner) - 1), 5)]
    assert inner[-1] == body[5 * (len(inner) - 1) :]
    (piece,) = shorten([TEXTS[3]], slow, 16, stride=None)
    head = round(room / 4)
    assert piece["input_ids"] == [*before, *body[:head], *body[len(body) - (room - head) :], *after]


def test_marian_reads_and_writes_in_two_vocabularies(marian: Any) -> None:
    text = "the alte house."
    read, written = tokens_of(marian, [text])[0].ids, tokens_of(marian, [text], target=True)[0].ids
    assert read != written
    assert (read[-1], written[-1]) == (marian.eos_token_id,) * 2
    assert tokens_of(marian, [text])[0].ids == read, "looking at targets leaves the tokenizer as it was"
    code = plain_ids(marian, [">>de<< the house"])[0][0]
    assert marian.convert_ids_to_tokens(code) == ">>de<<"


def test_m2m_knows_languages_by_their_codes(m2m: Any) -> None:
    set_languages(m2m, "en", "de")
    english, german = m2m.convert_tokens_to_ids(["__en__", "__de__"])
    assert around(m2m) == ([english], [m2m.eos_token_id])
    assert around(m2m, target=True) == ([german], [m2m.eos_token_id])
    assert language_place(m2m, "de") == (german, True)
    assert encode_targets(["der Baum"], m2m, 32)[0][0][0] == german
    with pytest.raises(RecipeError, match=r"no language 'ger'.*Give its own code"):
        set_languages(m2m, "en", "ger")
    with pytest.raises(RecipeError, match="needs to know the languages"):
        set_languages(m2m, None, None)


def test_marian_takes_no_languages(marian: Any) -> None:
    set_languages(marian, None, None)
    with pytest.raises(RecipeError, match="knows no languages"):
        set_languages(marian, "en", "de")


def test_a_text_that_ends_with_the_end_token_gets_one_more_as_from_fast_tokenizers() -> None:
    tokenizer = byt5_tokenizer()
    assert tokens_of(tokenizer, ["ab</s>"])[0].ids[-2:] == [tokenizer.eos_token_id] * 2
    fast = tiny_tokenizer("t5")
    assert tokens_of(fast, ["w1 </s>"])[0].ids[-2:] == [fast.eos_token_id] * 2


def test_a_tokenizer_that_drops_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byt5_tokenizer()
    monkeypatch.setattr(type(tokenizer), "_tokenize", lambda self, text: [])
    with pytest.raises(ModelError, match="ByT5Tokenizer does not show what it puts around a text"):
        tokens_of(tokenizer, ["b"])
