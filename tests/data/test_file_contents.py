from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftkit.data import plain_files, spilling
from ftkit.data.file_contents import load_contents
from ftkit.data.sources import read_source
from ftkit.data.table import Table
from ftkit.errors import DataError
from ftkit.recipe.schema import SourceSpec


def write(folder: Path, paths: list[str | None], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps({"image": path, "label": "a"}) + "\n" for path in paths), encoding="utf-8")
    return str(folder / name)


def read(path: str) -> Table:
    return load_contents(read_source(SourceSpec(path=path), base=Path.cwd()), "image")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    for number in range(4):
        (tmp_path / "data" / "pictures" / f"{number}.png").write_bytes(b"picture %d" % number)
    (tmp_path / "here" / "own.png").write_bytes(b"own")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "data"


def test_paths_start_from_the_data_file_or_the_working_folder_or_the_root(folder: Path) -> None:
    absolute = str(folder / "pictures" / "3.png")
    table = read(write(folder, ["pictures/1.png", "own.png", absolute, None]))
    assert [row["image"] for row in table] == [
        {"bytes": b"picture 1", "path": "pictures/1.png"},
        {"bytes": b"own", "path": "own.png"},
        {"bytes": b"picture 3", "path": absolute},
        None,
    ]
    assert table[0]["label"] == "a"
    assert table.place(2).endswith("rows.jsonl, line 3")


def test_what_a_file_holds_counts_and_not_its_name(folder: Path) -> None:
    source = write(folder, ["pictures/1.png"])
    before = read(source).fingerprint()
    assert read(source).fingerprint() == before
    (folder / "pictures" / "1.png").write_bytes(b"another picture")
    assert read(source).fingerprint() != before


def test_missing_files_are_named_with_their_lines_and_where_they_were_looked_for(folder: Path) -> None:
    source = write(folder, ["pictures/1.png", "pictures/9.png", *[f"gone/{number}.png" for number in range(24)], "pictures"])
    with pytest.raises(DataError) as caught:
        read(source)
    first, *_, last = caught.value.problems
    assert (first.message, first.key) == ("there is no file 'pictures/9.png'", "image")
    assert first.place.endswith("rows.jsonl, line 2")
    assert str(folder) in first.hint
    assert str(Path.cwd()) in first.hint
    assert (len(caught.value.problems), last.message) == (5, "and 22 more")
    with pytest.raises(DataError, match="'pictures' cannot be read: Is a directory"):
        read(write(folder, ["pictures"]))
    with pytest.raises(DataError, match="cannot be read"):
        read(write(folder, ["a\0b"]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_may_never_end_is_not_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(DataError) as caught:
        read(write(folder, ["pictures/1.png", "/dev/zero", "pipe.png"]))
    for problem, line, name in zip(caught.value.problems, (2, 3), ("/dev/zero", "pipe.png"), strict=True):
        assert problem.place.endswith(f"rows.jsonl, line {line}")
        assert f"{name!r} cannot be read: it is a pipe, a socket or a device; a plain file is expected" in problem.message
        assert problem.hint
    (folder / "classes" / "a").mkdir(parents=True)
    os.mkfifo(folder / "classes" / "a" / "x.txt")
    with pytest.raises(DataError, match=r"classes/a/x\.txt: cannot be read: it is a pipe"):
        read_source(SourceSpec(path=str(folder / "classes")), base=Path.cwd())


def test_files_that_are_too_large_are_not_read(folder: Path) -> None:
    with open(folder / "pictures" / "1.png", "wb") as stream:
        stream.truncate(plain_files.LARGEST_FILE + 2**20)
    with pytest.raises(
        DataError, match=r"line 1.*'pictures/1.png' cannot be read: it has 257 MiB; a file of a row may have 256 MiB"
    ):
        read(write(folder, ["pictures/1.png"]))


def test_only_drawn_rows_are_read(folder: Path) -> None:
    source = write(folder, ["pictures/1.png", "gone.png", "pictures/2.png"])
    whole = read_source(SourceSpec(path=source), base=Path.cwd())
    chosen = load_contents(whole.select(np.array([2, 0])), "image")
    assert [row["image"]["bytes"] for row in chosen] == [b"picture 2", b"picture 1"]


def test_lenient_reading_keeps_the_paths_of_files_that_are_missing(folder: Path) -> None:
    whole = read_source(SourceSpec(path=write(folder, ["pictures/1.png", "gone.png", None])), base=Path.cwd())
    found = [row["image"] for row in load_contents(whole, "image", lenient=True)]
    assert found == [{"bytes": b"picture 1", "path": "pictures/1.png"}, {"bytes": None, "path": "gone.png"}, None]
    with pytest.raises(DataError, match=r"there is no file 'gone\.png'"):
        load_contents(whole, "image")


def test_several_files_each_start_from_their_own_folder(folder: Path) -> None:
    for name in ("x", "y"):
        (folder / name).mkdir()
        (folder / name / "1.png").write_bytes(name.encode())
        write(folder / name, ["1.png"])
    table = read(str(folder / "*" / "rows.jsonl"))
    assert [row["image"]["bytes"] for row in table] == [b"x", b"y"]


def test_images_of_data_sets_that_hold_only_a_path(folder: Path) -> None:
    content = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [{"bytes": b"inside", "path": "pictures/0.png"}, {"bytes": None, "path": "pictures/2.png"}, None]
    pq.write_table(pa.table({"image": pa.array(values, content)}), folder / "rows.parquet")
    assert [row["image"] and row["image"]["bytes"] for row in read(str(folder / "rows.parquet"))] == [b"inside", b"picture 2", None]
    pq.write_table(pa.table({"image": pa.array(values[:1], content)}), folder / "whole.parquet")
    whole = read_source(SourceSpec(path=str(folder / "whole.parquet")), base=Path.cwd())
    assert load_contents(whole, "image") is whole


def test_more_than_memory_should_hold_goes_to_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(folder, [f"pictures/{number % 4}.png" for number in range(50)])
    expected = list(read(source))
    monkeypatch.setattr(spilling, "SPILL_BYTES", 10)
    assert list(read(source)) == expected


def test_a_folder_of_images_and_single_images(folder: Path) -> None:
    pictures = read_source(SourceSpec(path=str(folder / "pictures")), base=Path.cwd())
    assert [row["image"]["path"] for row in pictures] == [f"{number}.png" for number in range(4)]
    assert list(pictures[0]) == ["image"]
    assert pictures.place(1) == str(folder / "pictures" / "1.png")
    some = read_source(SourceSpec(path=str(folder / "pictures" / "[12].png")), base=Path.cwd())
    assert [row["image"]["bytes"] for row in some] == [b"picture 1", b"picture 2"]
    assert some.place(1) == str(folder / "pictures" / "2.png")
    (folder / "pictures" / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="a folder without class folders"):
        read_source(SourceSpec(path=str(folder / "pictures")), base=Path.cwd())
