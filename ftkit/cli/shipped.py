"""`ftkit recipes`: the recipes that come with ftkit."""

from __future__ import annotations

import filecmp
import glob
import shutil
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

import ftkit
from ftkit.cli.files import refuse_existing, write_new
from ftkit.cli.options import AsJson, Force
from ftkit.cli.output import emit, print_table, say
from ftkit.errors import Problem, RecipeError
from ftkit.recipe.reading import read_text

app = typer.Typer(help="List, show and copy the recipes that come with ftkit.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `ftkit recipes list` shows it.", show_default=False)]


def shipped_recipes() -> dict[str, Path]:
    """Recipe files by name (`<task>/<file name without ending>`): inside an installed package, or in the clone beside it."""
    package = Path(ftkit.__file__).parent
    folder = next((path for path in (package / "_recipes", package.parent / "recipes") if path.is_dir()), None)
    files = sorted(folder.rglob("*.yaml")) if folder else []
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files} if folder else {}


def recipe_file(path: Path) -> Path:
    """The recipe that `path` names: a file, else the shipped recipe of that name, else `path` itself, for the message about it."""
    return path if path.exists() else shipped_recipes().get(_plain(path.as_posix()), path)


def summary_of(text: str) -> str:
    """The first comment line of a recipe that says something."""
    comments = (line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#"))
    return next((line for line in comments if line and not line.startswith("yaml-language-server")), "")


@app.callback(invoke_without_command=True)
def recipes(context: typer.Context, as_json: AsJson = False) -> None:
    """List, show and copy the recipes that come with ftkit."""
    if context.invoked_subcommand is None:
        list_recipes(as_json)
    elif as_json:
        raise typer.BadParameter(f"write --json after `{context.invoked_subcommand}`")


@app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List all of them."""
    found = [{"name": name, "summary": summary_of(path.read_text(encoding="utf-8"))} for name, path in shipped_recipes().items()]
    if as_json:
        emit({"recipes": found})
    else:
        print_table(["recipe", "summary"], [list(entry.values()) for entry in found])


@app.command("show")
def show(name: Name, as_json: AsJson = False) -> None:
    """Print one."""
    text = _find(name).read_text(encoding="utf-8")
    if as_json:
        emit({"name": _plain(name), "summary": summary_of(text), "text": text})
    else:
        say(text.rstrip("\n"))


@app.command("copy")
def copy(
    name: Name,
    destination: Annotated[
        Path | None, typer.Argument(metavar="DEST", help="File or folder (default: here).", show_default=False)
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Copy one, with the files beside it that it reads, to make it your own."""
    source = _find(name)
    target = destination or Path(source.name)
    target = target / source.name if target.is_dir() else target
    text = source.read_text(encoding="utf-8")
    companions = {file: target.parent / file.relative_to(source.parent) for file in files_read(text, source.parent)}
    companions = {file: copied for file, copied in companions.items() if not _same(file, copied)}
    for path in (target, *companions.values()):
        refuse_existing(path, force=force, make_folder=path != target)
    for file, copied in companions.items():
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)
    write_new(target, text, force=force)
    copies = [str(path.absolute()) for path in companions.values()]
    if as_json:
        emit({"name": _plain(name), "path": str(target.absolute()), "files": copies})
    else:
        with_files = f" and {len(copies)} files that it reads" if copies else ""
        say(f"{target}{with_files}\n\nNext:\n  ftkit validate {target}\n  ftkit train {target}")


def _same(first: Path, second: Path) -> bool:
    return second.is_file() and filecmp.cmp(first, second, shallow=False)


def files_read(text: str, folder: Path) -> list[Path]:
    """The files below a recipe's folder that the recipe names, by path, glob or folder; sorted."""
    found: set[Path] = set()
    for value in _texts(read_text(text, "recipe").value):
        stem = value.partition("#")[0]
        if not stem or Path(stem).is_absolute() or ".." in Path(stem).parts or "\0" in stem:
            continue
        for path in folder.glob(stem) if glob.has_magic(stem) else [folder / stem]:
            found.update(path.rglob("*") if path.is_dir() and path != folder else [path])
    return sorted(path for path in found if path.is_file())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _plain(name: str) -> str:
    return name.removesuffix(".yaml")


def _find(name: str) -> Path:
    known = shipped_recipes()
    if (path := known.get(_plain(name))) is not None:
        return path
    near = get_close_matches(_plain(name), known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else "List them with: ftkit recipes list"
    raise RecipeError(Problem(message=f"there is no shipped recipe {name!r}", place="command line", hint=hint))
