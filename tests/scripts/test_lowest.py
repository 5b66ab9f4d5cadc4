"""The oldest versions that the tests run with are those that pyproject.toml admits; what lies outside of the tested ends is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ftkit.cli.failure import guarded
from ftkit.cli.machine import environment
from ftkit.run import machine
from ftkit.run.tested_versions import TESTED, untested

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lowest(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("lowest.py")


def test_every_requirement_has_a_lower_end(lowest: ModuleType) -> None:
    found = lowest.lowest((ROOT / "pyproject.toml").read_text(), ["gguf", "quant", "sentencepiece"])
    assert "transformers==5.23" in found
    assert "bitsandbytes==0.48" in found
    assert len(found) == len({line.partition("==")[0] for line in found}) > 20
    with pytest.raises(ValueError, match="'mlflow' has no lower end"):
        lowest.lowest((ROOT / "pyproject.toml").read_text(), ["trackers"])


def test_the_tested_ends_are_those_of_the_project(lowest: ModuleType) -> None:
    ends = dict(line.split("==") for line in lowest.lowest((ROOT / "pyproject.toml").read_text(), ["quant"]))
    newest = dict(re.findall(r"^([A-Za-z0-9_-]+)==([0-9.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for name, (oldest, latest) in TESTED.items():
        assert f"{ends[name]}.0.0".split(".")[:3] == oldest.split("."), name
        assert latest == newest[name], name
    assert set(TESTED) <= set(machine.PACKAGES)


def test_versions_outside_of_the_tested_ends_are_told() -> None:
    assert list(untested()) == []
    assert list(untested({"torch": "2.13.0+cpu", "transformers": "5.99.1", "peft": "0.21.9", "numpy": None, "other": "9"})) == []
    lines = list(untested({"transformers": "6.0.0rc1", "peft": "0.22.0", "torch": "2.9.1", "datasets": "6.dev0", "pydantic": "3"}))
    assert [line.split(" ", 2)[0] for line in lines] == ["transformers", "peft", "torch", "datasets", "pydantic"]
    newest = TESTED["transformers"][1]
    assert lines[0] == (
        f'transformers 6.0.0rc1 is a major version that ftkit was not tested with; if it fails: pip install "transformers=={newest}"'
    )
    assert (
        lines[2] == f'torch 2.9.1 is older than any version that ftkit was tested with; pip install "torch>={TESTED["torch"][0]}"'
    )


def test_an_untested_version_shows_where_things_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("ftkit.run.tested_versions.versions", lambda: {"transformers": "6.1.0"})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail() -> int:
        raise AttributeError("module 'transformers' has no attribute 'AutoModel'")

    assert guarded(fail, as_json=False) == 1
    assert "Transformers 6.1.0 is a major version that ftkit was not tested with" in capsys.readouterr().err
    assert environment()["untested"] == list(untested())
