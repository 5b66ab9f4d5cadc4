"""`ftkit adapters fuse`: a recipe of a task becomes one of an AdapterFusion. The method `adapter-fusion` does the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ftkit.adapters.sources import RUN, read_trained
from ftkit.errors import Problem, RecipeError
from ftkit.files import json_text

METHOD = "adapter-fusion"
DECIDED = ("method", "method.name", "method.adapters", "phases")
"""Keys of a recipe that the adapters on the command line stand for."""


def fusion_overrides(adapters: Sequence[Path], changes: Sequence[str] = ()) -> list[str]:
    """Overrides of a recipe that make it fuse these runs (which have exported an adapter) or exported adapters, then `changes`.

    Other keys stay as they are: a learning rate that the recipe states was chosen for its own method.
    Raises RecipeError for fewer than two, and for a change that would undo this, RunFolderError for what is neither, or exported none.
    """
    if undone := [text for text in changes if text.lstrip("~").partition("=")[0].strip() in DECIDED]:
        message = "a fusion decides this by itself"
        hint = (
            "Name the adapters before --recipe, and options as in method.regularization=0.1; for another method use `ftkit train`"
        )
        raise RecipeError([Problem(message=message, place=f"command line: {text}", hint=hint) for text in undone])
    if len(adapters) < 2:
        message = f"a fusion needs two adapters or more, not {len(adapters)}"
        raise RecipeError(Problem(message=message, place="command line", hint="Name another run or adapter"))
    problems = []
    for path in adapters:
        found = read_trained(path)
        if found.kind == RUN and not (path / "export" / "adapter").is_dir():
            hint = f"Export it first: ftkit export {path} --format adapter"
            problems.append(Problem(message="this run has exported no adapter", place=str(path), hint=hint))
    if problems:
        raise RecipeError(problems)
    method = {"name": METHOD, "adapters": [str(path.absolute()) for path in adapters]}
    # JSON is YAML.
    return [f"method={json_text(method)}", *changes]
