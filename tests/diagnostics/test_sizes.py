from __future__ import annotations

import pytest

from ftkit.diagnostics.sizes import COARSE, FINE, half_width, rows_for, size_findings
from ftkit.registry import TASKS
from tests.diagnostics.rows import clean_rows, splits_of, train_spec


def test_half_widths_are_those_of_the_binomial_distribution() -> None:
    assert half_width(100) == pytest.approx(1.96 * 0.03)
    assert half_width(rows_for(FINE)) <= FINE < half_width(rows_for(FINE) - 1)


@pytest.mark.parametrize(
    ("rows", "severity"),
    [(rows_for(FINE), None), (rows_for(FINE) - 1, "note"), (rows_for(COARSE), "note"), (rows_for(COARSE) - 1, "warning")],
)
def test_small_splits(rows: int, severity: str | None) -> None:
    splits = splits_of({"train": clean_rows(30), "test": clean_rows(rows)})
    found = [(finding.check, finding.severity) for finding in size_findings(splits, train_spec(), answered=True)]
    assert found == ([("small-split", severity)] if severity else [])
    assert size_findings(splits, train_spec(), answered=False) == []


def test_only_shares_of_examples_have_such_a_precision() -> None:
    made = {name: TASKS.get(name)(TASKS.get(name).Options()).measures_share for name in TASKS.names()}
    right = {"text-classification", "image-classification", "question-answering"}
    assert {name for name, share in made.items() if share} == right
    of_text = TASKS.get("text-classification")
    assert not of_text(of_text.Options(problem_type="regression")).measures_share


def test_early_stopping_needs_validation_rows() -> None:
    spec = train_spec(early_stopping={"patience": 2})
    without = splits_of({"train": clean_rows(30)})
    assert [finding.check for finding in size_findings(without, spec, answered=True)] == ["missing-validation"]
    assert size_findings(without, train_spec(), answered=True) == []
    assert size_findings(splits_of({"train": clean_rows(30), "validation": clean_rows(300)}), spec, answered=True) == []
