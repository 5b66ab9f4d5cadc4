"""What keeps the code in one piece, held by a machine: imports point one way, files and functions stay small, names stay home."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ftkit
from ftkit.registry import METHODS, TASKS

ROOT = Path(ftkit.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

LAYERS = [
    {"children", "errors", "files", "paths", "patterns", "secrets", "__init__", "__main__"},
    {"recipe.schema", "recipe.reading", "recipe.expectations"},
    {"metrics"},
    {"methods", "tasks"},
    {"registry", "recipe"},
    {"data", "models", "tuners"},
    {"training"},
    {"exports", "report", "diagnostics"},
    {"run"},
    {"adapters"},
    {"api"},
    {"cli"},
]
"""Lowest first. A module may import its own layer and those below."""

MAY_REACH_UP = {
    # Methods and tasks are found by name, so what applies them is imported inside the functions that need it.
    "methods": {"models", "tuners"},
    "tasks": {"models"},
    # The plan holds what was read of the model's folder: plain values, no torch.
    "recipe": {"models"},
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def part_of(module: str) -> str:
    """The architectural part that a module belongs to."""
    known = {name for layer in LAYERS for name in layer}
    if module in known:
        return module
    return module.split(".")[0]


def layer_of(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """ftkit modules that a file imports (without the leading `ftkit.`), those for type checkers left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checking = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if node in checking:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ftkit":
            base = (node.module or "").removeprefix("ftkit").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}" if base else alias.name
                is_module = (ROOT / Path(*inner.split("."))).with_suffix(".py").is_file() or (
                    ROOT / Path(*inner.split("."))
                ).is_dir()
                found.add(inner if is_module else base or "__init__")
        if isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("ftkit").removeprefix(".") or "__init__"
                for alias in node.names
                if alias.name.split(".")[0] == "ftkit"
            }
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(module_of(path))
    if part in ("__init__", "__main__"):
        return
    for module in imports_of(path):
        other = part_of(module)
        allowed = layer_of(other) <= layer_of(part) or other in MAY_REACH_UP.get(part, set())
        assert allowed, f"{part} imports {module}, which lies above it"


@pytest.mark.parametrize("package", ["methods", "tasks"])
def test_siblings_do_not_import_each_other(package: str) -> None:
    own = {f"{package}.{path.stem}" for path in (ROOT / package).glob("*.py") if path.stem not in ("__init__", "base")}
    for path in (ROOT / package).glob("*.py"):
        assert not imports_of(path) & own - {module_of(path)}, path


def test_no_import_cycle() -> None:
    graph = {module_of(path): imports_of(path, top_level_only=True) for path in FILES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done or module not in graph:
            return
        for other in graph[module]:
            visit(other, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_stay_under_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_functions_stay_small() -> None:
    lengths = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lengths.sort()
    assert lengths[len(lengths) // 2] <= 12
    assert lengths[int(len(lengths) * 0.9)] <= 45


WORDS_OF_OTHER_THINGS = {"adapter", "none"}
"""Names of methods that are values of other keys, too: the export format `adapter`, options that are `none`."""


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_method_or_task_name_is_compared_outside_its_file(path: Path) -> None:
    names = {*METHODS.names(), *TASKS.names()} - {path.stem.replace("_", "-")} - WORDS_OF_OTHER_THINGS
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            values = [value.value for value in ast.walk(node) if isinstance(value, ast.Constant) and isinstance(value.value, str)]
            assert not names & set(values), f"line {node.lineno} compares with {names & set(values)}"


def test_nothing_is_unpickled_or_evaluated() -> None:
    """S2 and S1: no call that runs code from a file."""
    forbidden = {"torch.load", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in forbidden, f"{path}:{node.lineno}"


LIGHT = [
    "ftkit",
    "ftkit.api",
    "ftkit.cli.app",
    "ftkit.recipe.load",
    "ftkit.recipe.plan",
    "ftkit.recipe.json_schema",
    "ftkit.data.splits",
]


def test_u7_light_modules_import_no_torch() -> None:
    names = [f"ftkit.methods.{path.stem}" for path in (ROOT / "methods").glob("*.py")]
    names += [f"ftkit.tasks.{path.stem}" for path in (ROOT / "tasks").glob("*.py")]
    code = f"""
import importlib, sys
for name in {[*LIGHT, *names]!r}:
    importlib.import_module(name)
heavy = [name for name in ("torch", "transformers", "peft", "datasets", "sklearn", "accelerate") if name in sys.modules]
sys.exit(", ".join(heavy) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
