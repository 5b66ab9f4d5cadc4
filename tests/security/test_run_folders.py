"""Hostile run folders: pickles among checkpoints, manifests and results that lie, links that lead out, files that never end."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import ftkit
from ftkit.errors import FtkitError, RunFolderError
from ftkit.files import read_json, sha256_of, write_json, write_text
from tests.security.conftest import Command
from tests.security.hostile import LYING, Mark, snapshot
from tests.security.test_model_folders import edit

PICKLES = ("optimizer.pt", "training_args.bin", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "trainable.pt", "state.pkl")


def resume(finished: Path, run: Path, command: Command) -> tuple[int, str]:
    ended = command("train", finished / "recipe.yaml", "--output", run, "--resume", "export=[]")
    return ended.code, ended.said


def interrupted(run: Path) -> Path:
    """The run as if it had been stopped after its last step."""
    edit(run / "results.json", status="interrupted")
    return run


def test_pickles_in_checkpoints_are_never_read(mark: Mark, run_copy: Path, finished: Path, command: Command) -> None:
    for folder in [*(run_copy / "checkpoints").iterdir(), run_copy, run_copy / "export" / "adapter"]:
        for name in PICKLES:
            (folder / name).write_bytes(mark.torch_file())
    assert command("predict", run_copy, "--text", "w1").code == 0
    assert resume(finished, interrupted(run_copy), command)[0] == 0


def test_pickles_in_place_of_tensors_are_damage(mark: Mark, run_copy: Path, finished: Path, command: Command) -> None:
    """Also where the manifest vouches for them."""
    for folder in (run_copy / "checkpoints").iterdir():
        files = {}
        for path in [path for path in folder.iterdir() if path.name != "manifest.json"]:
            if path.suffix == ".safetensors":
                path.write_bytes(mark.torch_file())
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        edit(folder / "manifest.json", files=files)
    for arguments in (("predict", run_copy, "--text", "w1"), ("evaluate", run_copy), ("export", run_copy, "--format", "merged")):
        ended = command(*arguments)
        assert ended.code == 2, ended.said
        assert "holds no tensors as ftkit writes them" in ended.err
    assert resume(finished, interrupted(run_copy), command)[0] == 2


@pytest.mark.parametrize("what", LYING)
def test_lying_safetensors_in_checkpoints_are_damage(what: str, run_copy: Path) -> None:
    folder = run_copy / json.loads((run_copy / "results.json").read_text())["weights"]
    file = folder / "trainable.safetensors"
    file.write_bytes(LYING[what])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    edit(folder / "manifest.json", **manifest)
    with pytest.raises(FtkitError):
        ftkit.load(run_copy)


@pytest.mark.parametrize(
    "weights", ["../../elsewhere", "/etc", "checkpoints/..", "checkpoints/../../x", "", "checkpoints/best-1\n"]
)
def test_weights_lie_in_the_run(weights: str, run_copy: Path, command: Command) -> None:
    edit(run_copy / "results.json", weights=weights)
    for arguments in (("predict", run_copy, "--text", "w1"), ("adapters", "inspect", run_copy)):
        ended = command(*arguments)
        assert ended.code == 2
        assert "expected a checkpoint of the run" in ended.err


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd"])
def test_manifests_name_files_of_their_folder(name: str, run_copy: Path) -> None:
    folder = run_copy / json.loads((run_copy / "results.json").read_text())["weights"]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "x"}
    edit(folder / "manifest.json", **manifest)
    with pytest.raises(RunFolderError, match="is missing"):
        ftkit.load(run_copy)


JSON_FILES = ("results.json", "lock.json", "task.json")


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize("content", ["[" * 100_000, "null", "[]", '{"status": 5}', "\x80\x04N.", ""], ids=range(6))
def test_damaged_json_of_a_run_is_told(file: str, content: str, run_copy: Path, command: Command) -> None:
    (run_copy / file).write_text(content)
    ended = command("predict", run_copy, "--text", "w1")
    assert ended.code == 2, ended.said
    assert str(run_copy) in ended.err


def test_endless_files_of_a_run_are_refused(run_copy: Path, command: Command) -> None:
    for file in (*JSON_FILES, "plan.yaml"):
        kept = (run_copy / file).read_bytes()
        (run_copy / file).unlink()
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
            make(run_copy / file)
            assert command("predict", run_copy, "--text", "w1").code == 2
            (run_copy / file).unlink()
        (run_copy / file).write_bytes(kept)
    assert command("predict", run_copy, "--text", "w1").code == 0


LINKS = (
    "checkpoints",
    "export",
    "results.json",
    "metrics.jsonl",
    "log.txt",
    ".lock",
    "task.json",
    "plan.yaml",
    ".tmp-results.json",
)


@pytest.mark.parametrize("name", [*LINKS, "export/adapter", "checkpoints/.tmp-step-00000002", "checkpoints/step-00000001"])
def test_links_in_a_run_folder_are_not_written_through(
    name: str, run_copy: Path, finished: Path, tmp_path: Path, command: Command
) -> None:
    victim = tmp_path / "victim"
    link = interrupted(run_copy) / name
    if link.is_dir():
        shutil.move(link, victim)
    elif link.exists():
        link.rename(victim)
    else:
        victim.write_text("mine")
    link.symlink_to(victim)
    before = snapshot(victim) if victim.is_dir() else victim.read_bytes()
    code, said = resume(finished, run_copy, command)
    assert code == 2
    assert "is a link to" in said
    assert (snapshot(victim) if victim.is_dir() else victim.read_bytes()) == before


def test_links_that_wait_in_a_new_folder_are_refused(finished: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").symlink_to(tmp_path / "victim")
    ended = command("train", finished / "recipe.yaml", "--output", tmp_path / "run")
    assert ended.code == 2
    assert "is a link to" in ended.err
    assert (tmp_path / "victim").read_text() == "mine"


def test_exports_do_not_follow_links_of_the_run(run_copy: Path, tmp_path: Path, command: Command) -> None:
    shutil.rmtree(run_copy / "export")
    (tmp_path / "victim").mkdir()
    (run_copy / "export").symlink_to(tmp_path / "victim")
    ended = command("export", run_copy, "--format", "adapter")
    assert ended.code == 2
    assert "is a link to" in ended.err
    assert not list((tmp_path / "victim").iterdir())


def test_files_are_written_beside_links_not_through_them(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    for name in ("a.json", ".tmp-a.json", "b.txt", ".tmp-b.txt"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    write_json(tmp_path / "a.json", {"x": 1})
    write_text(tmp_path / "b.txt", "y")
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert not (tmp_path / "a.json").is_symlink()
    assert (tmp_path / "b.txt").read_text() == "y"
    assert (tmp_path / "victim").read_text() == "mine"


def test_pickles_in_the_cache_are_never_read(
    mark: Mark, finished: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = shutil.copytree(finished / "cache", tmp_path / "cache")
    monkeypatch.setenv("FTKIT_CACHE", str(cache))
    entries = [path.parent for path in (cache / "tokens").rglob("manifest.json")]
    assert entries
    for entry in entries:
        for path in entry.iterdir():
            if path.suffix == ".arrow":
                path.write_bytes(mark.pickle())
        (entry / "tokens.pkl").write_bytes(mark.pickle())
    ended = command("train", finished / "recipe.yaml", "--output", tmp_path / "run", "export=[]")
    assert ended.code == 0, ended.said


def test_labels_are_no_file_names(finished: Path, tmp_path: Path, command: Command) -> None:
    labels = ("../../../escaped", "/etc/escaped", "a\x00b", "con\n")
    rows = [{"text": f"w{number % 9}", "label": labels[number % len(labels)]} for number in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outside = snapshot(finished)
    overrides = [f"data.train={tmp_path / 'rows.jsonl'}", "train.max_steps=1", "export=[]"]
    ended = command("train", finished / "recipe.yaml", "--output", tmp_path / "runs" / "run", *overrides)
    assert ended.code in (0, 2), ended.said
    assert snapshot(finished) == outside
    assert not list(tmp_path.rglob("*escaped*"))
    if ended.code == 0:
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["runs", "work"]
