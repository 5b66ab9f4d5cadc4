"""Nothing fetches native code of the hub unless the environment asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import ftkit
from ftkit.models.hub_kernels import SETTING, keep_hub_kernels_out

FAKE = """
from pathlib import Path

def get_kernel(*arguments, **named):
    Path(__file__).with_name("asked").write_text(str(arguments))
    raise OSError("no network here")
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(FAKE)
    return tmp_path


def run(code: str, fake: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != SETTING}
    path = os.pathsep.join([str(fake), str(Path(ftkit.__file__).parents[1])])
    given = {**kept, "PYTHONPATH": path, **environment}
    return subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False)


def test_importing_peft_asks_the_hub_for_nothing(fake: Path) -> None:
    """bitsandbytes asks on CPUs with AVX512-BF16; elsewhere this shows no more than that nobody could."""
    done = run("import ftkit.tuners, importlib.util; print(importlib.util.find_spec('kernels'))", fake)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "None", "")
    assert not (fake / "kernels" / "asked").exists()


def test_children_and_transformers_are_told_too(fake: Path) -> None:
    code = (
        "from ftkit.models.quiet import quiet_libraries as q; q(); import os; print(os.environ['USE_HUB_KERNELS']); import kernels"
    )
    done = run(code, fake)
    assert done.stdout.strip() == "NO"
    assert "ModuleNotFoundError" in done.stderr


def test_who_asks_for_kernels_gets_them(fake: Path) -> None:
    code = "from ftkit.models.quiet import quiet_libraries as q; q(); import kernels; print(kernels.__file__)"
    assert run(code, fake, **{SETTING: "yes"}).stdout.strip() == str(fake / "kernels" / "__init__.py")


def test_a_program_keeps_the_kernels_it_has_imported_but_bitsandbytes_goes_without(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = ModuleType("kernels")
    (fake / "bitsandbytes.py").write_text("import importlib.util\nFOUND = importlib.util.find_spec('kernels')\n")
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    monkeypatch.syspath_prepend(fake)
    monkeypatch.setenv(SETTING, "NO")
    keep_hub_kernels_out()
    assert sys.modules["bitsandbytes"].FOUND is None
    assert sys.modules["kernels"] is kernels
    monkeypatch.delitem(sys.modules, "bitsandbytes")
