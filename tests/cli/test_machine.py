from __future__ import annotations

import platform

import pytest

from tests.cli.conftest import Run


def test_env_names_versions_and_machine(ftkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    report = ftkit("env", "--json").document()
    assert report["versions"]["python"] == platform.python_version()
    assert report["versions"]["torch"]
    assert report["machine"]["cores"] >= 1
    assert report["variables"]["OMP_NUM_THREADS"] == "1"
    shown = ftkit("env").out
    assert f"python        {platform.python_version()}" in shown
    assert "gpus" in shown
    assert "secret" not in shown + str(report)
