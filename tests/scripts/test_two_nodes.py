"""The trial on two simulated machines says what it lacks. Its trials themselves are too slow, and need root."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]


def test_without_root_it_says_so_and_ends_with_2(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["two_nodes.py"])
    assert script("two_nodes.py").main() == 2
    assert "needs root and the command `ip`" in capsys.readouterr().err
