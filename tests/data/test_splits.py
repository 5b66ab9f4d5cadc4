from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftkit.data import table as table_module
from ftkit.data.splits import Splits, load_rows, load_splits, table_from_rows
from ftkit.data.table import Table
from ftkit.errors import DataError
from ftkit.recipe.schema import DataSpec, SourceSpec
from ftkit.tasks.base import Column, Row

from .toy_task import ToyTask


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def examples(count: int, prefix: str = "text", labels: str = "abc") -> list[dict[str, Any]]:
    return [{"text": f"{prefix} {number}", "label": labels[number % len(labels)]} for number in range(count)]


def load(task: ToyTask | None = None, **spec: Any) -> Splits:
    return load_splits(DataSpec.model_validate(spec), task or ToyTask(), Path.cwd())


def failure(**spec: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(**spec)
    return str(caught.value)


def texts(table: Table | None) -> set[str]:
    return set() if table is None else set(table.column("text"))


def test_given_splits() -> None:
    train, test = write("train.jsonl", examples(9)), write("test.jsonl", examples(3, "other"))
    task = ToyTask()
    splits = load(task, train=train, test=test)
    assert [(name, len(table)) for name, table in splits.items()] == [("train", 9), ("test", 3)]
    assert splits.validation is None
    assert splits.notes == []
    assert task.labels == ["a", "b", "c"]


def test_fraction_splits_cover_all_rows_once_and_keep_proportions() -> None:
    rows = [{"text": f"t {number}", "label": "rare" if number % 10 == 0 else "often"} for number in range(1000)]
    splits = load(train=write("x.jsonl", rows), split={"validation": 0.1, "test": 0.2})
    tables = dict(splits.items())
    assert {name: len(table) for name, table in tables.items()} == {"train": 700, "validation": 100, "test": 200}
    assert sum((Counter(table.column("text")) for table in tables.values()), Counter()) == Counter(row["text"] for row in rows)
    assert Counter(splits.validation.column("label")) == {"rare": 10, "often": 90}  # type: ignore[union-attr]
    assert Counter(splits.test.column("label")) == {"rare": 20, "often": 180}  # type: ignore[union-attr]


def test_fraction_splits_repeat_and_do_not_depend_on_row_order() -> None:
    rows = examples(200)
    spec: dict[str, Any] = {"split": {"validation": 0.1, "test": 0.1}}
    first = load(train=write("x.jsonl", rows), **spec)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = load(train=write("y.jsonl", [rows[index] for index in order]), **spec)
    other = load(train="x.jsonl", split={"validation": 0.1, "test": 0.1, "seed": 1})
    for name in ("train", "validation", "test"):
        assert texts(getattr(first, name)) == texts(getattr(shuffled, name))
        assert texts(getattr(first, name)) != texts(getattr(other, name))


def test_equal_inputs_never_fall_apart() -> None:
    rows = [{"id": number, "text": f"t {number % 60}", "label": "ab"[number % 2]} for number in range(300)]
    splits = load(train=write("x.jsonl", rows), split={"validation": 0.2, "test": 0.2})
    parts = [texts(table) for _, table in splits.items()]
    assert [len(table) for _, table in splits.items()] == [180, 60, 60]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]


def test_groups_stay_together() -> None:
    rows = [{"text": f"t {number}", "label": "ab"[number % 2], "user": number // 7} for number in range(350)]
    splits = load(train=write("x.jsonl", rows), split={"validation": 0.2, "test": 0.1, "group": "user"})
    users = [{int(text.split()[1]) // 7 for text in texts(table)} for _, table in splits.items()]
    assert sum(map(len, users)) == 50
    assert [len(table) for _, table in splits.items()] == [245, 70, 35]
    assert splits.train.column_names == ["text", "label"]


def test_stratify_by_another_column_or_by_none() -> None:
    rows = [{"text": f"t {number}", "label": "a", "source": "xy"[number % 2]} for number in range(100)]
    path = write("x.jsonl", rows)
    splits = load(train=path, split={"test": 0.1, "stratify": "source"})
    assert Counter(int(text.split()[1]) % 2 for text in texts(splits.test)) == {0: 5, 1: 5}
    assert len(load(train=path, split={"test": 0.13, "stratify": "none"}).test or ()) == 13
    assert "there is no column 'sauce' to divide the rows by. Columns: text, label, source." in failure(
        train=path, split={"test": 0.1, "stratify": "sauce"}
    )


def test_list_labels_are_not_stratified() -> None:
    rows = [{"text": f"t {number}", "label": ["a", "b"][: number % 3]} for number in range(100)]
    rows = [row for row in rows if row["label"]]
    splits = load(train=write("x.jsonl", rows), split={"test": 0.5})
    assert len(splits.test or ()) == 33


def test_an_empty_split_is_an_error() -> None:
    path = write("x.jsonl", examples(4))
    assert "the validation split is empty: a share of 0.1 of 4 rows" in failure(train=path, split={"validation": 0.1})


def test_two_origins_of_a_split() -> None:
    path = write("x.jsonl", examples(40))
    message = failure(train=path, validation=path, split={"validation": 0.1})
    assert "validation rows come from `data.validation` and from `data.split.validation: 0.1`" in message
    assert "leave nothing to train on" in failure(train=path, split={"validation": 0.5, "test": 0.5})
    assert len(load(train=path, validation=path, split={"test": 0.1}, leaks="off").test or ()) == 4


def test_weighted_sources_keep_their_weights() -> None:
    one, two = write("one.jsonl", examples(6)), write("two.jsonl", [{"body": "x", "category": "a", "label": None}])
    message = failure(train=[{"path": one, "weight": 0.5}, two])
    assert "two.jsonl, line 1: label: the label is empty" in message
    write("two.jsonl", [{"body": "x", "category": "a"}])
    splits = load(train=[{"path": one, "weight": 0.5}, two])
    weights = splits.train.weights()
    assert weights is not None
    assert weights.tolist() == [0.5] * 6 + [1.0]
    assert splits.train[6] == {"text": "x", "label": "a"}


@pytest.mark.parametrize("mode", ["warn", "error", "drop", "off"])
def test_leaks(mode: str) -> None:
    train = write("train.jsonl", examples(20))
    test = write(
        "test.jsonl", [{"text": "other", "label": "a"}, {"text": "text 8", "label": "a"}, {"text": "text 9", "label": "b"}]
    )
    note = "2 of 3 test rows are also training rows (e.g. test.jsonl, line 2 = train.jsonl, line 9)"
    if mode == "error":
        message = failure(train=train, test=test, leaks=mode)
        assert note in message
        assert "data.leaks: drop" in message
        return
    splits = load(train=train, test=test, leaks=mode)
    expected = {"warn": [note], "off": [], "drop": [note, "2 of 20 training rows were left out because of that"]}
    assert splits.notes == expected[mode]
    assert len(splits.train) == (18 if mode == "drop" else 20)
    assert len(splits.test or ()) == 3
    if mode == "drop":
        assert not texts(splits.train) & texts(splits.test)


def test_dropping_every_training_row_is_an_error() -> None:
    path = write("x.jsonl", examples(3))
    assert "every training row is also an evaluation row" in failure(train=path, test=path, leaks="drop")


def test_columns_are_found_by_name_and_by_mapping() -> None:
    write("x.jsonl", [{"sentence": "x", "category": "a", "text_b": "no"}])
    assert list(load(train="x.jsonl").train) == [{"text": "x", "label": "a"}]
    mapped = load(train="x.jsonl", columns={"text": "text_b", "note": "sentence"})
    assert list(mapped.train) == [{"text": "no", "note": "x", "label": "a"}]


def test_a_list_of_columns_gives_a_list_of_values() -> None:
    write("x.jsonl", [{"text": "x", "good": 1, "bad": 0}, {"text": "y", "good": 0, "bad": 1}])
    splits = load(train="x.jsonl", columns={"label": ["good", "bad"]})
    assert splits.train.column("label") == [[1, 0], [0, 1]]


def test_missing_columns() -> None:
    write("x.jsonl", [{"texts": "x", "klass": "a"}])
    message = failure(train="x.jsonl")
    assert "x.jsonl: data.columns.text: no column 'text': The text (usual names: sentence, body)" in message
    assert "Columns: texts, klass. Say which one it is: `data: {columns: {text: texts}}`." in message
    assert "data.columns.label: no column 'label'" in message
    assert "there is no column 'text'. Did you mean 'texts'? Columns: texts, klass." in failure(
        train="x.jsonl", columns={"text": "text", "label": "klass"}
    )
    assert "the task toy has no column 'txt'. Did you mean 'text'? Its columns: text, note, label." in failure(
        train="x.jsonl", columns={"txt": "texts"}
    )
    Path("x.csv").write_text("text;label\nx;a\n")
    assert "If the separator is ';', set `delimiter: ';'`" in failure(train="x.csv")


def test_a_conflict_counts_only_in_a_column_that_is_used() -> None:
    write("x.jsonl", [{"text": "x", "label": "a", "category": 1}, {"text": "y", "label": "a", "category": "b"}])
    assert len(load(train="x.jsonl").train) == 2
    message = failure(train="x.jsonl", columns={"label": "category"})
    assert "x.jsonl, line 2: category: 'b' is text, but 1 (x.jsonl, line 1) is a whole number" in message
    write("one.jsonl", [{"text": "x", "label": "a"}])
    write("two.jsonl", [{"text": "x", "label": 1}])
    for sources in (["one.jsonl", "two.jsonl"], "*o*e.jsonl"):
        if isinstance(sources, str):
            Path("two.jsonl").rename("twoe.jsonl")
        assert "label: the column holds a whole number here, but text in one.jsonl" in failure(train=sources)


def test_every_row_of_every_split_is_checked() -> None:
    write("train.jsonl", [{"body": "x", "label": "a"}, {"body": " ", "label": "a"}])
    write("test.jsonl", [{"text": "x", "label": ""}])
    message = failure(train="train.jsonl", test="test.jsonl")
    assert "train.jsonl, line 2: body: ' ' is not a text. Give each row a text." in message
    assert "test.jsonl, line 1: label: the label is empty" in message


def test_labels_that_training_rows_lack() -> None:
    train, test = write("train.jsonl", examples(9)), write("test.jsonl", [{"text": "x", "label": "z"}])
    assert "test.jsonl, line 1: label: 'z' is not a label of the training rows" in failure(train=train, test=test)


def test_many_problems_are_counted() -> None:
    write("x.jsonl", [*[{"text": "", "label": "a"}] * 30, {"text": "x", "label": None}])
    with pytest.raises(DataError) as caught:
        load(train="x.jsonl")
    places = [problem.place for problem in caught.value.problems]
    assert places == [f"x.jsonl, line {line}" for line in (1, 2, 3, 31)] + [""]
    assert caught.value.problems[-1].message == "and 27 more"


def test_rows_for_evaluation_need_targets() -> None:
    write("x.jsonl", [{"body": "x", "label": "a"}])
    write("y.jsonl", [{"body": "x"}])
    task = ToyTask()
    task.restore({"labels": ["a"]})
    assert list(load_rows("x.jsonl", task, {}, Path.cwd(), need_targets=True)) == [{"text": "x", "label": "a"}]
    assert list(load_rows(SourceSpec(path="x.jsonl#1"), task, {}, Path.cwd(), need_targets=True)) == [{"text": "x", "label": "a"}]
    write("z.jsonl", [{"body": "x", "label": "b"}])
    with pytest.raises(DataError, match=r"z.jsonl, line 1: label: 'b' is not a label"):
        load_rows("z.jsonl", task, {}, Path.cwd(), need_targets=True)
    with pytest.raises(DataError, match="no column 'label'"):
        load_rows("y.jsonl", ToyTask(), {}, Path.cwd(), need_targets=True)
    with pytest.raises(DataError, match="no column 'label'"):
        load_rows(table_from_rows([{"text": "x"}], "input"), ToyTask(), {}, Path.cwd(), need_targets=True)


def test_rows_for_prediction() -> None:
    def rows(*given: dict[str, Any], **columns: str) -> list[dict[str, Any]]:
        return list(load_rows(table_from_rows(given, "input"), ToyTask(), columns, Path.cwd(), need_targets=False))

    assert rows({"sentence": "x"}) == [{"text": "x"}]
    assert rows({"sentence": "x"}, label="class") == [{"text": "x"}]
    assert rows({"text": "x", "label": "never seen"}, {"text": "y"}) == [{"text": "x"}, {"text": "y"}]
    with pytest.raises(DataError, match="input, row 2: text: None is not a text"):
        rows({"text": "x"}, {"text": None})
    with pytest.raises(DataError, match="input, row 1: text: ' ' is not a text"):
        rows({"text": " ", "label": "a"})
    with pytest.raises(DataError, match="no column 'text'"):
        rows({"words": "x"})


def test_samples_are_drawn_with_the_split_seed() -> None:
    path = write("x.jsonl", examples(100))
    one, two = (load(train=f"{path}#10", split={"seed": seed}) for seed in (0, 1))
    assert len(one.train) == len(two.train) == 10
    assert texts(one.train) != texts(two.train)


def test_forty_thousand_rows_take_about_a_second() -> None:
    path = write("x.jsonl", examples(38_000))
    start = time.process_time()
    load(train=path, split={"validation": 0.1, "test": 0.1})
    # Four times what an idle core takes.
    assert time.process_time() - start < 4


def test_reading_small_files_loads_no_heavy_library() -> None:
    write("x.jsonl", examples(30))
    code = """
import sys
from pathlib import Path
from ftkit.data.splits import load_splits
from ftkit.recipe.schema import DataSpec
from tests.data.toy_task import ToyTask
load_splits(DataSpec.model_validate({"train": "x.jsonl", "split": {"test": 0.1}}), ToyTask(), Path.cwd())
print(sorted({"torch", "transformers", "datasets", "pandas", "sklearn", "pyarrow.parquet"} & set(sys.modules)))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(root)}, check=True)
    assert done.stdout.strip() == "[]"


class PictureTask(ToyTask):
    """As the toy task, with pictures in place of texts."""

    def columns(self) -> Mapping[str, Column]:
        return {"image": Column(summary="A picture.", file=True), "label": Column(summary="The class.", target=True)}

    def check_row(self, row: Row) -> None:
        pass


def pictures(count: int, *, copies: int) -> list[dict[str, Any]]:
    """So many pictures, each in as many files of different names."""
    rows = []
    for number in range(count):
        for copy in range(copies):
            Path(f"{number}-{copy}.png").write_bytes(b"picture %d" % number)
            rows.append({"image": f"{number}-{copy}.png", "label": "ab"[number % 2]})
    return rows


def contents(table: Table | None) -> set[bytes]:
    return set() if table is None else {row["image"]["bytes"] for row in table}


@pytest.mark.parametrize("stored", ["paths", "parquet"])
def test_one_picture_under_two_names_is_in_one_split(stored: str) -> None:
    rows = pictures(30, copies=2)
    if stored == "parquet":
        values = [{"bytes": Path(row["image"]).read_bytes(), "path": row["image"]} for row in rows]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(pa.table({"image": pa.array(values, kind), "label": [row["label"] for row in rows]}), "rows.parquet")
    source = "rows.parquet" if stored == "parquet" else write("rows.jsonl", rows)
    splits = load(PictureTask(), train=source, split={"validation": 0.2, "test": 0.2})
    found = {name: contents(table) for name, table in splits.items()}
    assert {name: len(table) for name, table in splits.items()} == {"train": 36, "validation": 12, "test": 12}
    assert sum(map(len, found.values())) == 30 == len(set.union(*found.values()))


def test_a_held_out_picture_that_is_a_training_picture_under_another_name() -> None:
    rows = pictures(6, copies=2)
    train, test = write("train.jsonl", rows[::2]), write("test.jsonl", rows[1:4:2])
    assert load(PictureTask(), train=train, test=test).notes == [
        "2 of 2 test rows are also training rows (e.g. test.jsonl, line 1 = train.jsonl, line 1)"
    ]
    assert contents(load(PictureTask(), train=train, test=test, leaks="drop").train) == {b"picture %d" % n for n in range(2, 6)}
    other = write("other.jsonl", [{"image": "0-0.png", "label": "a"}])
    Path("0-0.png").write_bytes(b"another picture under the same name")
    assert load(PictureTask(), train=write("train.jsonl", rows[1::2]), test=other).notes == []


def test_few_pictures_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    decode = table_module._decoded

    def watched(batch: Any, chosen: np.ndarray, names: Any) -> Any:
        nonlocal most
        if "image" in names:
            most = max(most, len(chosen))
        return decode(batch, chosen, names)

    whole = load(PictureTask(), train=write("rows.jsonl", pictures(40, copies=3))).train.fingerprint()
    monkeypatch.setattr(table_module, "_decoded", watched)
    splits = load(PictureTask(), train="rows.jsonl", split={"validation": 0.1})
    assert splits.train.fingerprint() != whole
    assert 0 < most <= table_module.STEP_WITH_BYTES
    monkeypatch.setattr(table_module, "STEP_WITH_BYTES", 7)
    assert load(PictureTask(), train="rows.jsonl").train.fingerprint() == whole
    monkeypatch.setattr(table_module, "STEP_WITH_BYTES", table_module.STEP)
    assert load(PictureTask(), train="rows.jsonl").train.fingerprint() == whole, "as it was before rows were read in small steps"
