"""What README and docs say exists: commands parse, links resolve, recipes are there and are valid."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import ftkit
from ftkit.cli.app import app
from ftkit.cli.shipped import shipped_recipes
from ftkit.recipe.load import parse_recipe
from ftkit.recipe.reading import read_text
from ftkit.registry import METHODS, TASKS

ROOT = Path(ftkit.__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(ftkit [^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """Code blocks of a page in the given languages."""
    yield from (text for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages)


def commands_of(page: Path) -> Iterator[list[str]]:
    """Arguments of each ftkit command of a page, in blocks and in running text."""
    lines = [line.removeprefix("$ ") for text in blocks(page, "bash") for line in text.splitlines()]
    lines += [line[2:] for text in blocks(page, "console") for line in text.splitlines() if line.startswith("$ ")]
    lines += _INLINE.findall(_BLOCK.sub("", page.read_text(encoding="utf-8")))
    for line in lines:
        for part in line.split(" | "):
            words = shlex.split(part, comments=True)
            if words[:1] == ["ftkit"]:
                yield words[1:]


COMMANDS = [pytest.param(arguments, id=f"{page.name}: {' '.join(arguments)}") for page in PAGES for arguments in commands_of(page)]


def verbs() -> set[str]:
    command: Any = get_command(app)
    return set(command.commands)


def parse(arguments: list[str]) -> None:
    """Parses a command without running it. Raises what the command line would report."""
    command: Any = get_command(app)
    context = command.make_context("ftkit", list(arguments), resilient_parsing=False)
    while getattr(command, "commands", None) and (rest := [*context._protected_args, *context.args]):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, list(rest), parent=context)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 40
    assert {command.values[0][0] for command in COMMANDS} >= verbs()  # type: ignore[index]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_command_parses(arguments: list[str]) -> None:
    if {"--help", "--version", "--install-completion", "..."} & set(arguments):
        return
    if len(arguments) == 1:
        # `ftkit plan` in running text names the verb.
        assert arguments[0] in verbs()
        return
    parse(arguments)


def test_wrong_commands_do_not_parse() -> None:
    for wrong in (["trian", "recipe.yaml"], ["train"], ["train", "recipe.yaml", "--epochs", "3"], ["recipes", "move", "x"]):
        with pytest.raises(Exception, match=r"[Nn]o such|[Mm]issing"):
            parse(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for link in _LINK.findall(_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], link


def test_named_recipes_exist() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    named = {name for text in texts for name in re.findall(r"\btext-classification/[a-z][\w-]*", text)}
    assert named - set(shipped_recipes()) == set()
    assert set(shipped_recipes()) <= set(re.findall(r"^(\S+/\S+) ", texts[0], re.MULTILINE)), "README lists every shipped recipe"
    for path in {path for text in texts for path in re.findall(r"\b(?:recipes|scripts|ftkit|tests|docs)/[\w/-]+\.\w+", text)}:
        assert (ROOT / path).exists(), path


def whole_recipes(page: Path) -> list[str]:
    """Blocks of a page that are recipes from model to method."""
    keys = {"model", "task", "data", "method"}
    return [text for text in blocks(page, "yaml") if keys <= {line.partition(":")[0] for line in text.splitlines()}]


def test_whole_recipes_of_the_pages_are_valid() -> None:
    """As far as they go without their data and models; a plug-in's task or method apart."""
    known = {*METHODS.names(), *TASKS.names()}
    for page in PAGES:
        for text in whole_recipes(page):
            value = read_text(text, page.name).value
            names = {value[kind] if isinstance(value[kind], str) else value[kind]["name"] for kind in ("task", "method")}
            if names <= known:
                parse_recipe(text, page.name)


@pytest.mark.parametrize("task", TASKS.names())
def test_every_task_page_has_a_whole_recipe(task: str) -> None:
    found = whole_recipes(ROOT / "docs" / "tasks" / f"{task}.md")
    assert any(parse_recipe(text, task).task.name == task for text in found)


def test_yaml_of_the_pages_is_yaml() -> None:
    found = [text for page in PAGES for text in blocks(page, "yaml")]
    assert len(found) > 8
    for text in found:
        # Pages also list alternatives of one key, a line each.
        keys = [line.partition(":")[0] for line in text.splitlines() if re.match(r"\w", line)]
        for part in [text] if len(set(keys)) == len(keys) else text.splitlines():
            read_text(part, "page")
