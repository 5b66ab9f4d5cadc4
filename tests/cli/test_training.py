from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run

METHOD = """
from ftkit.methods.full import Full

class Everything(Full):
    name = "everything"
"""


def test_train_prints_stages_and_a_summary(ftkit: Run, folder: Path, recipe: Path) -> None:
    ended = ftkit("train", recipe, "export=[]")
    assert (ended.code, ended.err) == (0, "")
    for text in ("reading data\n", "encoding train\n", "6 steps; ", "step 6/6", "evaluation at step 6", "test (16 rows)  accuracy"):
        assert text in ended.out
    assert ended.out.endswith(f"run folder: {folder / 'runs' / 'tiny'}\n")
    assert "export/" not in ended.out


def test_json_is_the_results_file_and_a_missed_gate_gives_4(ftkit: Run, folder: Path, recipe: Path) -> None:
    ended = ftkit("train", recipe, "export=[]", 'expect={accuracy: "> 1"}', "--output", "out", "--json")
    results = ended.document()
    assert (ended.code, results["exit_code"], results["status"]) == (4, 4, "gate_not_met")
    assert ended.err == f"{folder / 'out'}\n"
    assert (
        results
        == ftkit("train", recipe, "export=[]", 'expect={accuracy: "> 1"}', "--output", "out", "--json", "--resume").document()
    )


def test_quiet_prints_the_folder_and_what_went_wrong(ftkit: Run, folder: Path, recipe: Path) -> None:
    ended = ftkit("train", recipe, "export=[]", 'expect={accuracy: "> 1"}', "--output", "out", "--quiet")
    assert (ended.code, ended.out) == (4, f"{folder / 'out'}\n")
    assert ended.err.startswith("error: expect.accuracy: ")
    assert "expected > 1: NOT MET" in ended.err


def test_a_run_that_learned_nothing_is_called_that(ftkit: Run, folder: Path, recipe: Path) -> None:
    ruined = ["export=[]", "train.learning_rate=1e6", "train.epochs=3"]
    ended = ftkit("train", recipe, *ruined, "--output", "shown")
    assert ended.code == 0
    assert "\nwarning: the training loss rose from 0." in ended.out
    assert "Lower train.learning_rate (it was 1e+06)" in ended.out
    quiet = ftkit("train", recipe, *ruined, "--output", "quiet", "--quiet")
    assert (quiet.code, quiet.out) == (0, f"{folder / 'quiet'}\n")
    assert quiet.err.startswith("warning: the training loss rose from 0.")
    assert "warning" not in ftkit("train", recipe, "export=[]", "--output", "sound").out


def test_a_finished_run_resumed_shows_its_summary_again(ftkit: Run, trained: Path, recipe: Path) -> None:
    ended = ftkit("train", recipe, "--output", trained, "--resume")
    assert ended.code == 0
    assert "already finished" in ended.out
    assert "status: completed" in ended.out
    assert f"adapter: {trained / 'export' / 'adapter'} (" in ended.out


def test_an_existing_folder_is_refused_and_resume_and_overwrite_exclude_each_other(ftkit: Run, trained: Path, recipe: Path) -> None:
    ended = ftkit("train", recipe, "--output", trained)
    assert ended.code == 2
    assert "--overwrite" in ended.err
    ended = ftkit("train", recipe, "--output", trained, "--resume", "--overwrite")
    assert (ended.code, ended.err.splitlines()[0]) == (2, "error: command line: give --resume or --overwrite, not both")


def test_a_plugin_brings_a_method(ftkit: Run, folder: Path, recipe: Path) -> None:
    Path("mine.py").write_text(METHOD, encoding="utf-8")
    changes = ["method=everything", "export=[]"]
    assert ftkit("validate", recipe, *changes).code == 2
    ended = ftkit("train", recipe, *changes, "--plugin", "mine.py", "--json")
    assert ended.code == 0
    assert ended.document()["method"] == "everything"


def test_a_plugin_that_is_not_there(ftkit: Run, recipe: Path) -> None:
    ended = ftkit("validate", recipe, "--plugin", "nowhere.py")
    assert ended.code == 2
    assert "no such file" in ended.err
