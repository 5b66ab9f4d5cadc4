"""Results say which row they belong to, as JSON lines and as tables."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

import ftkit as package
from ftkit.run.carried_columns import carried_columns
from tests.cli.conftest import Run, strict_json

ROWS = [
    {"id": "b-7", "text": "w1 w2 w3", "label": "cold", "note": 'a "quoted", text\nof two lines'},
    {"id": 12, "text": "w21", "label": "warm", "note": None},
    {"id": None, "text": "w22 w1", "label": "cold", "note": "ä"},
]


@pytest.fixture
def rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    written = [{**row, "id": None if row["id"] is None else str(row["id"])} for row in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    return path


def lines(text: str) -> list[Any]:
    return [strict_json(line) for line in text.splitlines()]


def table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter=delimiter))


def test_an_id_comes_before_the_result_and_order_is_kept(ftkit: Run, trained: Path, rows: Path) -> None:
    found = lines(ftkit("predict", trained, "--input", rows, "--batch-size", "2").out)
    assert [list(row) for row in found] == [["id", "label", "score", "probabilities"]] * 3
    assert [row["id"] for row in found] == ["b-7", "12", None]
    alone = lines(ftkit("predict", trained, *(word for row in ROWS for word in ("--text", row["text"]))).out)
    assert [set(row) for row in alone] == [{"label", "score", "probabilities"}] * 3
    assert [row["probabilities"] for row in found] == [pytest.approx(row["probabilities"], abs=1e-6) for row in alone]


def test_ids_keep_their_type(ftkit: Run, trained: Path, folder: Path) -> None:
    Path("numbers.jsonl").write_text('{"id": 3, "text": "w1"}\n{"id": 1, "text": "w2"}\n')
    assert [row["id"] for row in lines(ftkit("predict", trained, "--input", "numbers.jsonl").out)] == [3, 1]
    Path("texts.csv").write_text("id,text\n007,w1\n")
    assert lines(ftkit("predict", trained, "--input", "texts.csv").out)[0]["id"] == "007"


def test_all_columns_are_kept_on_demand_and_results_keep_their_names(ftkit: Run, trained: Path, rows: Path) -> None:
    found = lines(ftkit("predict", trained, "--input", rows, "--keep-columns").out)
    expected = ["id", "text", "input_label", "note", "label", "score", "probabilities"]
    assert [list(row) for row in found] == [expected] * 3
    assert [row["note"] for row in found] == [row["note"] for row in ROWS]
    assert [row["input_label"] for row in found] == ["cold", "warm", "cold"]
    assert lines(ftkit("predict", trained, "--text", "w1", "--keep-columns").out)[0]["text"] == "w1"


@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("TSV", "\t")])
def test_a_table_holds_what_json_lines_hold(ending: str, delimiter: str, ftkit: Run, trained: Path, rows: Path) -> None:
    options = ["--input", rows, "--keep-columns", "--output"]
    assert ftkit("predict", trained, *options, "out.jsonl").code == 0
    ended = ftkit("predict", trained, *options, f"out.{ending}")
    assert ended.out == f"3 predictions in out.{ending}\n"
    plain, found = lines(Path("out.jsonl").read_text(encoding="utf-8")), table(Path(f"out.{ending}"), delimiter)
    assert list(found[0]) == ["id", "text", "input_label", "note", "label", "score", "probabilities.cold", "probabilities.warm"]
    for row, cells in zip(plain, found, strict=True):
        assert [cells[name] for name in ("id", "text", "note", "label")] == [
            row[name] or "" for name in ("id", "text", "note", "label")
        ]
        assert float(cells["probabilities.cold"]) == row["probabilities"]["cold"]


def test_entries_that_only_some_results_have_get_a_column_and_lists_are_json(
    ftkit: Run, trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftkit.run.predictor import Predictor

    results = [{"text": "a", "complete": True}, {"text": "", "spans": [{"n": 1}], "complete": False, "empty": {}, "none": None}]
    monkeypatch.setattr(Predictor, "predict", lambda *_, **__: iter(results))
    assert ftkit("predict", trained, "--text", "w1", "--output", "out.csv", "--json").document()["rows"] == 2
    assert table(Path("out.csv")) == [
        {"text": "a", "complete": "true", "spans": "", "empty": "", "none": ""},
        {"text": "", "complete": "false", "spans": '[{"n": 1}]', "empty": "{}", "none": ""},
    ]
    assert [path.name for path in folder.iterdir()] == ["out.csv"]


def test_a_bad_row_leaves_no_half_table(ftkit: Run, trained: Path, folder: Path) -> None:
    Path("bad.jsonl").write_text('{"text": "w1"}\n{"text": ""}\n', encoding="utf-8")
    assert ftkit("predict", trained, "--input", "bad.jsonl", "--output", "out.csv", "--batch-size", "1").code == 2
    assert [path.name for path in folder.iterdir()] == ["bad.jsonl"]


def test_columns_of_any_type_can_be_kept(ftkit: Run, trained: Path, folder: Path) -> None:
    columns = {
        "text": ["w1"],
        "day": pa.array([17_000], pa.date32()),
        "image": [{"bytes": b"\x00", "path": "a.png"}],
        "raw": [b"\xff"],
        "share": [float("nan")],
        "tags": [["x", "y"]],
    }
    pa.parquet.write_table(pa.table(columns), "rows.parquet")
    (found,) = lines(ftkit("predict", trained, "--input", "rows.parquet", "--keep-columns").out)
    assert found["tags"] == ["x", "y"]
    assert found["day"] == "2016-07-18"
    assert found["image"] == {"path": "a.png"}
    assert (found["raw"], found["share"]) == (None, None)


def test_the_api_carries_the_same_columns(trained: Path) -> None:
    predictor = package.load(trained)
    rows = [{"id": 5, "text": "w1", "extra": 1.5}, {"text": "w2"}]
    assert [row.get("id", "none") for row in predictor.predict(rows)] == [5, "none"]
    assert [row.get("extra", "none") for row in predictor.predict(rows, keep_columns=True)] == [1.5, "none"]
    assert carried_columns({"id": 1, "text": "a"}, {"id": 2}, everything=False) == {"input_id": 1}


def test_what_exists_is_replaced_only_when_asked_and_the_input_never(ftkit: Run, trained: Path, rows: Path) -> None:
    given = rows.read_text()
    Path("out.jsonl").write_text("mine")
    Path(".tmp-out.jsonl").write_text("mine too")
    ended = ftkit("predict", trained, "--input", rows, "--output", "out.jsonl")
    assert (ended.code, Path("out.jsonl").read_text()) == (2, "mine")
    assert "exists already" in ended.err
    assert "--force" in ended.err
    for same in (rows, Path("..") / rows.parent.name / rows.name):
        ended = ftkit("predict", trained, "--input", rows, "--output", same, "--force")
        assert (ended.code, "is the file that is read" in ended.err) == (2, True)
    assert ftkit("predict", trained, "--input", rows, "--output", "out.jsonl", "--force").code == 0
    assert len(lines(Path("out.jsonl").read_text())) == 3
    assert (Path(".tmp-out.jsonl").read_text(), rows.read_text()) == ("mine too", given)


def test_no_carried_column_is_lost(ftkit: Run, trained: Path) -> None:
    row = {"text": "w1", "label": "a", "input_label": "b", "probabilities.cold": "c", "input_probabilities.cold": "d"}
    Path("odd.jsonl").write_text(json.dumps(row) + "\n")
    carried = {
        "text": "w1",
        "input_input_label": "a",
        "input_label": "b",
        "input_input_probabilities.cold": "c",
        "input_probabilities.cold": "d",
    }
    (found,) = lines(ftkit("predict", trained, "--input", "odd.jsonl", "--keep-columns").out)
    assert {name: found[name] for name in carried} == carried
    assert ftkit("predict", trained, "--input", "odd.jsonl", "--keep-columns", "--output", "odd.csv").code == 0
    (cells,) = table(Path("odd.csv"))
    assert {name: cells[name] for name in carried} == carried
    assert float(cells["probabilities.cold"]) == found["probabilities"]["cold"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "w1", "x": ' + "[" * 101 + "]" * 101 + "}", "invalid JSON: nested too deeply"),
        ('{"text": "w1", "text": "w2"}', "the key 'text' comes twice"),
    ],
)
def test_lines_that_files_refuse_are_refused_from_standard_input(
    ftkit: Run, trained: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "w1"}\n' + line + "\n"))
    ended = ftkit("predict", trained, "--input", "-", "--keep-columns")
    assert ended.code == 2
    assert message in ended.err
    assert "standard input" in ended.err
    Path("odd.jsonl").write_text(line + "\n")
    assert message in ftkit("predict", trained, "--input", "odd.jsonl").err


def test_a_full_disk_is_said_with_the_file(ftkit: Run, trained: Path) -> None:
    ended = ftkit("predict", trained, "--text", "w1", "--output", "/dev/full")
    assert ended.code == 2
    assert "/dev/full: the file system refused: No space left" in ended.err
