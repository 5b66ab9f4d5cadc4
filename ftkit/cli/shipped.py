"""`ftkit recipes`: the recipes that come with ftkit."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

import ftkit
from ftkit.cli.files import write_new
from ftkit.cli.options import AsJson, Force
from ftkit.cli.output import emit, print_table, say
from ftkit.errors import Problem, RecipeError

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
    """Copy one, to make it your own."""
    source = _find(name)
    target = destination or Path(source.name)
    target = target / source.name if target.is_dir() else target
    write_new(target, source.read_text(encoding="utf-8"), force=force)
    if as_json:
        emit({"name": _plain(name), "path": str(target.absolute())})
    else:
        say(f"{target}\n\nNext:\n  ftkit validate {target}\n  ftkit train {target}")


def _plain(name: str) -> str:
    return name.removesuffix(".yaml")


def _find(name: str) -> Path:
    known = shipped_recipes()
    if (path := known.get(_plain(name))) is not None:
        return path
    near = get_close_matches(_plain(name), known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else "List them with: ftkit recipes list"
    raise RecipeError(Problem(message=f"there is no shipped recipe {name!r}", place="command line", hint=hint))
