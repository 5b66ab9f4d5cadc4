from __future__ import annotations

from datetime import datetime
from typing import Any
from xml.etree import ElementTree

from ftkit.cli.junit import junit_xml

HOSTILE = "a]]><x>&\"'\x00\x1b[31m\x85\ud800\ufffe\U0001fffe\n<!-- -->"


def gate(**changes: Any) -> dict[str, Any]:
    plain = {"gate": "accuracy", "metric": "accuracy", "split": "test", "expected": ">= 0.9", "value": 0.8, "confident": False}
    return {**plain, "baseline": None, "compared": 0.8, "passed": False, "missed_by": 0.1, **changes}


def test_a_case_for_the_run_and_one_for_each_gate() -> None:
    results = {
        "gates": [gate(), gate(gate="vs.f1", passed=True, missed_by=None)],
        "seconds": {"this_process": 2.5},
        "folder": "runs/x",
    }
    root = ElementTree.fromstring(junit_xml("tiny", results))
    assert (root.get("tests"), root.get("failures"), root.get("errors"), root.get("skipped")) == ("3", "1", "0", "0")
    suite = root[0]
    assert [case.get("name") for case in suite] == ["run", "expect.accuracy >= 0.9", "expect.vs.f1 >= 0.9"]
    assert suite[0].get("time") == "2.500"
    # Held against gates later: there is no start of a run, and readers refuse an empty time.
    assert datetime.fromisoformat(str(suite.get("timestamp"))).tzinfo is not None
    failure = suite[1].find("failure")
    assert failure is not None
    assert failure.get("message") == "0.8000 on test, expected >= 0.9: NOT MET, by 0.1"
    assert suite[2].find("failure") is None


def test_a_run_that_failed_is_an_error_and_its_gates_are_skipped() -> None:
    root = ElementTree.fromstring(junit_xml("tiny", None, ["no such file", "and another"], ["accuracy", "vs.f1"]))
    assert (root.get("tests"), root.get("failures"), root.get("errors"), root.get("skipped")) == ("3", "0", "1", "2")
    error = root[0][0].find("error")
    assert error is not None
    assert error.get("message") == "no such file"
    assert "and another" in str(error.text)


def test_hostile_text_leaves_it_well_formed() -> None:
    text = junit_xml(HOSTILE, {"gates": [gate(gate=HOSTILE, split=HOSTILE)], "folder": HOSTILE})
    root = ElementTree.fromstring(text.encode("utf-8"))
    assert len(root[0]) == 2
    assert root.find(".//x") is None
    failed = ElementTree.fromstring(junit_xml("x", None, [HOSTILE], [HOSTILE]).encode("utf-8"))
    assert "\\x1b[31m" in str(failed[0][0][0].text)
