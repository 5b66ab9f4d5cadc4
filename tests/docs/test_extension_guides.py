"""The files that the extension guides print are whole and work: a tiny model is trained, used and exported with each."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ftkit
from ftkit import registry
from ftkit.cli.app import main
from tests.tiny import save_tiny

GUIDES = Path(ftkit.__file__).parent.parent / "docs"
_FILE = re.compile(r"^```python file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def printed_file(guide: str, name: str, folder: Path) -> Path:
    """The file `name` that a guide prints, written into a folder."""
    found = dict(_FILE.findall((GUIDES / guide).read_text(encoding="utf-8")))
    path = folder / name
    path.write_text(found[name], encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def forget_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for known in (registry.METHODS, registry.TASKS):
        monkeypatch.setattr(known, "_plugins", {})
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    registry.PLUGIN_FILES.clear()


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "bert", "bert")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command with --json and returns its document."""

    def command(*arguments: object) -> Any:
        with pytest.raises(SystemExit) as ending:
            main([*map(str, arguments), "--json"])
        captured = capfd.readouterr()
        assert ending.value.code == 0, captured.out + captured.err
        return json.loads(captured.out)

    return command


def write_rows(path: Path, column: str, values: list[Any]) -> None:
    """60 texts whose value shows in their words."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(60):
            index = number % len(values)
            words = [f"w{index * 8 + generator.randrange(4)}" for _ in range(generator.randrange(2, 9))]
            stream.write(json.dumps({"text": " ".join(words), column: values[index]}) + "\n")


def write_recipe(path: Path, model: Path, task: str, method: str, export: str) -> Path:
    path.write_text(
        f"model: {model}\ntask: {task}\nmethod: {method}\nexport: {export}\n"
        "data: {train: rows.jsonl, split: {validation: 0.2, test: 0.2}}\n"
        "train: {max_steps: 6, batch_size: 8, learning_rate: 1e-2}\n",
        encoding="utf-8",
    )
    return path


def test_method_of_the_guide(tmp_path: Path, tiny_folder: Path, run: Callable[..., Any]) -> None:
    plugin = printed_file("adding-a-method.md", "layer_norm.py", tmp_path)
    write_rows(tmp_path / "rows.jsonl", "label", ["calm", "angry", "glad"])
    method = "{name: layer-norm, biases: false}"
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_folder, "text-classification", method, "[merged]")
    results = run("train", recipe, "--plugin", plugin)
    assert (results["status"], list(results["exports"])) == ("completed", ["merged"])
    assert 0 < results["parameters"]["trainable"] < results["parameters"]["total"] / 2
    predicted = run("predict", "runs/recipe", "--text", "w1 w2", "--plugin", plugin)["predictions"]
    assert predicted[0]["label"] in ("calm", "angry", "glad")


def test_adapter_method_of_the_guide_with_the_task_of_the_other(tmp_path: Path, tiny_folder: Path, run: Callable[..., Any]) -> None:
    plugins: list[object] = ["--plugin", printed_file("adding-a-method.md", "activation_scaling.py", tmp_path)]
    plugins += ["--plugin", printed_file("adding-a-task.md", "ordinal_regression.py", tmp_path)]
    write_rows(tmp_path / "rows.jsonl", "stars", [1, 2, 3, 4, 5])
    task = "{name: ordinal-regression, grades: 5}"
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_folder, task, "activation-scaling", "[adapter, merged]")
    results = run("train", recipe, *plugins)
    assert (results["status"], sorted(results["exports"])) == ("completed", ["adapter", "merged"])
    assert 0 < results["parameters"]["groups"]["adapter"]["trainable"]
    predicted = run("predict", "runs/recipe", "--text", "w1 w2", *plugins)["predictions"]
    assert predicted[0]["grade"] in range(1, 6)
    assert 1.0 <= predicted[0]["expected"] <= 5.0


def test_option_of_the_method_of_the_guide(tmp_path: Path, tiny_folder: Path, run: Callable[..., Any]) -> None:
    plugin = printed_file("adding-a-method.md", "layer_norm.py", tmp_path)
    write_rows(tmp_path / "rows.jsonl", "label", ["calm", "angry", "glad"])
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_folder, "text-classification", "layer-norm", "[merged]")
    facts = run("methods", "layer-norm", "--plugin", plugin)["methods"][0]
    assert facts["options"][0]["name"] == "biases"
    counts = [
        run("plan", recipe, f"method.biases={biases}", "--plugin", plugin)["parameters"]["groups"]["blocks"]["trainable"]
        for biases in ("true", "false")
    ]
    assert counts[0] == 2 * counts[1] > 0


def test_entry_point_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (GUIDES / "adding-a-method.md").read_text(encoding="utf-8")
    group, name, module = re.search(r'entry-points\."(\S+)"\]\n(\S+) = "(\S+)"', guide).groups()  # type: ignore[union-attr]
    package = tmp_path / module.partition(".")[0]
    package.mkdir()
    (package / "__init__.py").touch()
    printed_file("adding-a-method.md", "layer_norm.py", package)
    installed = tmp_path / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n", encoding="utf-8")
    (installed / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert name in registry.METHODS.names()
    assert registry.METHODS.get(name).__module__ == module


def test_task_of_the_guide_learns(tmp_path: Path, tiny_folder: Path, run: Callable[..., Any]) -> None:
    plugin = printed_file("adding-a-task.md", "ordinal_regression.py", tmp_path)
    write_rows(tmp_path / "rows.jsonl", "stars", [1, 2, 3, 4, 5])
    task = "{name: ordinal-regression, grades: 5, max_length: 16}"
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_folder, task, "full", "[]")
    shown = run("inspect", recipe, "--rows", 1, "--plugin", plugin)
    assert shown["rows"][0]["tokens"][-1][1].startswith("grade: ")
    results = run("train", recipe, "train.max_steps=100", "--plugin", plugin)
    assert results["splits"]["test"]["metrics"]["mae"] < 1.0, "guessing the middle grade is wrong by 1.2 on average"
    assert set(results["splits"]["test"]["metrics"]) == {"mae", "accuracy", "loss"}


def test_row_that_does_not_fit_the_task_of_the_guide(tmp_path: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plugin = printed_file("adding-a-task.md", "ordinal_regression.py", tmp_path)
    write_rows(tmp_path / "rows.jsonl", "stars", [1, 2, 3, 4, 7])
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_folder, "{name: ordinal-regression, grades: 5}", "lora", "[merged]")
    with pytest.raises(SystemExit) as ending:
        main(["validate", str(recipe), "--plugin", str(plugin)])
    assert ending.value.code == 2
    assert "rows.jsonl, line 5: stars: grade 7 is not a whole number from 1 to 5" in capfd.readouterr().err
