"""Hostile and failing trackers: they see few facts, and neither end a run nor write where they should not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker

from ftkit.run.folder import RunFolder
from ftkit.run.observer import Observer
from ftkit.run.tracking import Tracking
from ftkit.run.wiring import make_accelerator
from tests.security.conftest import Command
from tests.security.test_secrets import LOGIN_URL, leaks


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def fail(*arguments: Any, **options: Any) -> None:
    raise ConnectionError(f"\x1b[2Jno answer from {LOGIN_URL}\nand more")


def accelerator(folder: Path) -> Accelerator:
    return make_accelerator("fp32", trackers=["tensorboard"], folder=folder)


def test_a_tracker_that_does_not_start_ends_the_run_with_its_reason(
    finished: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "init_trackers", fail)
    ended = command("train", finished / "recipe.yaml", "--output", tmp_path / "run", "trackers=[tensorboard]", "export=[]")
    assert ended.code == 2, ended.said
    assert "the trackers cannot be started: ConnectionError" in ended.err
    assert "\x1b" not in ended.err
    assert not leaks(ended.said)
    assert not [path for path in RunFolder(tmp_path / "run").path.rglob("*") if path.is_file() and leaks(path.read_bytes())]


@pytest.mark.parametrize(("owner", "name"), [(Accelerator, "log"), (TensorBoardTracker, "finish")])
def test_a_tracker_that_fails_later_is_left_out(owner: type, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, fail)
    observer, reached = Notes(), 0
    tracking = Tracking(accelerator(tmp_path), ["tensorboard"], observer)
    with tracking.running({"recipe": "r", "method": "m"}):
        for step in range(3):
            tracking.log({"loss": 1.0}, step)
            reached += 1
    assert reached == 3
    assert len(observer.notes) == 1
    assert "failed and get nothing from now on: ConnectionError" in observer.notes[0]
    assert not leaks(observer.notes[0])


def test_errors_of_the_run_itself_are_not_taken_for_those_of_a_tracker(tmp_path: Path) -> None:
    tracking = Tracking(accelerator(tmp_path), ["tensorboard"], Notes())
    with pytest.raises(ZeroDivisionError), tracking.running({}):
        raise ZeroDivisionError


def test_trackers_write_inside_the_run_folder_and_follow_no_link(finished: Path, tmp_path: Path, command: Command) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.mkdir()
    (run / "log.txt").write_text("")
    (run / "ftkit").symlink_to(victim)
    for options in ((), ("--resume",)):
        ended = command("train", finished / "recipe.yaml", "--output", run, "trackers=[tensorboard]", *options)
        assert ended.code == 2
        assert "is a link to" in ended.err
    assert not list(victim.iterdir())
