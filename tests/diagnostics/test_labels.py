from __future__ import annotations

from typing import Any

import pytest

from ftkit.diagnostics.findings import Finding
from ftkit.diagnostics.labels import RARE_ROWS, label_findings, label_reader, rows_by_label
from ftkit.diagnostics.roles import roles_of
from tests.diagnostics.rows import Row, clean_splits, make_task, splits_of, table


def found_in(rows: dict[str, list[Row]], **options: Any) -> list[Finding]:
    tables = dict(splits_of(rows).items())
    names_of = label_reader(make_task(**options).options)
    counts = {name: rows_by_label(found, "label", names_of) for name, found in tables.items()}
    known = options.get("labels") or sorted(counts["train"])
    return label_findings(tables, counts, known)


def of_labels(**counts: int) -> list[Row]:
    return [{"text": f"{name} {number}", "label": name} for name, count in counts.items() for number in range(count)]


def test_clean_rows_have_nothing() -> None:
    assert found_in(clean_splits()) == []


@pytest.mark.parametrize(("largest", "severity"), [(90, None), (100, "note"), (999, "note"), (1000, "warning")])
def test_skew(largest: int, severity: str | None) -> None:
    found = found_in({"train": of_labels(many=largest, few=10)})
    assert [(finding.check, finding.severity) for finding in found] == ([("skewed-labels", severity)] if severity else [])


def test_rare_labels_are_listed_with_their_rows() -> None:
    (finding,) = found_in({"train": of_labels(a=30, b=RARE_ROWS, c=RARE_ROWS - 1, d=4)})
    assert (finding.check, finding.severity, finding.rows) == ("rare-labels", "warning", RARE_ROWS - 1 + 4)
    assert "'d' (4), 'c' (7)" in finding.message
    assert finding.places[0] == "train.jsonl, row 39"
    assert finding.details[0] == "'c'"
    assert len(finding.places) == 10


def test_labels_that_a_split_lacks() -> None:
    rows = {"train": of_labels(a=20, b=20), "test": of_labels(a=20)}
    (finding,) = found_in(rows)
    assert (finding.check, finding.severity) == ("absent-labels", "note")
    assert finding.message == "test: 1 of 2 labels have no row: 'b'"
    found = found_in({"train": of_labels(a=20, b=20), "test": of_labels(a=9, b=9, c=9)}, labels=["a", "b", "c"])
    assert [(finding.check, finding.severity, finding.message.split(":")[0]) for finding in found] == [
        ("absent-labels", "warning", "train")
    ]


def test_names_that_differ_in_case_or_blanks() -> None:
    rows = {"train": [*of_labels(spam=30, ham=30), *({"text": f"x {n}", "label": "Spam "} for n in range(9))]}
    rows["test"] = of_labels(spam=10, ham=9, Ham=1)
    found = [finding for finding in found_in(rows, labels=["spam", "ham", "Spam ", "Ham"]) if finding.check == "label-variants"]
    assert [finding.rows for finding in found] == [10]
    assert found[0].places[0] == "train.jsonl, row 61"
    assert "'Spam ' and 'spam'" in found[0].message
    assert "'Ham' and 'ham'" in found[0].message


def test_one_label_is_nothing_to_learn() -> None:
    (finding,) = found_in({"train": of_labels(a=20), "test": of_labels(a=20)}, labels=["a", "b"])
    assert (finding.check, finding.severity, finding.rows) == ("single-label", "error", 20)


@pytest.mark.parametrize(
    ("options", "value", "names"),
    [
        ({}, "a|b", ["a|b"]),
        ({}, 3, ["3"]),
        ({}, True, ["True"]),
        ({"problem_type": "multi_label"}, ["a", "b"], ["a", "b"]),
        ({"problem_type": "multi_label"}, [], []),
        ({"problem_type": "multi_label", "label_separator": "|"}, "a | b", ["a", "b"]),
        ({"problem_type": "multi_label", "labels": ["a", "b", "c"]}, [1, 0, 1], ["a", "c"]),
        ({"problem_type": "multi_label", "labels": ["a", "b"]}, ["false", "true"], ["b"]),
        ({"problem_type": "multi_label", "labels": ["0", "1"]}, ["0", "1"], ["0", "1"]),
    ],
)
def test_labels_are_read_as_the_task_reads_them(options: dict[str, Any], value: Any, names: list[str]) -> None:
    task = make_task(**options)
    assert label_reader(task.options)(value) == names
    assert getattr(task, "_labels").read({"label": value}) == names  # noqa: B009


def test_numbers_of_a_regression_are_no_labels() -> None:
    found = table([{"text": "a", "label": 0.5}, {"text": "b", "label": 1.5}])
    assert roles_of(make_task(), found).label == "label"
    assert roles_of(make_task(problem_type="regression"), found).label is None
