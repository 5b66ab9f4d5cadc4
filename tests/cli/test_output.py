from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ftkit.cli import output
from tests.cli.conftest import Terminal, strict_json


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain ä 漢 😀\tx\ny", "plain ä 漢 😀\tx\ny"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m\x7f\x00\r", "\\x9b31m\\x7f\\x00\\x0d"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\ud800", "\\ud800"),
    ],
)
def test_clean_writes_control_characters_out(text: str, cleaned: str) -> None:
    assert output.clean(text) == cleaned


def test_one_line_joins_and_cuts() -> None:
    assert output.one_line("a\n b\u2028c\x1b") == "a b c\\x1b"
    assert output.one_line("abcdefgh", 5) == "abcd…"


def test_a_document_is_strict_and_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"nan": float("nan"), "label": "\x9b31m\u202e\x1b", "text": "ä"}
    output.emit(value)
    out = capsys.readouterr().out
    assert strict_json(out) == {**value, "nan": None}
    assert "\x9b" not in out
    assert "ä" in out


def test_only_documents_reach_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with output.standard_output_for_documents():
        sys.stdout.write("noise\n")
        with output.standard_output_for_documents():
            output.emit({"a": 1})
    sys.stdout.write("after\n")
    captured = capsys.readouterr()
    assert strict_json(captured.out.removesuffix("after\n")) == {"a": 1}
    assert captured.err == "noise\n"


def test_noise_of_other_processes_does_not_reach_standard_output_either() -> None:
    code = (
        "import os, subprocess\nfrom ftkit.cli.output import emit, standard_output_for_documents\n"
        "with standard_output_for_documents():\n"
        "    os.write(1, b'raw'); subprocess.run(['echo', 'child'])\n"
        "    emit({'text': 'a\\ud800'})\n"
        "print('after')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert strict_json(done.stdout.removesuffix("after\n")) == {"text": "a\ud800"}
    assert done.stderr == "rawchild\n"


def test_a_table_without_a_terminal_is_aligned_and_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["name", "n"], [["a", 5], ["b" * 300, 100]], title="Title", right=["n"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Title"
    assert lines[2] == "a" + " " * 299 + "    5"
    assert lines[3] == "b" * 300 + "  100"


def test_a_table_in_a_terminal_shows_data_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    output.print_table(["label", "n"], [["[red]:smile:[/]\x1b[2J", 1]], title="[b]T")
    assert "[red]:smile:[/]\\x1b[2J" in terminal.getvalue()
    assert "[b]T" in terminal.getvalue()
    assert "─" in terminal.getvalue()


@pytest.mark.parametrize("variable", [("CI", "true"), ("TERM", "dumb")])
def test_a_terminal_of_a_ci_job_is_none(variable: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert output.is_terminal(Terminal())
    monkeypatch.setenv(*variable)
    assert not output.is_terminal(Terminal())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "undefined"),
        (0.5, "0.5000"),
        (0.0, "0.0000"),
        (1e-5, "1e-05"),
        (-0.25, "-0.2500"),
        (12345.678, "12,346"),
        (1234, "1,234"),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert output.shown_number(value) == shown


def test_amounts() -> None:
    assert [output.shown_seconds(seconds) for seconds in (0.42, 100, 7500)] == ["0.4 s", "1 min 40 s", "2 h 5 min"]
    assert [output.shown_mib(mib) for mib in (86.44, 2048)] == ["86.4 MiB", "2.0 GiB"]
    assert output.shown_share(5, 200) == "5 of 200 (2.5 %)"
    assert output.shown_share(0, 0) == "0 of 0 (0 %)"
