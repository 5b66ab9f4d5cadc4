from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .files import ROWS, failure, read, write_jsonl


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.json"])
def test_sources_beyond_the_limit_are_kept_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows = [{"text": f"row {number} " * 20, "label": str(number)} for number in range(2000)]
    write_jsonl(folder / "x.jsonl", rows)
    (folder / "x.json").write_text(json.dumps(rows))
    (folder / "x.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet")
    in_memory = read(name)
    monkeypatch.setattr("ftkit.data.spilling.SPILL_BYTES", 50_000)
    for module in ("jsonl", "delimited", "json_file"):
        monkeypatch.setattr(f"ftkit.data.readers.{module}.CHUNK_ROWS", 100)
    before = pa.total_allocated_bytes()
    table = read(name)
    # The rows themselves are in a mapped file that has no name any more.
    assert pa.total_allocated_bytes() - before < 100_000
    assert list((folder.parent / "cache/tables").iterdir()) == []
    assert list(table) == rows
    assert table.fingerprint() == in_memory.fingerprint()
    assert table.place(1999) == in_memory.place(1999)
    assert table.rows([1999, 0, 7]) == [rows[1999], rows[0], rows[7]]


def test_a_broken_line_leaves_nothing_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftkit.data.spilling.SPILL_BYTES", 100)
    monkeypatch.setattr("ftkit.data.readers.jsonl.CHUNK_ROWS", 2)
    (folder / "x.jsonl").write_text('{"text": "some text that is long enough"}\n' * 50 + "{\n")
    assert "x.jsonl:51:2: invalid JSON" in failure("x.jsonl")
    assert list((folder.parent / "cache/tables").iterdir()) == []


def test_columns_that_change_type_while_spilling(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftkit.data.spilling.SPILL_BYTES", 100)
    monkeypatch.setattr("ftkit.data.readers.jsonl.CHUNK_ROWS", 5)
    rows: list[dict[str, Any]] = [{"text": "some text", "score": number} for number in range(20)]
    rows += [{"text": "some text", "score": None} for _ in range(5)]
    rows += [{"text": "some text", "score": number / 4} for number in range(20)]
    write_jsonl(folder / "x.jsonl", rows)
    assert [row["score"] for row in read("x.jsonl")] == [row["score"] for row in rows]


def test_a_full_cache_folder_is_explained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftkit.data.spilling.SPILL_BYTES", 10)
    (folder.parent / "cache").write_text("a file where the folder should be")
    write_jsonl(folder / "x.jsonl", ROWS)
    assert "cannot write to the cache folder" in failure("x.jsonl")


def test_an_undecodable_line_leaves_nothing_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftkit.data.spilling.SPILL_BYTES", 100)
    monkeypatch.setattr("ftkit.data.readers.text.CHUNK_ROWS", 2)
    (folder / "x.txt").write_bytes(b"some text that is long enough\n" * 50 + b"\xff\n")
    assert "x.txt, line 51: encoding: byte 0xFF" in failure("x.txt")
    assert list((folder.parent / "cache/tables").iterdir()) == []
