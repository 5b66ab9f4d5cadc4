"""Hostile recipes: nothing in one is run, and none costs time or memory out of proportion."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.security.conftest import Command
from tests.security.hostile import Mark

BODY = "model: a/b\ntask: text-classification\ndata: {train: x.csv}\nmethod: lora\n"


def hostile(mark: Mark) -> dict[str, str]:
    shell, levels = mark.shell(), [chr(code) for code in range(ord("b"), ord("k"))]
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip(["a", *levels], levels, strict=False):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    return {
        "object/apply": f'{BODY}seed: !!python/object/apply:os.system ["{shell}"]\n',
        "object/new": f'{BODY}seed: !!python/object/new:subprocess.Popen [["sh", "-c", "{shell}"]]\n',
        "name": f"{BODY}seed: !!python/name:os.system ''\n",
        "module": f"{BODY}seed: !!python/module:antigravity ''\n",
        "tag of a key": f'{BODY}!!python/object/apply:os.system ["{shell}"]: 1\n',
        "tag directive": f'%TAG ! tag:yaml.org,2002:python/object/apply:\n---\n{BODY}seed: !os.system ["{shell}"]\n',
        "alias bomb": bomb,
        "circle": f"{BODY}train: &x {{epochs: *x}}\n",
        "merge keys": "x: &x {a: 1}\n" + BODY + "train: {<<: *x}\n",
        "lists in lists": "[" * 100_000,
        "mappings in mappings": "{a: " * 100_000,
        "block in block": "".join(f"{' ' * level}a:\n" for level in range(1000)),
        "million keys": "".join(f"k{number}: 1\n" for number in range(60_000)),
        "zeros": "\0" * 1000,
        "environment": f"{BODY}output: ${{oc.env:HOME}}\n",
        "expression": f"{BODY}output: ${{__import__('os').system('{shell}')}}\n",
        "references": BODY + "".join(f'o{n}: "${{o{n + 1}}}${{o{n + 1}}}"\n' for n in range(40)) + "o40: x\n",
    }


@pytest.mark.parametrize("name", list(hostile(Mark(Path("x")))))
def test_hostile_recipes_are_refused_quickly_and_run_nothing(name: str, mark: Mark, command: Command, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(hostile(mark)[name])
    start = time.process_time()
    ended = command("validate", recipe)
    assert ended.code == 2, ended.said
    assert "recipe.yaml" in ended.err
    assert time.process_time() - start < 5
    assert len(ended.err) < 20_000


@pytest.mark.parametrize(
    "path",
    [
        "package:ftkit/../../../../../../../etc/passwd",
        "package:../ftkit",
        "package:/etc/passwd",
        "package:os.path/x",
        "package:ftkit//etc/passwd",
    ],
)
def test_package_paths_stay_in_their_package(path: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(BODY.replace("x.csv", path).replace("a/b", path))
    ended = command("validate", tmp_path / "recipe.yaml")
    assert ended.code == 2
    assert "holds no" in ended.err or "does not name an importable package" in ended.err or "is not installed" in ended.err


def test_package_paths_do_not_leave_by_links_and_import_nothing(
    mark: Mark, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "hostile_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(mark.code())
    (tmp_path / "outside.csv").write_text("text,label\na,b\n")
    (package / "rows.csv").symlink_to(tmp_path / "outside.csv")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "recipe.yaml").write_text(BODY.replace("x.csv", "package:hostile_package/rows.csv"))
    ended = command("validate", tmp_path / "recipe.yaml")
    assert ended.code == 2
    assert "holds no 'rows.csv'" in ended.err


def test_code_needs_a_word_on_the_command_line(mark: Mark, command: Command, tmp_path: Path, finished: Path) -> None:
    (tmp_path / "metric.py").write_text(mark.code())
    recipe = (finished / "recipe.yaml").read_text()
    metric = f"{{name: 'evaluate:{tmp_path / 'metric.py'}', result: x, direction: max}}"
    recipe = recipe.replace('task: "text-classification"', f"task: {{name: text-classification, metrics: [accuracy, {metric}]}}")
    (tmp_path / "recipe.yaml").write_text(recipe)
    ended = command("train", tmp_path / "recipe.yaml", "--output", tmp_path / "run")
    assert ended.code == 2
    assert "--trust-remote-code" in ended.err
    assert not (tmp_path / "run").exists()


def test_recipes_name_no_plug_in(mark: Mark, command: Command, tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(mark.code())
    (tmp_path / "recipe.yaml").write_text(f"{BODY}plugins: [{tmp_path / 'plugin.py'}]\n")
    ended = command("validate", tmp_path / "recipe.yaml")
    assert ended.code == 2
    assert "plugins" in ended.err


def test_an_output_beside_the_working_folder_is_never_filled(command: Command, tmp_path: Path, finished: Path) -> None:
    """A recipe may choose its run folder, but nothing that is there is touched."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".bashrc").write_text("mine")
    recipe = (finished / "recipe.yaml").read_text() + f"output: {tmp_path / 'home'}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    ended = command("train", tmp_path / "recipe.yaml")
    assert ended.code == 2
    assert "already holds files" in ended.err
    assert [path.name for path in (tmp_path / "home").iterdir()] == [".bashrc"]
