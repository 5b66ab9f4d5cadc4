from __future__ import annotations

from pathlib import Path

import pytest

from ftkit.cli.failure import print_problems
from ftkit.cli.github import add_summary, annotation, markdown_table, summary
from ftkit.errors import Problem
from tests.cli.test_junit import gate


def test_an_annotation_stands_at_file_line_and_column() -> None:
    problem = Problem(message="unknown key 'lr'", place="a,b.yaml:13:3", key="train.lr", hint="Did you mean 'learning_rate'?")
    assert annotation(problem) == (
        "::error file=a%2Cb.yaml,line=13,col=3,title=ftkit%3A train.lr::unknown key 'lr'%0ADid you mean 'learning_rate'?"
    )
    assert (
        annotation(Problem(message="m", place="rows.jsonl, line 4"), "warning") == "::warning file=rows.jsonl,line=4,title=ftkit::m"
    )
    assert annotation(Problem(message="m", place="command line")) == "::error title=ftkit::command line: m"


def test_no_text_ends_an_annotation_or_begins_another() -> None:
    text = annotation(Problem(message="100 %\n::set-env name=A::b\r\x1b", key="k:,\n::error::"))
    assert "\n" not in text
    assert "\r" not in text
    assert text == "::error title=ftkit%3A k%3A%2C%0A%3A%3Aerror%3A%3A::100 %25%0A::set-env name=A::b\\x0d\\x1b"


def test_annotations_are_for_github_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    print_problems([Problem(message="m")])
    assert capsys.readouterr().err == "error: m\n"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    print_problems([Problem(message="m")], kind="warning")
    assert capsys.readouterr() == ("", "::warning title=ftkit::m\nwarning: m\n")


def test_the_summary_has_gates_and_metrics() -> None:
    splits = {"test": {"rows": 16, "metrics": {"accuracy": 0.8}, "intervals": {"accuracy": (0.7, 0.9)}}}
    text = summary("tiny", {"status": "gate_not_met", "gates": [gate()], "splits": splits})
    assert text.startswith("### ftkit tiny: gate not met\n")
    assert "| accuracy | &#62;= 0.9 | 0.8000 on test | NOT MET | 0.1 |" in text
    assert "| accuracy | 0.8000 &#91;0.7000, 0.9000&#93; |" in text
    assert "- it &#60;b&#62; broke" in summary("tiny", None, ["it <b> broke"])


def test_no_text_is_markup() -> None:
    table = markdown_table(["a|b"], [["`x` | <img src=x>\n| [y](z) @all #1"]])
    assert table.splitlines() == [
        "| a&#124;b |",
        "| --- |",
        "| &#96;x&#96; &#124; &#60;img src=x&#62; &#124; &#91;y&#93;(z) &#64;all &#35;1 |",
    ]


def test_the_summary_is_appended_where_github_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    assert add_summary("not a job") == ""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert add_summary("after") == ""
    assert path.read_text(encoding="utf-8") == "before\nafter\n"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    assert "cannot be written" in add_summary("x")
