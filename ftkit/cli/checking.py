"""`ftkit validate`, `plan` and `inspect`: what a recipe means, before anything is trained."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ftkit.cli.options import AllowCode, AsJson, Overrides, Plugins, RecipeFile, load_plugins
from ftkit.cli.output import emit, one_line, say
from ftkit.cli.shipped import recipe_file


def validate(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False, plugins: Plugins = None) -> None:
    """Check a recipe, its model folder and every row of its data, without torch.

    All problems are reported at once, each with its place.
    """
    load_plugins(plugins)
    from ftkit import api
    from ftkit.cli.display import make_progress

    checked = api.load_recipe(recipe_file(recipe), overrides or ())
    with make_progress(as_json=as_json) as display:
        report = api.validate(checked, observer=display)
    if as_json:
        emit(report)
        return
    rows = ", ".join(f"{name} {split['rows']:,}" for name, split in report["splits"].items())
    say(f"{one_line(recipe)} is valid. Rows: {rows}.")
    for note in report["notes"]:
        say(f"note: {one_line(note)}")


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    yaml: Annotated[bool, typer.Option("--yaml", help="Print only the complete recipe, which `ftkit train` runs.")] = False,
    as_json: AsJson = False,
    plugins: Plugins = None,
    allow_code: AllowCode = False,
) -> None:
    """Show the complete recipe, where each default comes from, and what the run will need.

    Sizes of the splits, labels, truncated rows, trainable parameters, steps, memory and disk.
    """
    load_plugins(plugins)
    from ftkit import api
    from ftkit.cli.display import make_progress
    from ftkit.cli.plan_view import print_plan, print_recipe

    checked = api.load_recipe(recipe_file(recipe), overrides or ())
    with make_progress(as_json=as_json) as display:
        report = api.plan(checked, observer=display, allow_code=allow_code)
    if as_json:
        emit(report)
    elif yaml:
        print_recipe(report["yaml"])
    else:
        print_plan(report)


def inspect(
    recipe: RecipeFile,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "train",
    rows: Annotated[int, typer.Option("--rows", min=1, help="Number of rows.")] = 3,
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Show rows token by token, with labels and masks, as the model will see them."""
    load_plugins(plugins)
    from ftkit import api

    shown = api.inspect(api.load_recipe(recipe_file(recipe), overrides or ()), split=split, rows=rows)
    if as_json:
        emit({"split": split, "rows": shown})
        return
    from ftkit.cli.token_view import print_row

    colors: dict[str, str] = {}
    for row in shown:
        print_row(row, colors, sys.stdout)
