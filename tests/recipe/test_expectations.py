from __future__ import annotations

from typing import Any

import pytest

from ftkit.recipe.expectations import Gate, gated_metrics, parse_bound, parse_gates, wrong_gates, wrong_names

VERSUS = {"file": "b.json", "accuracy": ">= -0.005", "f1": {"bound": "> 0", "confident": True}}
EXPECT = {"accuracy": " >= 0.95", "loss": {"bound": "< 0.3"}, "peak_memory_mib": "< 4000", "vs": VERSUS}


def test_gates_are_read_in_order_with_those_against_a_baseline_last() -> None:
    found = parse_gates(EXPECT)
    assert [gate.key for gate in found] == ["accuracy", "loss", "peak_memory_mib", "vs.accuracy", "vs.f1"]
    assert [gate.expected for gate in found] == [">= 0.95", "< 0.3", "< 4000", ">= -0.005", "> 0"]
    assert [gate.confident for gate in found] == [False, False, False, False, True]
    assert [gate.versus for gate in found] == ["", "", "", "b.json", "b.json"]
    assert [gate.is_resource for gate in found] == [False, False, True, False, False]
    assert parse_gates({}) == []


def test_the_metrics_that_gates_count_on_go_by_their_first_key() -> None:
    assert gated_metrics(EXPECT) == {"accuracy": "accuracy", "loss": "loss", "f1": "vs.f1"}


@pytest.mark.parametrize(
    ("bound", "value", "holds", "missed"),
    [
        (">= 0.5", 0.5, True, None),
        ("> 0.5", 0.5, False, 0.0),
        ("< 3", 5.0, False, 2.0),
        ("<= 3", 3.0, True, None),
        (">= -0.005", -0.01, False, 0.005),
        (">= 0", None, False, None),
    ],
)
def test_a_bound_says_by_how_much_it_is_missed(bound: str, value: float | None, holds: bool, missed: float | None) -> None:
    read, wrong = parse_bound(bound)
    assert read is not None
    assert wrong == ""
    assert read.holds(value) is holds
    assert read.missed_by(value) == (missed if missed is None else pytest.approx(missed))


@pytest.mark.parametrize(
    ("expect", "path", "message", "hint"),
    [
        ({"accuracy": 0.9}, ("accuracy",), "0.9 is not a comparison", 'in quotes: `accuracy: ">= 0.9"`'),
        ({"accuracy": "0.9"}, ("accuracy",), "'0.9' is not a comparison with a number", '">= 0.95"'),
        ({"accuracy": True}, ("accuracy",), "True is not a comparison", '">= 0.95"'),
        ({"accuracy": None}, ("accuracy",), "nothing (null) is not a comparison", '">= 0.95"'),
        ({"accuracy": {"confident": True}}, ("accuracy",), "has no `bound`", "confident: true"),
        ({"accuracy": {"bound": ">= 1", "confidant": True}}, ("accuracy", "confidant"), "unknown key 'confidant'", "'confident'"),
        ({"accuracy": {"bound": ">= 1", "confident": "yes"}}, ("accuracy", "confident"), "'yes' is not true or false", "Write"),
        ({"vs": "b.json"}, ("vs",), "is not a mapping", "file: baseline.json"),
        ({"vs": {"accuracy": ">= 0"}}, ("vs",), "names no baseline file", "file: baseline.json"),
        ({"vs": {"file": 3, "accuracy": ">= 0"}}, ("vs", "file"), "names no baseline file", "file: baseline.json"),
        ({"vs": {"file": "b.json"}}, ("vs",), "compares nothing", "accuracy"),
        ({"vs": {"file": "b.json", "f1": "high"}}, ("vs", "f1"), "'high' is not a comparison", '">= 0.95"'),
    ],
)
def test_what_is_wrong_is_said_at_its_key(expect: dict[str, Any], path: tuple[str, ...], message: str, hint: str) -> None:
    [(found, said, way_out)] = wrong_gates(expect)
    assert found == ("expect", *path)
    assert message in said
    assert hint in way_out


@pytest.mark.parametrize(
    ("expect", "path", "message", "hint"),
    [
        ({"accurcy": ">= 1"}, ("accurcy",), "unknown metric 'accurcy'", "Did you mean 'accuracy'?"),
        ({"vs": {"file": "b", "bleu": "> 1"}}, ("vs", "bleu"), "unknown metric 'bleu'", "resources: peak_memory_mib"),
        ({"merged_bytes": "< 1"}, ("merged_bytes",), "exports no merged", "Add `export: [merged]`"),
        (
            {"loss": {"bound": "< 1", "confident": True}},
            ("loss", "confident"),
            "loss has no interval",
            "With an interval: accuracy",
        ),
        (
            {"training_seconds": {"bound": "< 9", "confident": True}},
            ("training_seconds", "confident"),
            "has no interval",
            "Remove it",
        ),
    ],
)
def test_what_a_run_will_not_have_is_refused(expect: dict[str, Any], path: tuple[str, ...], message: str, hint: str) -> None:
    [(found, said, way_out)] = wrong_names(expect, {"accuracy": True, "loss": False}, ["adapter"], "text-classification")
    assert found == ("expect", *path)
    assert message in said
    assert hint in way_out


def test_what_is_right_is_not_refused() -> None:
    assert wrong_gates(EXPECT) == []
    good = {"adapter_bytes": "< 1e6", "accuracy": {"bound": "> 0", "confident": True}}
    assert wrong_names(good, {"accuracy": True}, ["adapter"], "t") == []
    assert isinstance(parse_gates(good)[0], Gate)
