"""What a command imports is what a user waits for before it begins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NEEDS_TORCH = ("torch", "transformers", "peft", "accelerate")
FOR_NOTHING = (
    "pandas",
    "sklearn",
    "datasets",
    "evaluate",
    "tensorflow",
    "tensorboard",
    "torchvision",
    "matplotlib",
    "nltk",
    "wandb",
)
"""Large packages that come with ftkit, or often lie beside it, and that these commands do not use."""


def imported(*arguments: str | Path, names: tuple[str, ...]) -> list[str]:
    """Which of these modules a command imports in a new process; it must end well."""
    code = (
        "import json, sys\nfrom ftkit.cli.app import main\n"
        f"try:\n    main({[str(argument) for argument in arguments]!r})\n"
        f"finally:\n    print('imported', json.dumps([name for name in {names!r} if name in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1].removeprefix("imported "))


@pytest.mark.parametrize("verb", ["--help", "methods", "tasks", "recipes list", "validate", "init"])
def test_what_needs_no_model_imports_none_of_it(verb: str, recipe: Path, data: Path, folder: Path) -> None:
    arguments: dict[str, list[str | Path]] = {
        "recipes list": ["recipes", "list"],
        "validate": ["validate", recipe],
        "plan --yaml": ["plan", recipe, "--yaml"],
        "init": ["init", "--data", data, "--model", "some/model"],
    }
    assert imported(*arguments.get(verb, [verb]), names=(*NEEDS_TORCH, *FOR_NOTHING)) == []


def test_predict_imports_no_more_than_the_model_needs(trained: Path) -> None:
    # pyarrow looks into pandas, where that is installed, to make an array of Python values.
    assert imported("predict", trained, "--text", "w1", names=FOR_NOTHING) in ([], ["pandas"])


def test_what_is_wrong_with_a_run_shows_before_torch_is_imported(trained: Path) -> None:
    code = (
        "import sys\nfrom ftkit.cli.app import main\n"
        f"try:\n    main(['predict', {str(trained)!r}, 'task.max_length=9', '--text', 'w1'])\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, "False")
    assert "a finished run was trained with what this would change" in done.stderr
