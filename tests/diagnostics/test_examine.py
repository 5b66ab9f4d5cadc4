from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ftkit
from ftkit.diagnostics import examine as module
from ftkit.diagnostics.examine import quick_findings
from ftkit.run.observer import Observer
from tests.diagnostics.rows import Row, clean_splits, make_task, splits_of, train_spec

SCHEMA = {"check": str, "severity": str, "message": str, "rows": int, "places": list, "details": list, "hint": str}


@pytest.fixture
def examined(recipe_file: Callable[..., Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(rows: dict[str, list[Row]], observer: Observer | None = None, **keys: str) -> dict[str, Any]:
        for name, found in rows.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        return ftkit.doctor(ftkit.load_recipe(recipe_file(**keys)), observer=observer)

    return run


def known(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The same rows in words that the tiny tokenizer knows: w123 becomes `w1 w2 w3`."""
    spell = " ".join
    return {
        name: [{**row, "text": spell(f"w{d}" for word in row["text"].split() for d in word[1:])} for row in found]
        for name, found in rows.items()
    }


def checks(report: dict[str, Any]) -> list[str]:
    return [finding["check"] for finding in report["findings"]]


def test_clean_data_give_nothing(examined: Callable[..., dict[str, Any]]) -> None:
    assert examined(known(clean_splits())) == {"findings": [], "rows": {"train": 300, "validation": 150, "test": 150}}


def test_the_data_of_other_tests_have_only_small_splits_and_what_chance_repeats(examined: Callable[..., dict[str, Any]]) -> None:
    found = examined({})
    assert set(checks(found)) <= {"small-split", "near-duplicates", "duplicates"}


def test_planted_defects_are_told_together_worst_first(examined: Callable[..., dict[str, Any]]) -> None:
    rows = known(clean_splits())
    rows["train"][0]["text"] = ""
    rows["train"][7]["text"] = "w1 cafÃ© w2 w3 w4 w5 w6 w7"
    rows["train"][9] = {**rows["train"][8], "label": "dry"}
    rows["test"][2] = rows["train"][30]
    rows["test"][3] = {**rows["train"][40], "text": rows["train"][40]["text"] + " w1"}
    report = examined(rows)
    planted = {"unusable-rows", "garbled-texts", "contradictions", "leaks", "near-leaks", "rare-labels"}
    assert set(checks(report)) == {*planted, "absent-labels", "skewed-labels"}
    severities = [finding["severity"] for finding in report["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    for finding in report["findings"]:
        assert {key: type(value) for key, value in finding.items()} == SCHEMA
        assert finding["severity"] in ("error", "warning", "note")
        assert len(finding["places"]) <= 10
        assert len(finding["details"]) in (0, len(finding["places"]))
    assert report["rows"]["train"] == 299
    json.dumps(report, allow_nan=False)


def test_nothing_usable(examined: Callable[..., dict[str, Any]]) -> None:
    report = examined({"train": [{"text": "", "label": "a"}] * 3})
    assert report["rows"] == {}
    assert report["findings"][0]["severity"] == "error"


def test_one_label_is_told_once_and_the_rest_is_looked_at(examined: Callable[..., dict[str, Any]]) -> None:
    rows = {name: [{**row, "label": "cold"} for row in found] for name, found in known(clean_splits()).items()}
    rows["test"][0] = rows["train"][0]
    assert checks(examined(rows)) == ["unreadable-data", "leaks"]


def test_stages_are_told(examined: Callable[..., dict[str, Any]]) -> None:
    stages: list[str] = []
    observer = Observer()
    observer.stage = stages.append  # type: ignore[method-assign]
    examined(known(clean_splits()), observer)
    assert stages == ["reading data", "looking at rows", "looking for near-duplicates", "looking for wrong labels", "encoding"]


def test_encoded_rows_are_kept_for_the_run(examined: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    original = module.encoding_findings

    def watched(*arguments: Any, cache: bool) -> Any:
        kept.append(cache)
        return original(*arguments, cache=cache)

    monkeypatch.setattr(module, "encoding_findings", watched)
    rows = known(clean_splits())
    examined(rows)
    rows["train"][0]["text"] = ""
    examined(rows)
    assert kept == [True, False]


def test_a_run_makes_the_quick_checks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: object, **more: object) -> None:
        raise AssertionError("too slow for every run")

    for name in ("near_duplicate_findings", "noise_findings", "encoding_findings", "leak_findings"):
        monkeypatch.setattr(module, name, slow)
    rows = clean_splits()
    task = make_task()
    assert quick(rows, task) == []
    rows["train"][5]["text"] = "cafÃ© w1 w2 w3 w4 w5 w6 w7"
    rows["train"][9] = {**rows["train"][8], "label": "warm"}
    rows["train"][11] = rows["train"][12]
    rows["validation"] = rows["validation"][:20]
    assert quick(rows, task) == ["small-split", "contradictions", "garbled-texts"]


def quick(rows: dict[str, list[Row]], task: Any) -> list[str]:
    splits = splits_of(rows)
    task.learn(splits.train)
    return [finding.check for finding in quick_findings(splits, task, train_spec())]


def test_the_quick_checks_read_each_row_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, task = clean_splits(), make_task()
    splits = splits_of(rows)
    task.learn(splits.train)
    decoded = 0
    original = type(splits.train)._decode

    def watched(self: Any, indices: Any, names: Any) -> Any:
        nonlocal decoded
        decoded += len(indices)
        return original(self, indices, names)

    monkeypatch.setattr(type(splits.train), "_decode", watched)
    assert quick_findings(splits, task, train_spec()) == []
    assert decoded <= 3 * 600


def test_notes_of_a_run_have_the_warnings(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe_file()
    lines = (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()
    lines[4] = json.dumps({**json.loads(lines[4]), "text": "w1 cafÃ© w2 w3"})
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = ftkit.train(ftkit.load_recipe(recipe_file(), ["train.max_steps=1"]), output=tmp_path / "run")
    assert result.exit_code == 0
    (note,) = [note for note in result.results["notes"] if "another encoding" in note]
    assert "train.jsonl, line 5" in note
