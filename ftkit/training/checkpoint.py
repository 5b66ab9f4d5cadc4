"""Checkpoints that are complete or absent.

    checkpoints/
      step-00000120/   trainable.safetensors  optimizer.safetensors  state.json  manifest.json
      best-00000080/   trainable.safetensors  state.json  manifest.json

A checkpoint is written under a temporary name, made durable file by file, its manifest (sizes and sha256) last, and then renamed.
Only safetensors and JSON are written or read: nothing is ever unpickled.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ftkit.errors import Problem, RunFolderError
from ftkit.files import read_json, sha256_of, sync, write_json

MANIFEST = "manifest.json"
RESUMABLE, BEST = "step", "best"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors of `<name>.safetensors`, on the CPU; none where it was not written. Raises RunFolderError if they cannot be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.path / f"{name}.safetensors"
        try:
            return load_file(path) if path.name in read_json(self.path / MANIFEST)["files"] else {}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise _unusable(path, f"it holds no tensors as ftkit writes them: {error}") from error

    def state(self) -> dict[str, Any]:
        """The content of state.json. Raises RunFolderError if it cannot be read."""
        path = self.path / "state.json"
        try:
            return dict(read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise _unusable(path, f"it holds no JSON as ftkit writes it: {error}") from error


def checkpoint_path(folder: Path, kind: str, step: int) -> Path:
    """Where the checkpoint of a kind and a step lies."""
    return folder / f"{kind}-{step:08d}"


def save_checkpoint(folder: Path, kind: str, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Any) -> Checkpoint:
    """Writes a checkpoint of `kind` (`step` or `best`) and returns it: a file for each non-empty entry of `tensors`, and `state`.

    An equal name is replaced.
    """
    folder.mkdir(exist_ok=True)
    final = checkpoint_path(folder, kind, step)
    temporary = folder / f".tmp-{final.name}"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    for name, values in ((name, values) for name, values in tensors.items() if values):
        _save_tensors(values, temporary / f"{name}.safetensors")
    write_json(temporary / "state.json", state)
    files = sorted(path for path in temporary.iterdir())
    for path in files:
        sync(path)
    entries = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}
    write_json(temporary / MANIFEST, {"step": step, "files": entries})
    sync(temporary)
    if final.exists():
        os.replace(final, folder / f".tmp-old-{final.name}")
    os.replace(temporary, final)
    sync(folder)
    shutil.rmtree(folder / f".tmp-old-{final.name}", ignore_errors=True)
    return Checkpoint(final, step)


def _save_tensors(values: Mapping[str, Tensor], file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, file)
    except SafetensorError as error:
        # It has no class of its own for a full disk.
        raise OSError(None, str(error), str(file)) from error


def complete_checkpoints(folder: Path, kind: str) -> tuple[list[Checkpoint], list[str]]:
    """Complete checkpoints of a kind, oldest first, and a note for each that is damaged."""
    found, notes = [], []
    for path in _named(folder, kind):
        if wrong := damage(path):
            notes.append(f"{path.name} is damaged ({wrong}) and was passed over")
        else:
            found.append(Checkpoint(path, _step(path)))
    return found, notes


def damage(path: Path) -> str:
    """What is wrong with a checkpoint folder, '' if nothing."""
    try:
        files = read_json(path / MANIFEST)["files"]
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "no readable manifest"
    if "state.json" not in expected:
        return "the manifest names no state.json"
    for name, (size, digest) in expected.items():
        file = path / Path(name).name
        try:
            if file.stat().st_size != size or sha256_of(file) != digest:
                return f"{name} is not what was written"
        except FileNotFoundError:
            # Also where the folder is being removed at this moment, by the process that keeps only the newest.
            return f"{name} is missing"
        except (OSError, ValueError):
            return f"{name} cannot be read"
    return ""


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises RunFolderError if it is damaged or missing."""
    if wrong := damage(path):
        raise _unusable(path, wrong)
    return Checkpoint(path, _step(path))


def _unusable(path: Path, wrong: str) -> RunFolderError:
    return RunFolderError(
        Problem(message=f"the checkpoint is not usable: {wrong}", place=str(path), hint="Train again, or --resume")
    )


def _named(folder: Path, kind: str) -> list[Path]:
    """Folders named as checkpoints of a kind, oldest first; copies that a user made under other names are none."""
    return sorted(path for path in folder.glob(f"{kind}-*") if re.fullmatch(rf"{kind}-\d{{8,}}", path.name))


def _step(path: Path) -> int:
    digits = path.name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else 0


def prune(folder: Path, *, keep: int, best_step: int | None) -> None:
    """Deletes resumable checkpoints but the last `keep`, best ones but those that count, and leftovers of interrupted writes.

    That of `best_step` counts, and those that were best when a kept resumable one was written: a run may go back to it, should a newer one
    be damaged. Call only after the newest one is complete.
    """
    resumable = _named(folder, RESUMABLE)
    kept = resumable[-max(1, keep) :]
    counting = {best_step, *map(_best_step_of, kept)}
    stale = [path for path in resumable if path not in kept]
    stale += [path for path in _named(folder, BEST) if _step(path) not in counting]
    for path in [*stale, *folder.glob(".tmp-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _best_step_of(path: Path) -> int | None:
    """The step that was best when a resumable checkpoint was written; None where that is not known."""
    try:
        found = read_json(path / "state.json")["stopping"]["best_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None
