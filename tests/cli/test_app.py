from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from ftkit.cli.app import app
from ftkit.errors import EXIT_CODES
from tests.cli.conftest import Run

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "pydantic", "pyarrow", "numpy", "sklearn", "ftkit.api")


def leaves(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not hasattr(command, "commands"):
        return {path: command}
    return {name: leaf for verb, inner in command.commands.items() for name, leaf in leaves(inner, (*path, verb)).items()}


VERBS = leaves(get_command(app))


def in_new_process(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ftkit", *arguments], capture_output=True, text=True, check=False, **settings)


def test_help_takes_less_than_half_a_second() -> None:
    """Of processor time: on an idle machine that is the time a user waits, on a busy one it still is what ftkit costs."""
    best = 10.0
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert in_new_process("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.5


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, ftkit.cli.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", [["validate"], ["schema"], ["methods"], ["tasks"], ["metrics"], ["recipes", "list"], ["env"]])
def test_these_verbs_do_without_torch(verb: list[str], recipe: Path) -> None:
    arguments = [*verb, *([str(recipe)] if verb == ["validate"] else []), "--json"]
    code = (
        "import sys\nfrom ftkit.cli.app import main\n"
        f"try:\n    main({arguments!r})\n"
        "finally:\n    print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_there_are_the_promised_verbs() -> None:
    names = {" ".join(path) for path in VERBS}
    assert names == {
        *(
            "train",
            "validate",
            "doctor",
            "plan",
            "inspect",
            "evaluate",
            "predict",
            "export",
            "methods",
            "tasks",
            "metrics",
            "schema",
        ),
        *("gate", "baseline", "diff", "rerun"),
        *("init", "recipes list", "recipes show", "recipes copy", "env"),
        *(f"adapters {verb}" for verb in ("list", "inspect", "diff", "merge", "extract", "convert", "fuse")),
    }


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_verb_has_json_help_and_a_sentence(path: tuple[str, ...], ftkit: Run) -> None:
    ended = ftkit(*path, "--help")
    assert ended.code == 0
    assert "--json" in ended.out
    assert VERBS[path].help.split("\n")[0].endswith(".") or ":" in VERBS[path].help


@pytest.mark.parametrize("verb", ["train", "validate", "plan", "inspect", "evaluate", "predict", "export"])
def test_verbs_that_read_a_recipe_or_run_take_plugins(verb: str, ftkit: Run) -> None:
    assert "--plugin" in ftkit(verb, "--help").out


def test_help_lists_the_exit_codes(ftkit: Run) -> None:
    shown = " ".join(ftkit("--help").out.split())
    for code, meaning in EXIT_CODES.items():
        assert f"{code}: {' '.join(meaning.split())}" in shown


def test_no_verb_shows_the_help(ftkit: Run) -> None:
    ended = ftkit()
    assert (ended.code, "Usage: ftkit" in ended.out) == (0, True)


def test_version(ftkit: Run) -> None:
    assert ftkit("--version").out.strip() == "0.1.0"


def test_a_misspelt_verb_is_answered_with_the_right_one(ftkit: Run) -> None:
    ended = ftkit("trian")
    assert ended.code == 2
    assert "Did you mean 'train'?" in ended.err


def test_a_misspelt_option_is_answered_with_the_right_one(ftkit: Run) -> None:
    ended = ftkit("train", "x.yaml", "--rseume")
    assert (ended.code, ended.out) == (2, "")
    assert "--resume" in ended.err
    assert "ftkit train --help" in ended.err


def test_usage_errors_are_json_too(ftkit: Run) -> None:
    error = ftkit("train", "--json").document()["error"]
    assert (error["kind"], error["exit_code"]) == ("UsageError", 2)
    assert "RECIPE" in error["problems"][0]["message"]


def test_a_reader_that_goes_away_ends_a_command_quietly() -> None:
    command = f"{sys.executable} -m ftkit schema | head -c 1 > {os.devnull}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_standard_input_is_not_read(recipe: Path) -> None:
    done = in_new_process("validate", str(recipe), stdin=subprocess.PIPE)
    assert done.returncode == 0
    reading, writing = os.pipe()
    try:
        assert in_new_process("methods", stdin=reading, timeout=60).returncode == 0
    finally:
        os.close(reading)
        os.close(writing)
