from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftkit.data.sources import read_source
from ftkit.errors import DataError
from ftkit.recipe.schema import SourceSpec

from .files import ROWS, failure, read, write_jsonl


def write_all_formats(folder: Path) -> list[str]:
    write_jsonl(folder / "x.jsonl", ROWS)
    (folder / "x.jsonl.gz").write_bytes(gzip.compress((folder / "x.jsonl").read_bytes()))
    (folder / "x.json").write_text(json.dumps(ROWS, indent=2))
    (folder / "under.json").write_text(json.dumps({"version": "1.1", "n": 12, "data": ROWS, "after": [1]}))
    (folder / "x.csv").write_text('text,label\none,a\n"two, or so",b\n\n,a\n')
    (folder / "x.tsv").write_text("text\tlabel\none\ta\ntwo, or so\tb\n\ta\n")
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, folder / "x.parquet")
    with pa.ipc.new_file(folder / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(folder / "stream.arrow", table.schema) as stream:
        stream.write_table(table)
    return ["x.jsonl", "x.jsonl.gz", "x.json", "under.json", "x.csv", "x.tsv", "x.parquet", "x.arrow", "stream.arrow"]


def test_all_formats_give_the_same_rows(folder: Path) -> None:
    tables = {name: read(name) for name in write_all_formats(folder)}
    for name, table in tables.items():
        assert list(table) == ROWS, name
        assert table.column_names == ["text", "label"], name
    assert len({table.fingerprint() for table in tables.values()}) == 1


def test_places(folder: Path) -> None:
    write_all_formats(folder)
    assert [read("x.csv").place(index) for index in range(3)] == ["x.csv, line 2", "x.csv, line 3", "x.csv, line 5"]
    assert read("x.jsonl").place(2) == "x.jsonl, line 3"
    assert read("x.json").place(2) == "x.json, row 3"
    assert read("x.parquet").place(2) == "x.parquet, row 3"
    (folder / "breaks.csv").write_text('text\n"two\nlines"\nnext\n')
    assert [read("breaks.csv").place(index) for index in range(2)] == ["breaks.csv, line 2", "breaks.csv, line 4"]
    assert read("breaks.csv")[0]["text"] == "two\nlines"


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.parquet", "x.arrow"])
def test_only_wanted_columns_are_read(folder: Path, name: str) -> None:
    write_all_formats(folder)
    table = read(name, columns={"text", "absent"})
    assert table.column_names == ["text"]
    assert table.source_columns == ["text", "label"]


def test_columns_of_several_kinds_are_kept_on_request(folder: Path) -> None:
    values = ["one", 2, None, 2.5, True, ["x"], {"a": "\ud800"}, 10**30, "\ud800"]
    write_jsonl(folder / "x.jsonl", [{"text": value, "id": number} for number, value in enumerate(values)])
    write_jsonl(folder / "y.jsonl", [{"text": 7, "id": "seven"}])
    assert "text" in read("x.jsonl").conflicts
    table = read_source(SourceSpec(path="*.jsonl"), base=folder, mixed=True)
    assert [row["text"] for row in table] == [*values, 7]
    assert [row["id"] for row in table] == [*range(len(values)), "seven"]
    assert not table.conflicts


def test_text_lines(folder: Path) -> None:
    (folder / "x.txt").write_bytes(b"one\r\n\n   \ntwo  \nthree")
    table = read("x.txt")
    assert [row["text"] for row in table] == ["one", "two  ", "three"]
    assert table.place(1) == "x.txt, line 4"


def test_class_folders(folder: Path) -> None:
    for name in ("b/2.txt", "b/deep/1.txt", "a/9.txt", "b/.hidden", "__pycache__/x.pyc"):
        path = folder / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}\n")
    table = read("docs")
    expected = [("text of a/9.txt\n", "a"), ("text of b/2.txt\n", "b"), ("text of b/deep/1.txt\n", "b")]
    assert [(row["text"], row["label"]) for row in table] == expected
    assert table.place(2) == "docs/b/deep/1.txt"


def test_image_folders(folder: Path) -> None:
    for name in ("cat/1.png", "dog/2.png"):
        (folder / "images" / name).parent.mkdir(parents=True)
        (folder / "images" / name).write_bytes(b"\x89PNG" + name.encode())
    table = read("images")
    assert table[1] == {"image": {"bytes": b"\x89PNGdog/2.png", "path": "dog/2.png"}, "label": "dog"}
    before = table.fingerprint()
    (folder / "images/dog/2.png").write_bytes(b"\x89PNG other")
    assert read("images").fingerprint() != before
    (folder / "images/dog/notes.txt").write_text("x")
    assert "class folders with images and other files: cat/1.png, dog/notes.txt" in failure("images")


def test_folder_without_class_folders(folder: Path) -> None:
    (folder / "docs").mkdir()
    assert "docs: a folder without class folders (it is empty)" in failure("docs")
    (folder / "docs/train.csv").write_text("text\nx\n")
    assert "it holds train.csv" in failure("docs")
    assert "is a folder, but `format: csv` reads files" in failure("docs", format="csv")


def test_a_folder_of_splits_is_none_of_classes(folder: Path) -> None:
    for name in ("s/train/a/1.txt", "s/train/b/2.txt", "s/val/a/3.txt", "one/train/a/1.txt", "two/train/a.txt", "two/test/a.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("w", encoding="utf-8")
    refused = failure("s")
    assert "s: its folders are splits, not classes: train, val" in refused
    assert "Name each under `data`: train: s/train, validation: s/val" in refused
    assert "not classes: train" in failure("one")
    assert "not classes: test, train" in failure("two")
    assert len(read("s/train")) == 2
    (folder / "files").mkdir()
    for name in ("a.parquet", "train.parquet", "README.md"):
        (folder / "files" / name).write_bytes(b"")
    assert "Give a file, as `files/train.parquet`" in failure("files")


def test_saved_datasets(folder: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=["no", "yes"]), "tags": Sequence(ClassLabel(names=["O", "B"]))}
    )
    rows = {"text": ["x", "y", "z"], "label": [1, 0, -1], "tags": [[0, 1], None, []]}
    dataset = Dataset.from_dict(rows, features=features)
    dataset.save_to_disk(folder / "saved")
    DatasetDict({"train": dataset, "test": dataset.select([1])}).save_to_disk(folder / "splits")
    dataset.to_parquet(folder / "typed.parquet")
    for path in ("saved", "splits", "typed.parquet"):
        table = read(path)
        assert [row["label"] for row in table] == ["yes", "no", None], path
        assert [row["tags"] for row in table] == [["O", "B"], None, []], path
    assert [row["text"] for row in read("splits", split="test")] == ["y"]
    assert "has no split 'dev', only: train, test" in failure("splits", split="dev")


def test_datasets_with_selected_rows_share_the_reader(folder: Path) -> None:
    from datasets import Dataset

    from ftkit.data.readers.hub import table_from_dataset
    from ftkit.data.readers.source_file import SourceFile

    dataset = Dataset.from_dict({"text": ["x", "y", "z"], "other": [1, 2, 3]}).select([2, 0])
    table = table_from_dataset(dataset, SourceFile(path=Path(), label="owner/name (train)", columns=frozenset({"text"})))
    assert list(table) == [{"text": "z"}, {"text": "x"}]
    assert table.place(1) == "owner/name (train), row 2"


def test_hub_ids_offline_and_scripts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    from ftkit.data.readers.hub import explain

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for path in ("owner/name", "hub:owner/name", "owner/name#5"):
        message = failure(path)
        assert "cannot load the hub data set 'owner/name'" in message
        assert "save_to_disk(folder)" in message
    script = folder / "script"
    script.mkdir()
    (script / "script.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(RuntimeError) as caught:
        datasets.load_dataset(str(script), split="train")
    message = str(explain(caught.value, "owner/name", "train"))
    assert "is a Python script, which is never run" in message
    assert "refs/convert/parquet" in message
    assert "name one with `split:`" in str(explain(ValueError('Unknown split "dev".'), "owner/name", "dev"))


def test_a_local_folder_is_never_taken_for_a_hub_id(folder: Path) -> None:
    write_jsonl(folder / "data/train.jsonl", ROWS)
    assert "no such file or folder: data/trian. Did you mean 'data/train.jsonl'?" in failure("data/trian")
    (folder / "owner/name/a").mkdir(parents=True)
    (folder / "owner/name/a/1.txt").write_text("x")
    assert list(read("owner/name")) == [{"text": "x", "label": "a"}]


def test_missing_files(folder: Path) -> None:
    write_jsonl(folder / "data/train.jsonl", ROWS)
    assert "no such file or folder: data/trian.jsonl. Did you mean 'data/train.jsonl'?" in failure("data/trian.jsonl")
    assert "no file matches 'data/*.csv'" in failure("data/*.csv")
    assert "the package 'no_such_package' is not installed" in failure("package:no_such_package/x.csv")
    assert "the package 'ftkit' holds no 'no/file.csv'" in failure("package:ftkit/no/file.csv")


def test_relative_to_the_current_folder_first(folder: Path) -> None:
    write_jsonl(folder / "recipes/x.jsonl", ROWS[:1])
    assert len(read("x.jsonl", base=folder / "recipes")) == 1
    write_jsonl(folder / "x.jsonl", ROWS)
    assert len(read("x.jsonl", base=folder / "recipes")) == 3


def test_globs_are_sorted(folder: Path) -> None:
    for name in ("c", "a", "b"):
        write_jsonl(folder / f"data/deep/{name}.jsonl", [{"text": name}])
    assert [row["text"] for row in read("data/*/*.jsonl")] == ["a", "b", "c"]
    table = read("data/**/*.jsonl")
    assert [table.place(index) for index in range(3)] == [f"data/deep/{name}.jsonl, line 1" for name in "abc"]


def test_package_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder / "lib/toy_corpus"
    write_jsonl(package / "data/a.jsonl", ROWS)
    write_jsonl(package / "data/b.jsonl", ROWS)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(folder / "lib"))
    assert len(read("package:toy_corpus/data/a.jsonl")) == 3
    assert len(read("package:toy_corpus/data/*.jsonl")) == 6
    assert len(read("package:toy_corpus/data/a.jsonl#2")) == 2


def test_samples(folder: Path) -> None:
    write_jsonl(folder / "x.jsonl", [{"text": str(number)} for number in range(100)])

    def drawn(seed: int) -> list[int]:
        return [int(row["text"]) for row in read_source(SourceSpec(path="x.jsonl#30"), base=folder, seed=seed)]

    assert drawn(0) == drawn(0) == sorted(drawn(0))
    assert len(set(drawn(0))) == 30
    assert drawn(0) != drawn(1)
    assert "cannot draw 101 rows: the source has 100" in failure("x.jsonl#101")
    assert "cannot draw 0 rows" in failure("x.jsonl#0")


def test_names_with_a_number_sign_or_brackets_are_taken_as_written(folder: Path) -> None:
    write_jsonl(folder / "issue#12.jsonl", ROWS)
    write_jsonl(folder / "data.jsonl#2", ROWS)
    write_jsonl(folder / "data.jsonl", ROWS)
    write_jsonl(folder / "part[1].jsonl", ROWS)
    assert len(read("issue#12.jsonl")) == 3
    assert len(read("issue#12.jsonl#2")) == 2
    assert len(read("data.jsonl#2", format="jsonl")) == 3
    assert len(read("data.jsonl#1")) == 1
    assert len(read("part[1].jsonl")) == 3


def test_unknown_format_and_options_that_do_not_apply(folder: Path) -> None:
    write_all_formats(folder)
    (folder / "rows.dat").write_text("text\nx\n")
    assert "unknown file ending '.dat'. Say `format:`" in failure("rows.dat")
    assert list(read("rows.dat", format="csv")) == [{"text": "x"}]
    assert "`delimiter` has no meaning for format jsonl" in failure("x.jsonl", delimiter=";")
    assert "`encoding` has no meaning for format parquet" in failure("x.parquet", encoding="latin-1")
    assert "`revision` has no meaning for format csv" in failure("x.csv", revision="main")
    assert "is a file, but `format: folder`" in failure("x.csv", format="folder")


def test_delimiter(folder: Path) -> None:
    (folder / "x.csv").write_text("text;label\none;a\n")
    assert list(read("x.csv", delimiter=";")) == [{"text": "one", "label": "a"}]


def test_csv_values_stay_strings(folder: Path) -> None:
    (folder / "x.csv").write_text("text,label\n007,\nNA,1.0\n")
    assert list(read("x.csv")) == [{"text": "007", "label": ""}, {"text": "NA", "label": "1.0"}]


def test_csv_fields_may_be_long(folder: Path) -> None:
    (folder / "x.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert len(read("x.csv")[0]["text"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "text,label\na,b\na,b,c\nx\n", "x.csv, line 3: 3 fields ('a' ...), but the header has 2"),
        ("x.csv", "text,label\na,b\na,b,c\nx\n", "x.csv, line 4: 1 fields ('x' ...), but the header has 2"),
        ("x.csv", 'text,label\na,b\n"never closed,b\nx,y\n', "x.csv, line 3: not valid csv: unexpected end of data"),
        ("x.csv", "text,text\na,b\n", "x.csv, line 1: the header names 'text' more than once"),
        ("x.csv", "text,label\n", "x.csv: holds no rows"),
        ("x.csv", "", "x.csv: the file is empty"),
        ("x.jsonl", "\n\n", "x.jsonl: holds no rows"),
        ("x.jsonl", '{"text": "a"}\n{"text": \n', "x.jsonl:2:10: invalid JSON: Expecting value"),
        ("x.jsonl", '{"text": "a"}\n"b"\n', "x.jsonl, line 2: 'b' is not an object"),
        ("x.jsonl", '[{"text": "a"},\n{"text": "b"}]\n', "set `format: json`"),
        ("x.jsonl", "[" * 100_000 + "\n", "x.jsonl:1:1: invalid JSON: nested too deeply"),
        ("x.json", '[{"text": "a"},\n {"text": b}]', "x.json:2:11: invalid JSON: Expecting value"),
        ("x.json", '[{"text": "a"}\n', "invalid JSON: expected `,`, found the end of the file"),
        ("x.json", '[{"text": "a"}] x', "x.json:1:17: invalid JSON: expected the end of the file, found `x`"),
        ("x.json", '[{"text": "a"}, 3]', "x.json, row 2: 3 is not an object"),
        ("x.json", '{"rows": [], "more": 1}', "x.json: has no list under `data`; its keys are: rows, more"),
        ("x.json", '{"text": "a"}\n{"text": "b"}', "set `format: jsonl`"),
        ("x.json", "3", "x.json: neither a list of objects nor"),
        ("x.json", "[]", "x.json: holds no rows"),
        ("x.parquet", "PAR1 but not really", "x.parquet: not a whole Parquet file"),
        ("x.arrow", "ARROW1 but not really", "x.arrow: not a whole Arrow file"),
        ("x.jsonl.gz", "plain", "x.jsonl.gz: not a whole gzip file"),
    ],
)
def test_broken_files(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    assert message in failure(name)


def test_truncated_files(folder: Path) -> None:
    write_all_formats(folder)
    for name in ("x.parquet", "x.arrow", "x.jsonl.gz"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) * 2 // 3])
        assert f"{name}: not a whole" in failure(name)


def test_many_broken_lines_are_counted(folder: Path) -> None:
    (folder / "x.jsonl").write_text("{\n" * 50)
    with pytest.raises(DataError) as caught:
        read("x.jsonl")
    assert [problem.place.rpartition("x.jsonl")[2] for problem in caught.value.problems[:-1]] == [":1:2", ":2:2", ":3:2", ":4:2"]
    assert caught.value.problems[-1].message == "and 46 more"


def test_encodings(folder: Path) -> None:
    (folder / "latin.csv").write_bytes("text\nplain\n£5\n".encode("latin-1"))
    message = failure("latin.csv")
    assert "latin.csv, line 3: encoding: byte 0xA3 (byte 1 of the line) is not valid utf-8" in message
    assert "`encoding: latin-1`" in message
    assert read("latin.csv", encoding="latin-1")[1]["text"] == "£5"
    (folder / "windows.txt").write_bytes("“quoted”".encode("cp1252"))
    assert "Try `encoding: cp1252`" in failure("windows.txt")
    (folder / "wide.jsonl").write_bytes('{"text": "é"}\n{"text": "Ċ"}\n'.encode("utf-16"))
    assert "Try `encoding: utf-16`" in failure("wide.jsonl")
    assert [row["text"] for row in read("wide.jsonl", encoding="utf-16")] == ["é", "Ċ"]
    assert "unknown encoding 'utf-9'" in failure("latin.csv", encoding="utf-9")


def test_encoding_of_a_file_in_a_class_folder(folder: Path) -> None:
    for name, data in (("a/1.txt", "first\n£5".encode("latin-1")), ("b/2.txt", "£6".encode())):
        (folder / "docs" / name).parent.mkdir(parents=True)
        (folder / "docs" / name).write_bytes(data)
    assert "docs/a/1.txt, line 2: encoding: byte 0xA3 (byte 1 of the line)" in failure("docs")
    assert [row["text"] for row in read("docs", encoding="utf-8,latin-1")] == ["first\n£5", "£6"]


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json", "x.txt"])
def test_byte_order_mark(folder: Path, name: str) -> None:
    content = {"x.csv": "text\nx\n", "x.jsonl": '{"text": "x"}\n', "x.json": '[{"text": "x"}]', "x.txt": "x\n"}[name]
    (folder / name).write_text(content, encoding="utf-8-sig")
    assert list(read(name)) == [{"text": "x"}]


def test_mixed_types(folder: Path) -> None:
    write_jsonl(folder / "x.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": None}, {"text": "c", "label": "one"}])
    table = read("x.jsonl")
    assert table.column_names == ["text"]
    assert str(table.conflicts["label"]).startswith(
        "x.jsonl, line 3: label: 'one' is text, but 1 (x.jsonl, line 1) is a whole number"
    )


def test_whole_numbers_and_floats_make_floats(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftkit.data.readers.jsonl.CHUNK_ROWS", 2)
    write_jsonl(folder / "x.jsonl", [{"score": value} for value in (1, 2, 3, 2.5, None, 4)])
    values = [row["score"] for row in read("x.jsonl")]
    assert values == [1.0, 2.0, 3.0, 2.5, None, 4.0]
    assert {type(value) for value in values} == {float, type(None)}


@pytest.mark.parametrize("value", ["\ud800", 2**70])
def test_values_that_cannot_be_kept(folder: Path, value: object) -> None:
    write_jsonl(folder / "x.jsonl", [{"text": "a", "odd": "x" if isinstance(value, str) else 1}, {"text": "b", "odd": value}])
    assert "x.jsonl, line 2: odd:" in str(read("x.jsonl").conflicts["odd"])


def test_nested_values_come_back_as_written(folder: Path) -> None:
    rows = [
        {"text": "a", "extra": {"arguments": {"x": 1}, "list": [1, "two", None]}},
        {"text": "b", "extra": {"arguments": {"x": "different"}}},
        {"text": "c"},
        {"text": "d", "extra": {}},
    ]
    write_jsonl(folder / "x.jsonl", rows)
    assert [row["extra"] for row in read("x.jsonl")] == [row.get("extra") for row in rows]
    assert read("x.jsonl", columns={"text"}).column_names == ["text"]


def test_json_is_read_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftkit.data.readers import json_file

    rows = [{"text": "x" * (number * 37 % 101), "n": {"deep": [number]}} for number in range(300)]
    (folder / "x.json").write_text(json.dumps({"count": 1234567, "data": rows}, indent=1))
    pieces = json_file._pieces
    monkeypatch.setattr(json_file, "_pieces", lambda file: pieces(file, size=7))
    monkeypatch.setattr(json_file, "CHUNK_ROWS", 11)
    table = read("x.json")
    assert list(table) == rows
    assert table.place(250) == "x.json, row 251"


def test_a_document_is_a_whole_file(folder: Path) -> None:
    (folder / "play.txt").write_text("First line\n\nsecond\r\nlast", encoding="utf-8", newline="")
    (folder / "poem.txt").write_text("one", encoding="utf-8")
    rows = list(read_source(SourceSpec(path="*.txt", format="document"), base=folder))
    assert rows == [{"text": "First line\n\nsecond\r\nlast"}, {"text": "one"}]
    lines = list(read_source(SourceSpec(path="play.txt"), base=folder))
    assert [row["text"] for row in lines] == ["First line", "second", "last"]
    assert list(read_source(SourceSpec(path="play.txt"), base=folder, plain_text="document")) == rows[:1]
