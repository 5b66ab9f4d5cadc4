from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ftkit import api
from ftkit.errors import EndedElsewhereError
from tests.cli.conftest import Run


@pytest.fixture
def baseline(ftkit: Run, folder: Path, trained: Path) -> Path:
    ended = ftkit("baseline", trained)
    assert (ended.code, ended.err) == (0, "")
    return folder / "baseline.json"


def test_a_baseline_is_small_strict_json(ftkit: Run, trained: Path, baseline: Path) -> None:
    found = json.loads(baseline.read_text(encoding="utf-8"))
    results = json.loads((trained / "results.json").read_text(encoding="utf-8"))
    assert (found["split"], found["metrics"]) == ("test", results["splits"]["test"]["metrics"])
    assert found["resources"]["adapter_bytes"] == results["exports"]["adapter"]["bytes"]
    assert set(found["data"]) == {"train", "validation", "test"}
    assert found["model"] == "bert", "no path of this machine"
    assert baseline.stat().st_size < 10_000
    again = ftkit("baseline", trained)
    assert (again.code, "exists already" in again.err) == (2, True)
    assert ftkit("baseline", trained, "--force", "--json").document()["baseline"] == found
    assert ftkit("baseline", "nowhere", "--force").code == 2


def test_train_is_held_against_a_baseline(
    ftkit: Run, folder: Path, recipe: Path, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(folder / "summary.md"))
    gates = 'expect={accuracy: ">= 0", training_seconds: "< 1e6", vs: {file: baseline.json, accuracy: "> 0.1", loss: "<= 1"}}'
    ended = ftkit("train", recipe, "export=[]", gates, "--output", "out", "--junit", "junit.xml", "--quiet")
    assert ended.code == 4
    found = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))["gates"]
    assert [(gate["gate"], gate["passed"]) for gate in found] == [
        ("accuracy", True), ("training_seconds", True), ("vs.accuracy", False), ("vs.loss", True),
    ]  # fmt: skip
    assert (found[2]["compared"], found[2]["missed_by"]) == (0.0, 0.1), "the same recipe gives the same metrics"
    assert "::error title=ftkit%3A expect.vs.accuracy::" in ended.err
    assert "error: expect.vs.accuracy: " in ended.err
    root = ElementTree.parse(folder / "junit.xml").getroot()
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("5", "1", "0")
    assert "vs.accuracy" in (folder / "summary.md").read_text(encoding="utf-8")
    assert str(baseline) in (folder / "out" / "plan.yaml").read_text(encoding="utf-8")
    baseline.unlink()
    assert ftkit("evaluate", "out", "--json").code == 0, "a run can be used without the baseline"


def test_a_finished_run_is_gated_again(ftkit: Run, folder: Path, trained: Path, baseline: Path) -> None:
    assert "the run has no gates" in ftkit("gate", trained).err
    before = (trained / "results.json").read_bytes()
    ended = ftkit("gate", trained, 'expect={accuracy: {bound: ">= 0", confident: true}, vs: {file: baseline.json, loss: "<= 0"}}')
    assert (ended.code, ended.err) == (0, "")
    assert "accuracy: " in ended.out
    assert "vs.loss: " in ended.out
    ended = ftkit("gate", trained, 'expect.accuracy=">= 2"', "--junit", "gates.xml", "--json")
    assert (ended.code, ended.document()["gates"][0]["passed"]) == (4, False)
    assert ElementTree.parse(folder / "gates.xml").getroot().get("failures") == "1"
    assert (trained / "results.json").read_bytes() == before
    ended = ftkit("gate", trained, "train.epochs=3")
    assert (ended.code, "trained with what this would change" in ended.err) == (2, True)


def test_a_baseline_of_other_rows_is_refused(ftkit: Run, recipe: Path, trained: Path, baseline: Path) -> None:
    value = json.loads(baseline.read_text(encoding="utf-8"))
    value["data"]["test"]["sha256"] = "0" * 64
    baseline.write_text(json.dumps(value), encoding="utf-8")
    gates = 'expect={vs: {file: baseline.json, accuracy: ">= 0"}}'
    for arguments in (("validate", recipe), ("train", recipe, "--output", "out"), ("gate", trained)):
        ended = ftkit(*arguments, gates)
        assert (ended.code, "other rows" in ended.err) == (2, True), arguments
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("line", "key", "message", "hint"),
    [
        ('vs: {file: none.json, accuracy: ">= 0"}', "expect.vs.file", "none.json cannot be read: No such file", "ftkit baseline"),
        ('vs: {file: recipe.yaml, accuracy: ">= 0"}', "expect.vs.file", "recipe.yaml cannot be read: ", "ftkit baseline"),
        (
            'vs: {file: baseline.json, merged_bytes: "< 5"}',
            "expect.vs.merged_bytes",
            "baseline.json has no merged_bytes",
            "It has: ",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_with_its_place(
    ftkit: Run, folder: Path, recipe: Path, baseline: Path, line: str, key: str, message: str, hint: str
) -> None:
    text = recipe.read_text(encoding="utf-8").replace("export: [adapter]", "export: [merged]")
    (folder / "recipe.yaml").write_text(f"{text}expect:\n  {line}\n", encoding="utf-8")
    lines = text.count("\n") + 2
    ended = ftkit("validate", "recipe.yaml")
    assert ended.code == 2
    assert ended.err.startswith(f"error: recipe.yaml:{lines}:")
    assert f"{key}: " in ended.err
    assert message in ended.err
    assert hint in ended.err
    assert len(ended.err.splitlines()) == 2


def test_junit_tells_of_a_recipe_that_is_refused(ftkit: Run, folder: Path, recipe: Path) -> None:
    ended = ftkit("train", recipe, "train.epoch=1", "--junit", "junit.xml")
    assert ended.code == 2
    root = ElementTree.parse(folder / "junit.xml").getroot()
    assert (root.get("tests"), root.get("errors")) == ("1", "1")
    assert float(root.get("time", "0")) > 0
    assert "--junit" in ftkit("train", recipe, "--junit", "no/such/junit.xml").err


def test_junit_calls_a_run_that_another_process_ended_no_success(
    ftkit: Run, folder: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*arguments: Any, **options: Any) -> None:
        raise EndedElsewhereError(2)

    monkeypatch.setattr(api, "train", end)
    assert ftkit("train", recipe, "--junit", "junit.xml").code == 2
    root = ElementTree.parse(folder / "junit.xml").getroot()
    assert root.get("errors") == "1"
    assert "another process ended the run: the recipe, the data" in ElementTree.tostring(root, encoding="unicode")
