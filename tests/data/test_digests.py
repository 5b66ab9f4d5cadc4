from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.data.canonical import canonical
from ftkit.data.digests import EqualRows, KnownDigests, as_bytes, codes_of, from_bytes, index_type, row_digests
from ftkit.data.splits import table_from_rows

# Few values in each half, so that digests often share one half and not the other.
DIGESTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40).map(
    lambda pairs: np.array(pairs, dtype=np.uint64)
)


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=30))
def test_digests_of_texts_are_those_of_their_json(rows: list[tuple[str, str]]) -> None:
    kept = [row for row in rows if not any("\ud800" <= sign <= "\udfff" for text in row for sign in text)]
    if not kept:
        return
    table = table_from_rows([{"a": one, "b": other} for one, other in kept], "input")
    expected = [hashlib.blake2b(canonical(list(row)), digest_size=16).digest() for row in kept]
    assert as_bytes(row_digests(table, ["a", "b"])) == expected


def test_digests_of_other_values() -> None:
    rows: list[dict[str, Any]] = [{"a": "x", "n": 1}, {"a": None, "n": 2}, {"a": "x", "n": 1}]
    digests = row_digests(table_from_rows(rows, "input"), ["a", "n"])
    assert digests.dtype == np.uint64
    assert digests.shape == (3, 2)
    assert as_bytes(digests)[1] == hashlib.blake2b(b"[null,2]", digest_size=16).digest()
    assert (digests[0] == digests[2]).all()


def test_they_sort_like_their_bytes() -> None:
    data = [bytes([first]) * 8 + bytes([second]) * 8 for first in (0, 1, 127, 128, 255) for second in (0, 128, 255)]
    digests = from_bytes(b"".join(data[::-1]))
    assert [as_bytes(digests)[row] for row in EqualRows(digests).order.tolist()] == sorted(data)


@given(DIGESTS)
def test_equal_rows(digests: np.ndarray) -> None:
    equal = EqualRows(digests)
    values = [tuple(pair) for pair in digests.tolist()]
    groups = [equal.order[start:end].tolist() for start, end in zip(equal.starts[:-1], equal.starts[1:], strict=True)]
    assert groups == [[row for row, value in enumerate(values) if value == wanted] for wanted in sorted(set(values))]
    assert [groups[number] for number in equal.group_of_row().tolist()] == [
        next(group for group in groups if row in group) for row in range(len(values))
    ]


@given(DIGESTS, DIGESTS)
def test_known_digests(known: np.ndarray, asked: np.ndarray) -> None:
    index = KnownDigests(known)
    values = [tuple(pair) for pair in known.tolist()]
    for value, number in zip(map(tuple, asked.tolist()), index.find(asked).tolist(), strict=True):
        assert (int(index.first[number]) if number >= 0 else -1) == (values.index(value) if value in values else -1)
    assert [int(index.first[number]) for number in index.group_of_row.tolist()] == [values.index(value) for value in values]


def test_codes() -> None:
    codes = codes_of(iter(["b", None, "a", "b", 3]), 5)
    assert codes.numbers.tolist() == [0, 1, 2, 0, 3]
    assert codes.numbers.dtype == np.int32
    assert codes.values == ["b", None, "a", 3]
    assert codes_of([], 0).numbers.tolist() == []
    with pytest.raises(TypeError):
        codes_of([["a"]], 1)  # type: ignore[list-item]


def test_the_smallest_type_that_holds_all_row_numbers(folder: Path) -> None:
    assert index_type(2**31 - 1) is np.int32
    assert index_type(2**31) is np.int64
