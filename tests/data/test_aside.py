from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ftkit.data.aside import ABANDONED_AFTER, Aside, written_whole
from ftkit.errors import RunFolderError


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_is_gone_when_removed_and_stays_when_released(cache: Path) -> None:
    first, second = Aside(cache), Aside(cache)
    (first.path / "part").write_text("x")
    (second.path / "part").write_text("x")
    first.remove()
    kept = second.release()
    assert names(cache) == [kept.name]
    assert names(kept) == ["part"]
    kept.rename(cache / "whole")
    second.remove()
    assert names(cache) == ["whole"]


def test_what_a_killed_process_left_is_swept_and_what_others_hold_is_not(cache: Path) -> None:
    code = f"""
import time
from pathlib import Path
from ftkit.data.aside import Aside
place = Aside(Path({str(cache)!r}))
(place.path / "part").write_text("half")
print(place.path.name, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        mine = Aside(cache)
        held = names(cache)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert held == sorted([name, mine.path.name])
    other = Aside(cache)
    assert names(cache) == sorted([mine.path.name, other.path.name])


@pytest.mark.parametrize(("age", "left"), [(ABANDONED_AFTER + 60, 0), (60, 2)])
def test_folders_without_a_lock_are_left_for_a_day(cache: Path, age: float, left: int) -> None:
    for name in (".writing-old", ".new-old"):
        (cache / name).mkdir()
        seconds = (cache / name).stat().st_mtime - age
        os.utime(cache / name, (seconds, seconds))
    (cache / "entry").mkdir()
    Aside(cache).remove()
    assert len(names(cache)) == left + 1
    assert (cache / "entry").is_dir()


def broken_off(target: Path) -> None:
    with written_whole(target) as folder:
        (folder / "one").touch()
        raise KeyboardInterrupt


def overtaken(target: Path) -> None:
    """Another process makes the folder meanwhile."""
    with written_whole(target):
        target.mkdir()
        (target / "theirs").touch()


def test_a_folder_is_written_whole_or_not_at_all(cache: Path) -> None:
    target = cache / "out"
    left = cache / ".tmp-out" / "out"
    left.mkdir(parents=True)
    (left / "half").touch()
    with pytest.raises(KeyboardInterrupt):
        broken_off(target)
    assert names(cache) == []
    with written_whole(target) as folder:
        assert names(folder) == []
        (folder / "one").touch()
        assert not target.exists()
    assert (names(cache), names(target)) == (["out"], ["one"])
    with pytest.raises(RunFolderError, match=r"already holds files. Choose another folder with --to"), written_whole(target):
        pass


def test_two_do_not_write_one_folder(cache: Path) -> None:
    target = cache / "out"
    with written_whole(target, "--output") as folder:
        (folder / "one").touch()
        with (
            pytest.raises(RunFolderError, match=r"is being written by another process.*--output"),
            written_whole(target, "--output"),
        ):
            pass
    assert names(target) == ["one"]
    # Whoever came in between wins.
    other = cache / "other"
    with pytest.raises(RunFolderError, match="already holds files"):
        overtaken(other)
    assert (names(cache), names(other)) == (["other", "out"], ["theirs"])
