"""A short round of each fuzz target: what reads files of others raises FtkitError and nothing else. See scripts/fuzz for longer ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]

NAMES = (
    "recipe csv tsv jsonl gzip json squad conll text utf-16 parquet arrow image adapter run model gguf".split()
)  # as targets.TARGETS has them, which is tested
INPUTS = 100


@pytest.fixture
def fuzz(script: Script, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("fuzz/fuzz.py")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_refusals_comes_out(name: str, fuzz: ModuleType) -> None:
    # A number of inputs, not a time: a machine that happens to be fast must not try others.
    counts = fuzz.with_hypothesis(name, 0.0, seed=0, fewest=INPUTS)
    assert sum(counts.values()) >= INPUTS


def test_every_target_is_tried(fuzz: ModuleType) -> None:
    targets, generators = importlib.import_module("targets"), importlib.import_module("generators")
    assert list(targets.TARGETS) == NAMES
    assert set(generators.strategies()) == set(NAMES)


def test_sound_inputs_are_taken(fuzz: ModuleType) -> None:
    """A target that refuses everything would find nothing."""
    targets = importlib.import_module("targets").TARGETS
    assert targets["recipe"](b"model: a/b\ntask: text-classification\ndata: {train: x.csv}\nmethod: lora\n")
    assert targets["csv"](b"text,label\na,b\n")
    assert targets["conll"](b"a O\nb B-X\n\n")
    assert not targets["recipe"](b"x")


def test_what_comes_out_is_told_with_its_input(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(data: bytes) -> bool:
        raise KeyError("defect") if len(data) > 3 else ValueError("defect")

    monkeypatch.setitem(importlib.import_module("targets").TARGETS, "csv", break_down)
    with pytest.raises(SystemExit, match=r"(?s)csv: (Key|Value)Error: .*defect.*input: b"):
        fuzz.with_hypothesis("csv", 5, seed=0)
    with pytest.raises(SystemExit):
        fuzz.main(["nosuch"])
