"""A hostile working folder: modules that would be imported, a git checkout whose configuration names programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftkit.run.machine import git_revision
from tests.security.hostile import Mark, snapshot

GIT = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@f", *arguments],
        check=True,
        env=GIT,
        capture_output=True,
    )


@pytest.fixture
def checkout(tmp_path: Path, mark: Mark) -> Path:
    """A checkout that runs programs in an ordinary `git status`, which is checked here."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "rows.txt").write_text("a\n")
    (folder / ".gitattributes").write_text("*.txt filter=evil=x\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "m")
    git(folder, "config", "core.fsmonitor", f"{mark.shell()}; false")
    git(folder, "config", "filter.evil=x.clean", f"{mark.shell()}; cat")
    git(folder, "config", "filter.evil=x.required", "true")
    os.utime(folder / "rows.txt", (1, 1))
    return folder


def test_programs_that_a_checkout_names_are_not_started(checkout: Path, mark: Mark) -> None:
    before = snapshot(checkout / ".git")
    found = git_revision(checkout)
    assert found is not None
    assert len(found["commit"]) == 40
    assert found["dirty"] is False
    assert snapshot(checkout / ".git") == before
    assert not mark.path.exists()
    (checkout / "rows.txt").write_text("b\n")
    assert (git_revision(checkout) or {})["dirty"] is True
    assert not mark.path.exists()
    git(checkout, "status")
    assert mark.path.exists()  # the trap works
    mark.path.rmdir()


def test_settings_of_git_in_the_environment_stay(checkout: Path, monkeypatch: pytest.MonkeyPatch, mark: Mark) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "safe.directory")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "*")
    assert git_revision(checkout) is not None


def test_a_bare_repository_inside_a_folder_is_not_believed(tmp_path: Path, mark: Mark) -> None:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    git(folder, "init", "-q", "--bare")
    (folder / "config").write_text(f'[core]\n bare = false\n worktree = "."\n fsmonitor = "{mark.shell()}"\n')
    git_revision(folder)


def test_modules_of_the_working_folder_are_not_imported(tmp_path: Path, mark: Mark) -> None:
    from ftkit.children import command

    for name in ("pydantic", "yaml", "json", "torch", "sitecustomize", "usercustomize", "ftkit", "wandb", "numpy"):
        (tmp_path / f"{name}.py").write_text(mark.code())
    done = subprocess.run(command("ftkit.cli.app", ["methods"]), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    script = "import sys; from ftkit.cli.app import main; main(['methods'])"
    safe = subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert safe.returncode == 0 or sys.version_info < (3, 11), safe.stderr
