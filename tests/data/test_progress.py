from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftkit.data.progress import CountedRows, Meter
from ftkit.data.sources import read_source
from ftkit.data.splits import load_splits, table_from_rows
from ftkit.recipe.schema import DataSpec, SourceSpec

from .files import write_jsonl
from .toy_task import ToyTask

ROWS: list[dict[str, Any]] = [{"text": f"row {number} " * 5, "label": "ab"[number % 2]} for number in range(5000)]


class Watch:
    """Notes what it is told: [part, [(done, total, share)]]."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[tuple[int, int | None, float | None]]]] = [("", [])]

    def part(self, name: str) -> None:
        self.told.append((name, []))

    def progress(self, done: int, total: int | None, share: float | None = None) -> None:
        self.told[-1][1].append((done, total, share))


def test_every_part_counts_all_rows(folder: Path) -> None:
    write_jsonl(folder / "train.jsonl", ROWS)
    write_jsonl(folder / "test.jsonl", [*ROWS[:3], {"text": "another", "label": "a"}])
    watch = Watch()
    spec = DataSpec.model_validate({"train": "train.jsonl", "test": "test.jsonl", "split": {"validation": 0.1}})
    splits = load_splits(spec, ToyTask(), folder, watch)
    splits.fingerprints(watch)
    parts = dict(watch.told)
    assert list(parts) == [
        "",
        "reading train",
        "reading test",
        "checking train",
        "checking test",
        "dividing rows",
        "comparing splits",
        "learning from train",
        "checking train again",
        "checking validation again",
        "checking test again",
        "hashing rows",
    ]
    assert parts["reading train"][-1] == (5000, None, 1.0)
    for name, rows in {
        "checking train": 5000,
        "dividing rows": 5000,
        "comparing splits": 4500,
        "learning from train": 4500,
    }.items():
        assert [done for done, _, _ in parts[name]] == sorted(done for done, _, _ in parts[name]) or name == "comparing splits"
        assert parts[name][-1] == (rows, rows, None)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.csv", "x.json", "x.parquet"])
def test_reading_tells_rows_and_the_share_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in ("jsonl", "delimited", "json_file"):
        monkeypatch.setattr(f"ftkit.data.readers.{module}.CHUNK_ROWS", 500)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    content = {
        "x.jsonl": lines.encode(),
        "x.jsonl.gz": gzip.compress(lines.encode()),
        "x.csv": ("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)).encode(),
        "x.json": json.dumps(ROWS).encode(),
    }
    if name in content:
        (folder / name).write_bytes(content[name])
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), folder / name, row_group_size=500)
    watch = Watch()
    read_source(SourceSpec(path=name), base=folder, watch=watch)
    told = watch.told[0][1]
    assert told[-1][0] == 5000
    shares = [share for _, _, share in told if share is not None]
    assert len(shares) == len(told)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    # Small files are read into a buffer in one piece.
    assert 0 < shares[0] <= 1.0


def test_shares_of_several_files(folder: Path) -> None:
    for number in range(4):
        write_jsonl(folder / f"part-{number}.jsonl", ROWS[: 100 * (number + 1)])
    watch = Watch()
    read_source(SourceSpec(path="part-*.jsonl"), base=folder, watch=watch)
    told = watch.told[0][1]
    assert [done for done, _, _ in told] == [100, 300, 600, 1000]
    assert [share for _, _, share in told] == pytest.approx([0.1, 0.3, 0.6, 1.0], abs=0.02)


def test_a_source_of_unknown_size_has_no_share() -> None:
    watch = Watch()
    meter = Meter(watch, [0])
    meter.add(7)
    assert watch.told[0][1] == [(7, None, None)]


def test_counted_rows_are_the_rows() -> None:
    table, watch = table_from_rows(ROWS, "input"), Watch()
    rows = CountedRows(table, watch)
    assert list(rows) == list(rows) == ROWS
    assert len(rows) == 5000
    assert rows[4999] == ROWS[4999]
    assert watch.told[0][1][:2] == [(4096, 5000, None), (5000, 5000, None)]
