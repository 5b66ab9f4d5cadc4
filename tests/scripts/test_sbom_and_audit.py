"""The bill of materials says what is installed; the audit finds what advisories say, and says when it cannot find out."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from packaging.version import Version

Script = Callable[[str], ModuleType]


def test_the_bill_has_every_dependency_with_its_version(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script("sbom.py").main([])
    found = json.loads(capsys.readouterr().out)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    versions = {component["name"]: component["version"] for component in found["components"]}
    for name in (
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "datasets",
        "tokenizers",
        "scikit-learn",
        "pyyaml",
        "huggingface-hub",
    ):
        assert versions[name] == importlib.metadata.version(name)
    assert found["metadata"]["component"]["name"] == "ftkit"
    assert "ftkit" not in versions
    for component in found["components"]:
        assert component["purl"].startswith(f"pkg:pypi/{component['name']}@")
        assert "+" not in component["purl"]
        assert component["bom-ref"] == component["purl"]
        assert len(json.dumps(component.get("licenses", []))) < 300
    graph = {each["ref"]: each["dependsOn"] for each in found["dependencies"]}
    assert len(graph) == len(found["dependencies"]) == len(versions) + 1
    assert {ref for needed in graph.values() for ref in needed} <= set(graph)
    root = next(ref for ref in graph if ref.startswith("pkg:pypi/ftkit@"))
    assert any(ref.startswith("pkg:pypi/transformers@") for ref in graph[root])


def test_the_bill_is_the_same_for_the_same_environment(script: Script) -> None:
    sbom = script("sbom.py")
    one, two = sbom.bill(), sbom.bill(everything=True)
    assert one["serialNumber"] == sbom.bill()["serialNumber"]
    assert len(two["components"]) >= len(one["components"])


def advisory(name: str, **entry: Any) -> dict[str, Any]:
    package = {"package": {"name": name, "ecosystem": "PyPI"}}
    return {"id": "PYSEC-1", "aliases": ["CVE-1"], "summary": "bad", "affected": [{**package, **entry}]}


RANGE = {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9999"}]}]}
FIXED = {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "0.0.1"}]}]}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (advisory("Torch", **RANGE), 1),
        (advisory("torch", versions=[importlib.metadata.version("torch").partition("+")[0]]), 1),
        (advisory("torch", **FIXED), 0),
        (advisory("no-such-package", **RANGE), 0),
        ({**advisory("torch", **RANGE), "withdrawn": "2026-01-01T00:00:00Z"}, 0),
    ],
)
def test_advisories_on_disk(
    content: dict[str, Any], code: int, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert script("audit.py").main(["--advisories", str(tmp_path)]) == code
    assert ("torch" in (out := capsys.readouterr().out)) == bool(code)
    assert f"{code} known vulnerabilities" in out


def test_ranges_of_versions(script: Script) -> None:
    inside = script("audit.py").inside
    events = [{"introduced": "1.0"}, {"fixed": "1.5"}, {"introduced": "2.0"}, {"last_affected": "2.1"}]
    found = [inside(events, Version(text)) for text in ("0.9", "1.0", "1.4.9", "1.5", "1.9", "2.0", "2.1", "2.2")]
    assert found == [False, True, True, False, False, True, True, False]


def test_an_audit_that_cannot_be_done_says_so(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = script("audit.py")
    assert audit.main(["--advisories", str(tmp_path)]) == 2
    assert "holds no advisories" in capsys.readouterr().err
    monkeypatch.setattr(audit, "find_spec", lambda name: None)
    assert audit.main([]) == 2
    assert "pip install pip-audit" in capsys.readouterr().err
    monkeypatch.setattr(audit, "find_spec", lambda name: object())
    ended = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nConnectionError: no network\n")
    monkeypatch.setattr(audit.subprocess, "run", lambda *arguments, **options: ended)
    assert audit.main([]) == 2
    said = capsys.readouterr().err
    assert "cannot be asked for: ConnectionError: no network" in said
    assert "--advisories FOLDER" in said
    ended.stdout = "Name Version ID Fix Versions\ntorch 1 PYSEC-1 2\n"
    assert audit.main([]) == 1
    assert "PYSEC-1" in capsys.readouterr().out
