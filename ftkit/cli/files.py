"""Files that commands write for people."""

from __future__ import annotations

from pathlib import Path

from ftkit.errors import Problem, RecipeError
from ftkit.files import write_text


def refuse_existing(path: Path, *, force: bool, make_folder: bool = False) -> None:
    """Raises RecipeError if a file may not be written: it exists (and `force` is off), is a folder, or its folder is missing.

    make_folder: the caller will make the folder."""
    if path.is_dir():
        raise RecipeError(Problem(message="is a folder", place=str(path), hint="Give a file name"))
    if path.exists() and not force:
        raise RecipeError(Problem(message="exists already", place=str(path), hint="Give another name, or --force to replace it"))
    if not make_folder and not path.absolute().parent.is_dir():
        raise RecipeError(Problem(message="its folder does not exist", place=str(path), hint=f"Make it: mkdir -p {path.parent}"))


def write_new(path: Path, text: str, *, force: bool) -> None:
    """Writes a file under the rules of `refuse_existing`. Raises RecipeError."""
    refuse_existing(path, force=force)
    try:
        write_text(path, text)
    except OSError as error:
        raise RecipeError(Problem(message=f"cannot be written ({error.strerror})", place=str(path))) from None
