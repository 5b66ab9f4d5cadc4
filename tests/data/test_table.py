from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ftkit.data.sources import read_source, read_sources
from ftkit.data.splits import table_from_rows
from ftkit.data.table import Table
from ftkit.errors import DataError
from ftkit.recipe.schema import SourceSpec

ROWS = [{"text": f"row {number}", "label": number % 3} for number in range(10_000)]


def test_rows_selections_and_places() -> None:
    table = table_from_rows(ROWS, "input")
    assert len(table) == 10_000
    assert table[3] == ROWS[3]
    assert table[-1] == ROWS[-1]
    assert list(table) == ROWS
    chosen = table.select(np.array([9000, 5, 5]))
    assert list(chosen) == [ROWS[9000], ROWS[5], ROWS[5]]
    again = chosen.select(np.array([2, 0]))
    assert list(again) == [ROWS[5], ROWS[9000]]
    assert [again.place(index) for index in range(2)] == ["input, row 6", "input, row 9001"]
    assert table.rows([]) == []
    assert list(table.select(np.array([], dtype=np.int64))) == []
    with pytest.raises(IndexError):
        table.rows([10_000])


def test_concatenation_keeps_rows_places_and_order() -> None:
    first = table_from_rows(ROWS[:10], "one").select(np.array([4, 2]))
    second = table_from_rows([{"text": "x", "note": "n"}], "two", first_row=7)
    table = Table.concatenate([first, second])
    assert list(table) == [
        {"text": "row 4", "label": 1, "note": None},
        {"text": "row 2", "label": 2, "note": None},
        {"text": "x", "label": None, "note": "n"},
    ]
    assert [table.place(index) for index in range(3)] == ["one, row 5", "one, row 3", "two, row 7"]
    assert table.rows([2, 0]) == [table[2], table[0]]


def test_concatenation_of_different_types() -> None:
    whole, floats = table_from_rows([{"x": 1}], "one"), table_from_rows([{"x": 0.5}], "two")
    assert [type(row["x"]) for row in Table.concatenate([whole, floats])] == [float, float]
    words = table_from_rows([{"x": "a"}], "three")
    with pytest.raises(DataError, match="three: x: the column holds text here, but a whole number in one"):
        Table.concatenate([whole, words])
    assert "x" in Table.concatenate([whole, words], conflicts="note").conflicts


def test_projection_renames_and_combines() -> None:
    table = table_from_rows([{"a": 1, "b": 0, "body": "x"}, {"a": 0, "b": 1, "body": "y"}], "input")
    projected = table.project({"text": "body", "label": ["a", "b"]})
    assert list(projected) == [{"text": "x", "label": [1, 0]}, {"text": "y", "label": [0, 1]}]
    assert list(projected.project({"label": "label"})) == [{"label": [1, 0]}, {"label": [0, 1]}]
    assert Table.concatenate([projected, projected])[3]["label"] == [0, 1]
    assert projected.select(np.array([1])).column("label") == [[0, 1]]
    with pytest.raises(KeyError):
        table.project({"text": "absent"})


def test_fingerprint_follows_values_and_order_alone() -> None:
    table = table_from_rows(ROWS, "input")
    parts = Table.concatenate([table_from_rows(ROWS[:33], "one"), table_from_rows(ROWS[33:], "two")])
    assert parts.fingerprint() == table.fingerprint()
    everything = np.arange(len(ROWS))
    assert table.select(everything).fingerprint() == table.fingerprint()
    assert table.select(everything[::-1]).fingerprint() != table.fingerprint()
    assert table.project({"text": "text", "class": "label"}).fingerprint() != table.fingerprint()
    changed = [*ROWS[:-1], {**ROWS[-1], "label": 7}]
    assert table_from_rows(changed, "input").fingerprint() != table.fingerprint()
    assert table_from_rows([{"x": 1}], "a").fingerprint() != table_from_rows([{"x": "1"}], "a").fingerprint()


def test_weights(folder: Path) -> None:
    (folder / "a.txt").write_text("a\nb\n")
    (folder / "b.txt").write_text("c\n")
    plain = read_source(SourceSpec(path="a.txt"), base=folder)
    assert plain.weights() is None
    sources = [SourceSpec(path="a.txt", weight=0.5), SourceSpec(path="b.txt", weight=2.0)]
    table = Table.concatenate(read_sources(sources, split="train", base=folder))
    weights = table.weights()
    assert weights is not None
    assert weights.tolist() == [0.5, 0.5, 2.0]
    chosen = table.select(np.array([2, 0])).weights()
    assert chosen is not None
    assert chosen.tolist() == [2.0, 0.5]


def test_rows_given_in_memory() -> None:
    rows = [{"x": np.float32(0.5), "pixels": np.zeros((2, 2)), "raw": {"bytes": b"\x00"}, "yes": True}, {"yes": False}]
    table = table_from_rows(rows, "input")
    assert table[0] == {"x": 0.5, "pixels": [[0.0, 0.0], [0.0, 0.0]], "raw": {"bytes": b"\x00"}, "yes": True}
    assert table[1] == {"x": None, "pixels": None, "raw": None, "yes": False}
    assert "a value of type complex cannot be read" in str(table_from_rows([{"x": 1j}], "input").conflicts["x"])
    with pytest.raises(DataError, match="input: holds no rows"):
        table_from_rows([], "input")
