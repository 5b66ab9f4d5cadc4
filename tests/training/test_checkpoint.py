from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ftkit.errors import RunFolderError
from ftkit.training import checkpoint as module
from ftkit.training.checkpoint import BEST, RESUMABLE, complete_checkpoints, open_checkpoint, prune, save_checkpoint

TENSORS = {"trainable": {"w": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"exp_avg|w": torch.ones(2, 3)}}


def test_round_trip_is_exact(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "c", RESUMABLE, 7, TENSORS, {"a": 1})
    assert saved.path.name == "step-00000007"
    opened = open_checkpoint(saved.path)
    assert opened.state() == {"a": 1}
    assert torch.equal(opened.tensors("trainable")["w"], TENSORS["trainable"]["w"])
    assert {path.suffix for path in saved.path.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("writes_before_the_crash", range(6))
def test_a_crash_while_writing_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: Any, writes_before_the_crash: int
) -> None:
    """R3: whatever the moment of the crash, only complete checkpoints are found."""
    folder = tmp_path / "c"
    save_checkpoint(folder, RESUMABLE, 1, TENSORS, {"n": 1})
    real, calls = module.sync, []

    def crashing(path: Path) -> None:
        calls.append(path)
        if len(calls) > writes_before_the_crash:
            raise OSError("no space left on device")
        real(path)

    monkeypatch.setattr(module, "sync", crashing)
    try:
        save_checkpoint(folder, RESUMABLE, 2, TENSORS, {"n": 2})
    except OSError:
        pass
    monkeypatch.setattr(module, "sync", real)
    found, notes = complete_checkpoints(folder, RESUMABLE)
    assert notes == []
    assert [checkpoint.step for checkpoint in found] in ([1], [1, 2])
    assert found[-1].state() == {"n": found[-1].step}
    prune(folder, keep=5, best_step=None)
    assert not list(folder.glob(".tmp-*"))


@pytest.mark.parametrize("name", ["trainable.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damaged_checkpoints_are_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "c"
    save_checkpoint(folder, RESUMABLE, 1, TENSORS, {})
    newest = save_checkpoint(folder, RESUMABLE, 2, TENSORS, {}).path
    file = newest / name
    content = file.read_bytes()
    if damage == "delete":
        file.unlink()
    elif damage == "truncate":
        os.truncate(file, len(content) // 2)
    else:
        file.write_bytes(bytes([content[0] ^ 0xFF]) + content[1:])
    found, notes = complete_checkpoints(folder, RESUMABLE)
    assert [checkpoint.step for checkpoint in found] == [1]
    assert len(notes) == 1
    assert "step-00000002 is damaged" in notes[0]
    with pytest.raises(RunFolderError, match="not usable"):
        open_checkpoint(newest)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_pruning_keeps_the_last_and_the_best(tmp_path: Path, keep: int) -> None:
    """R6: the best and the newest are always there."""
    folder = tmp_path / "c"
    for step in range(1, 5):
        save_checkpoint(folder, RESUMABLE, step, TENSORS, {})
    for step in (1, 3):
        save_checkpoint(folder, BEST, step, TENSORS, {})
    prune(folder, keep=keep, best_step=3)
    assert [checkpoint.step for checkpoint in complete_checkpoints(folder, RESUMABLE)[0]] == list(range(1, 5))[-keep:]
    assert [checkpoint.step for checkpoint in complete_checkpoints(folder, BEST)[0]] == [3]


def test_pruning_keeps_what_was_best_when_a_kept_one_was_written(tmp_path: Path) -> None:
    """Should the newest be damaged, the run goes on from the one before, whose best weights were others."""
    folder = tmp_path / "c"
    for step, best in ((1, None), (2, 1), (3, 1), (4, 2), (5, 5)):
        save_checkpoint(folder, BEST, step, TENSORS, {})
        save_checkpoint(folder, RESUMABLE, step, TENSORS, {"stopping": {"best_step": best}})
    prune(folder, keep=3, best_step=5)
    assert [checkpoint.step for checkpoint in complete_checkpoints(folder, RESUMABLE)[0]] == [3, 4, 5]
    assert [checkpoint.step for checkpoint in complete_checkpoints(folder, BEST)[0]] == [1, 2, 5]


def test_replacing_a_checkpoint_of_the_same_step(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    save_checkpoint(folder, BEST, 3, TENSORS, {"n": 1})
    assert save_checkpoint(folder, BEST, 3, TENSORS, {"n": 2}).state() == {"n": 2}
    assert [path.name for path in folder.iterdir()] == ["best-00000003"]


def test_a_checkpoint_that_vanishes_while_it_is_looked_at_is_passed_over(tmp_path: Path, monkeypatch: Any) -> None:
    """The main process removes old ones while others look for theirs, and so does a run whose folder another program reads."""
    folder = tmp_path / "c"
    for step in (1, 2):
        save_checkpoint(folder, BEST, step, TENSORS, {})
    real = module.sha256_of

    def removed_meanwhile(path: Path) -> str:
        shutil.rmtree(folder / "best-00000001", ignore_errors=True)
        return real(path)

    monkeypatch.setattr(module, "sha256_of", removed_meanwhile)
    found, notes = complete_checkpoints(folder, BEST)
    assert [checkpoint.step for checkpoint in found] == [2]
    assert notes == ["best-00000001 is damaged (optimizer.safetensors is missing) and was passed over"]
