from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ftkit.recipe.overriding import resolve_references
from ftkit.recipe.reading import read_text
from ftkit.recipe.writing import block_lines, flow

AWKWARD = [
    "@text", "", " ", "-", "- a", "a ", "a: b", "a:b", ":", "a #b", "#5", "null", "1e5", "0x1f", "yes", "~", "...", "---", "?", "!tag",
    "&a", "*a", "%a", "`a`", "'a'", '"a"', "a\\b", "a\nb", "a\tb", "x\x85y", "\x7f", "\u2028", "\u2029", "\ufeff",
    "\ufffe", "\U0001f600", "\ud800", "\0", "${x}", "$${x}", "$", "[a]", "{a: b}", "a,b", "=", "<<", "\xa0", "k" * 1100,
]  # fmt: skip
TEXTS = st.text() | st.sampled_from(AWKWARD)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


def read(text: str) -> Any:
    document = read_text(text, "r")
    resolve_references(document)
    return document.value


@given(VALUES)
def test_values_in_flow_style_read_back_the_same(value: Any) -> None:
    assert read(f"a: {flow(value)}\n") == {"a": value}


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=4))
@example({"sources": [{"path": "@a", "k" * 1100: 1}, {"path": "b"}], "weights": {"k" * 1100: {"${x}": 2}}})
def test_mappings_in_block_style_read_back_the_same(values: dict[str, Any]) -> None:
    wrapped = {"keys": values}
    assert read("\n".join(block_lines(wrapped, {"keys": "why"})) + "\n") == wrapped


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_stay_what_they_are(text: str) -> None:
    assert read("\n".join(block_lines({"a": {text or "b": [text]}}, {}))) == {"a": {text or "b": [text]}}


@pytest.mark.parametrize("text", ["bert-base", "data/rows.jsonl", "package:a/b#300", "a b", "größe", "C:/x"])
def test_usual_texts_need_no_quotes(text: str) -> None:
    assert flow(text) == text if "#" not in text else f'"{text}"'


def test_comments_stand_behind_their_values() -> None:
    assert block_lines({"a": {"b": 1}, "c": [{"d": "x"}]}, {"a.b": "why"}) == ["a:", "  b: 1  # why", "c:", "  - d: x"]
