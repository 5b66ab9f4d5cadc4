from __future__ import annotations

import pytest

from ftkit.diagnostics.duplicates import CONTRADICTED_SHARE, DUPLICATE_SHARE, LEAK_SHARE, digests, duplicate_findings, leak_findings
from ftkit.diagnostics.findings import Finding
from ftkit.diagnostics.roles import Roles, roles_of
from tests.diagnostics.rows import Row, clean_rows, clean_splits, make_task, splits_of, table


def repeats(rows: list[Row], *, closed: bool = True, split: str = "train") -> list[Finding]:
    found = table(rows)
    roles = roles_of(make_task(), found)
    return duplicate_findings(split, found, digests(found, roles.inputs), roles, closed=closed)


def leaks(rows: dict[str, list[Row]], mode: str = "warn") -> list[Finding]:
    splits = splits_of(rows)
    return leak_findings(splits, {name: digests(found, ["text"]) for name, found in splits.items()}, mode)


def test_clean_rows_have_none() -> None:
    assert repeats(clean_rows(300)) == []
    assert leaks(clean_splits()) == []


def test_copies_are_found_beside_what_they_copy() -> None:
    rows = clean_rows(300)
    (finding,) = repeats([*rows, rows[4], rows[4]])
    assert (finding.check, finding.severity, finding.rows) == ("duplicates", "note", 2)
    assert finding.places == ("train.jsonl, row 301", "train.jsonl, row 302")
    assert finding.details == ("= train.jsonl, row 5", "= train.jsonl, row 5")


def test_many_copies_are_a_warning() -> None:
    rows = clean_rows(500)
    few, many = (int(DUPLICATE_SHARE * 500) + extra for extra in (-1, 1))
    assert repeats([*rows[:-few], *rows[:few]])[0].severity == "note"
    assert repeats([*rows[:-many], *rows[:many]])[0].severity == "warning"


def test_equal_inputs_with_other_labels_contradict_each_other() -> None:
    rows = clean_rows(300)
    (finding,) = repeats([*rows, {**rows[0], "label": "warm"}, {**rows[0], "label": "wet"}])
    assert (finding.check, finding.severity, finding.rows) == ("contradictions", "warning", 2)
    assert finding.places == ("train.jsonl, row 301", "train.jsonl, row 302")
    assert "(2 at least are lost)" in finding.hint


@pytest.mark.parametrize(("split", "worst"), [("train", "error"), ("test", "warning")])
def test_too_many_contradictions_make_training_meaningless(split: str, worst: str) -> None:
    rows = clean_rows(300)
    count = int(CONTRADICTED_SHARE * 300) + 5
    others = [{**row, "label": "other"} for row in rows[:count]]
    assert repeats([*rows[:-count], *others], split=split)[0].severity == worst
    assert repeats([*rows[:-9], *others[:9]], split=split)[0].severity == "warning"


def test_other_answers_are_only_noted_where_several_may_be_right() -> None:
    rows = clean_rows(50)
    others = [{**row, "label": "other"} for row in rows]
    assert [finding.severity for finding in repeats([*rows, *others], closed=False)] == ["note"]


def test_files_are_equal_by_their_content() -> None:
    rows = [
        {"image": {"bytes": b"same", "path": "a.png"}, "label": "x"},
        {"image": {"bytes": b"same", "path": "b.png"}, "label": "x"},
    ]
    rows.append({"image": {"bytes": b"other", "path": "a.png"}, "label": "x"})
    found = table(rows)
    first, second, third = inputs = digests(found, ["image"], frozenset({"image"}))
    assert first.tolist() == second.tolist() != third.tolist()
    roles = Roles(inputs=("image",), targets=("label",), files=frozenset({"image"}), text_targets=(), label="label")
    assert [f.places for f in duplicate_findings("train", found, inputs, roles, closed=True)] == [("train.jsonl, row 2",)]


def test_leaks_are_found_between_all_splits() -> None:
    rows = clean_splits()
    rows["validation"][3] = rows["train"][7]
    rows["test"][0] = rows["validation"][9]
    found = {finding.message.split(":")[0]: finding for finding in leaks(rows)}
    assert found["validation"].places == ("validation.jsonl, row 4",)
    assert found["validation"].details == ("= train.jsonl, row 8",)
    assert "drop" in found["validation"].hint
    assert "are also validation rows" in found["test"].message
    assert {finding.severity for finding in found.values()} == {"warning"}


@pytest.mark.parametrize(
    ("mode", "few", "many"),
    [("warn", "warning", "error"), ("error", "error", "error"), ("drop", "note", "note"), ("off", "note", "note")],
)
def test_the_recipe_decides_how_bad_a_leak_is(mode: str, few: str, many: str) -> None:
    rows = clean_splits()
    rows["test"][0] = rows["train"][0]
    assert [finding.severity for finding in leaks(rows, mode)] == [few]
    count = int(LEAK_SHARE * 150)
    rows["test"][:count] = rows["train"][:count]
    assert [finding.severity for finding in leaks(rows, mode)] == [many]
