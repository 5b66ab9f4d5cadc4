from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftkit.diagnostics.reading import Reading, read
from ftkit.recipe.schema import DataSpec
from tests.diagnostics.rows import Row, clean_splits, make_task


def write(folder: Path, rows: dict[str, list[Row]]) -> dict[str, str]:
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in rows}


def reading(folder: Path, rows: dict[str, list[Row]], task: str = "text-classification", **data: Any) -> Reading:
    spec = DataSpec.model_validate({**write(folder, rows), **data})
    return read(spec, make_task(task), make_task(task), folder)


def names(found: Reading) -> list[str]:
    return [f"{finding.check} {finding.severity} {finding.rows}" for finding in found.findings]


def test_clean_rows(tmp_path: Path) -> None:
    found = reading(tmp_path, clean_splits())
    assert found.findings == []
    assert found.learned
    assert found.splits is not None
    assert [len(table) for _, table in found.splits.items()] == [300, 150, 150]


def test_every_kind_of_bad_row_of_every_split_is_told_and_the_rest_is_used(tmp_path: Path) -> None:
    rows = clean_splits()
    for index in (3, 5, 200):
        rows["train"][index]["text"] = " "
    rows["train"][8]["label"] = None
    rows["validation"][0]["label"] = "dry"
    rows["validation"][1]["label"] = "arid"
    rows["test"][149]["text"] = ""
    found = reading(tmp_path, rows)
    assert names(found) == ["unusable-rows error 3", "unusable-rows error 1", "unusable-rows error 2", "unusable-rows error 1"]
    empty, missing, unknown, last = found.findings
    assert [place.rpartition(", ")[2] for place in empty.places] == ["line 4", "line 6", "line 201"]
    assert empty.message.startswith("train: 3 of 300 rows (1 %) cannot be used: text: the text is empty")
    assert missing.places[0].endswith("train.jsonl, line 9")
    assert ["'dry'" in unknown.details[0], "'arid'" in unknown.details[1]] == [True, True]
    assert last.places[0].endswith("test.jsonl, line 150")
    assert found.splits is not None
    assert [len(table) for _, table in found.splits.items()] == [296, 148, 149]
    assert found.splits.train.place(3).endswith("train.jsonl, line 5")


def test_more_kinds_than_can_be_shown_are_joined(tmp_path: Path) -> None:
    rows = [{"text": "w", "label": json.loads("[" * depth + "]" * depth)} for depth in range(1, 26)]
    found = reading(tmp_path, {"train": rows})
    assert names(found)[1:] == ["unusable-rows error 1"] * 20 + ["unusable-rows error 5"]


def test_rows_are_checked_as_training_rows_whatever_the_task_learns(tmp_path: Path) -> None:
    talk = [{"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}"}]} for n in range(20)]
    unanswered: Row = {"messages": [{"role": "user", "content": "Say nothing."}]}
    found = reading(tmp_path, {"train": [*talk, unanswered], "test": [unanswered, *talk]}, "instruction-tuning")
    assert [(finding.message.split(":")[0], finding.rows) for finding in found.findings] == [("train", 1), ("test", 1)]


def test_misaligned_answers_and_broken_sequences_are_listed(tmp_path: Path) -> None:
    answers = [
        {"question": f"Who is {n}?", "context": f"It is p{n} there.", "answers": {"text": [f"p{n}"], "answer_start": [6 + n // 9]}}
        for n in range(12)
    ]
    found = reading(tmp_path, {"train": answers}, "question-answering")
    assert sum(finding.rows for finding in found.findings) == 3
    tags = [{"tokens": ["Anna", "lives", "here"], "tags": ["B-PER", "O", "O"]} for _ in range(12)]
    tags[4]["tags"] = ["O", "I-PER", "O"]
    tags[7]["tags"] = ["B-PER", "I-LOC", "O"]
    tags[9]["tags"] = ["B-PER"]
    found = reading(tmp_path, {"train": tags}, "token-classification")
    assert sorted(place.rpartition(" ")[2] for finding in found.findings for place in finding.places) == ["10", "5", "8"]


def test_sources_of_all_splits_are_tried(tmp_path: Path) -> None:
    files = write(tmp_path, clean_splits())
    Path(files["train"]).write_text('{"text": "a"\n', encoding="utf-8")
    Path(files["test"]).write_text('{"body": "a", "topic": "b"}\n', encoding="utf-8")
    found = read(DataSpec.model_validate(files), make_task(), make_task(), tmp_path)
    assert found.splits is None
    assert {finding.check for finding in found.findings} == {"unreadable-data"}
    text = " ".join(str(finding) for finding in found.findings)
    assert "train.jsonl:1:" in text
    assert "data.columns.label: no column 'label'" in text


def test_what_no_source_is_guilty_of(tmp_path: Path) -> None:
    found = reading(tmp_path, clean_splits(), split={"validation": 0.1})
    assert names(found) == ["unreadable-data error 0"]
    assert "data.validation" in found.findings[0].message


def test_nothing_to_tell_apart(tmp_path: Path) -> None:
    rows = [{**row, "label": "cold"} for row in clean_splits()["train"]]
    found = reading(tmp_path, {"train": rows})
    assert names(found) == ["unreadable-data error 0"]
    assert "only the label 'cold'" in found.findings[0].message
    assert not found.learned
    assert found.splits is not None


def test_no_usable_training_row(tmp_path: Path) -> None:
    found = reading(tmp_path, {"train": [{"text": "", "label": "a"}] * 5})
    assert found.splits is None
    assert ("unusable-rows error 5") in names(found)


def test_leaks_do_not_stop_it(tmp_path: Path) -> None:
    rows = clean_splits()
    rows["test"] = rows["train"]
    found = reading(tmp_path, rows, leaks="error")
    assert found.findings == []
    assert found.splits is not None
