from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ftkit.cli.comparing import signed
from tests.cli.conftest import Run


@pytest.fixture
def other(folder: Path, trained: Path) -> Path:
    """A run that differs in a recipe value, a version, the test rows, a metric and the weights; made by hand."""
    run = Path(shutil.copytree(trained, folder / "other"))
    change(run / "lock.json", lambda lock: lock["versions"].update(torch="0.0.1"))
    change(run / "lock.json", lambda lock: lock["training"]["data"]["test"].update(sha256="0" * 64))
    change(run / "results.json", lambda results: results["splits"]["test"]["metrics"].update(accuracy=0.25))
    change(run / "results.json", lambda results: [entry.update(sha256="1" * 64) for entry in results["artifacts"]])
    change(run / "lock.json", lambda lock: lock["training"]["recipe"]["train"].update(batch_size=4))
    return run


def change(path: Path, action: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    action(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_diff_names_everything_that_differs(ftkit: Run, trained: Path, other: Path) -> None:
    ended = ftkit("diff", trained, other, "--json")
    found = ended.document()
    assert ended.code == 0
    assert found["recipe"] == [{"key": "train.batch_size", "a": 8, "b": 4}]
    assert [entry["split"] for entry in found["data"]] == ["test"]
    assert [(entry["name"], entry["b"]) for entry in found["versions"]] == [("torch", "0.0.1")]
    assert (found["model_files"], found["environment"], found["status"]) == ([], [], [])
    [accuracy] = [entry for entry in found["metrics"] if (entry["split"], entry["metric"]) == ("test", "accuracy")]
    assert accuracy["b"] == 0.25
    assert accuracy["difference"] == pytest.approx(0.25 - accuracy["a"])
    assert len(accuracy["interval_a"]) == 2
    assert all(entry["a"] != entry["b"] for entry in found["weights"])
    shown = ftkit("diff", trained, other).out
    for text in ("train.batch_size", "torch", "000000000000", "test", "accuracy", "peak_memory_mib", "the same: model files"):
        assert text in shown


def test_a_run_does_not_differ_from_itself(ftkit: Run, trained: Path) -> None:
    found = ftkit("diff", trained, trained, "--json").document()
    assert [part for part in ("recipe", "data", "model_files", "versions", "environment", "status") if found[part]] == []
    assert {entry["difference"] for entry in found["metrics"] if entry["a"] is not None} == {0.0}
    assert found["weights"]
    assert all(entry["a"] == entry["b"] for entry in found["weights"])


def test_runs_that_cannot_be_read_end_with_2(ftkit: Run, folder: Path, trained: Path, other: Path) -> None:
    assert ftkit("diff", trained, "nowhere").code == 2
    (other / "lock.json").write_text("{}", encoding="utf-8")
    ended = ftkit("diff", trained, other)
    assert (ended.code, "not what ftkit wrote" in ended.err) == (2, True)


def test_a_rerun_gives_the_same_weights_and_metrics(ftkit: Run, folder: Path, trained: Path) -> None:
    ended = ftkit("rerun", trained, "--output", "again", "--json")
    found = ended.document()
    assert (ended.code, found["same"], found["metrics"], found["weights"]) == (0, True, [], [])
    assert found["folder"] == str(folder / "again")
    assert json.loads((folder / "again" / "results.json").read_text(encoding="utf-8"))["recipe"] == "tiny"


def test_a_rerun_that_comes_out_otherwise_ends_with_4(ftkit: Run, folder: Path, trained: Path) -> None:
    run = Path(shutil.copytree(trained, folder / "run"))
    change(run / "lock.json", lambda lock: lock["versions"].update(torch="0.0.1"))
    change(run / "results.json", lambda results: results["splits"]["test"]["metrics"].update(accuracy=0.25))
    ended = ftkit("rerun", run)
    assert ended.code == 4
    for text in ("metrics that differ", "accuracy", "torch", "0.0.1", f"{folder / 'run-rerun'}: NOT the same as {run}"):
        assert text in ended.out
    ended = ftkit("rerun", run)
    assert (ended.code, "already holds files" in ended.err) == (2, True)


def test_a_rerun_on_other_rows_is_refused_and_leaves_nothing(ftkit: Run, folder: Path, other: Path) -> None:
    ended = ftkit("rerun", other, "--output", "again")
    assert ended.code == 2
    assert "cannot be run again: not the same as when it was trained" in ended.err
    assert "the test rows" in ended.err
    assert not (folder / "again").exists()


@pytest.mark.parametrize(("difference", "shown"), [(1234, "+1,234"), (-0.5, "-0.5000"), (0, "0"), (None, "undefined")])
def test_differences_of_resources_have_a_sign_as_those_of_metrics(difference: float | None, shown: str) -> None:
    assert signed(difference) == shown
