from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_a_recipe_that_works(ftkit: Run, folder: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates are left out, and the run folder of the recipe is not touched."""
    ended = ftkit("train", recipe, "--smoke", "--json", 'expect={accuracy: "> 1"}')
    report = ended.document()
    assert (ended.code, ended.err) == (0, "")
    assert [stage["name"] for stage in report["stages"]] == [
        "read", "train", "kill", "resume", "export", "reload", "evaluate", "predict",
    ]  # fmt: skip
    assert report["recipe"] == "tiny"
    assert set(report["stages"][-2]["metrics"]) == {"validation", "test"}
    assert not list(folder.iterdir())
    monkeypatch.setattr("ftkit.api.smoke", lambda *arguments, **options: report)
    shown = ftkit("train", recipe, "--smoke")
    assert shown.out.splitlines()[0].split() == ["stage", "seconds", "what"]
    for text in ("SIGKILL in step 3", "steps 3 to 4", "train 16 of 48 rows", "train.batch_size 4 (recipe: 8)"):
        assert text in shown.out
    assert "tiny works on this machine from beginning to end (" in shown.out.splitlines()[-1]
    assert ftkit("train", recipe, "--smoke", "--quiet").out == ""


def test_what_fails_names_the_stage(ftkit: Run, recipe: Path) -> None:
    ended = ftkit("train", recipe, "--smoke", "data.train=nowhere.jsonl")
    assert (ended.code, ended.out) == (2, "")
    assert "no such file or folder: nowhere.jsonl (stage: read)" in ended.err


@pytest.mark.parametrize(
    "options",
    [["--resume"], ["--overwrite"], ["--output", "here"], ["--nproc", "2"], ["--junit", "report.xml"]],
    ids=lambda given: given[0],
)
def test_options_without_a_meaning_are_refused(ftkit: Run, recipe: Path, options: list[str]) -> None:
    ended = ftkit("train", recipe, "--smoke", *options)
    assert ended.code == 2
    assert ended.err.startswith(f"error: command line: --smoke takes no {options[0]}: it runs in a folder of its own")
