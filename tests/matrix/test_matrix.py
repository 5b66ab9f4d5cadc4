"""docs/matrix.md holds what is found by running it: a part of the cells here, all of them by scripts/make_matrix.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
import torch
from torch import nn

from ftkit.errors import ModelError
from ftkit.methods.full import Full
from ftkit.methods.linear_probe import LinearProbe
from ftkit.models.layout import ModelLayout
from ftkit.registry import METHODS, TASKS
from tests.matrix.architectures import ARCHITECTURES
from tests.matrix.case import case_of
from tests.matrix.cell import SETTINGS, WORKS, Cell, outcome
from tests.matrix.grid import PUBLISHED, covering, from_json, plain_cells, published, setting_cells, to_json
from tests.matrix.page import page

FOUND = {cell: text for cell, text in published().items() if cell.method in METHODS.names() and cell.task in TASKS.names()}
WORKING = [cell for cell, text in FOUND.items() if text == WORKS]
REFUSED = [cell for cell, text in FOUND.items() if text != WORKS]
RUN_IT = "run scripts/make_matrix.py"

Run = Callable[[Cell], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda cell: outcome(cell, folder)


# --- what is published ------------------------------------------------------------------------------------------------------


def test_every_task_has_a_case() -> None:
    for task in TASKS.names():
        assert set(case_of(task).architectures) <= set(ARCHITECTURES)


def test_a_task_without_a_case_is_told_what_to_write() -> None:
    with pytest.raises(LookupError, match=r"'image-to-song' has no case .*: write tests/matrix/tasks/image_to_song.py with"):
        case_of("image-to-song")


@pytest.mark.parametrize("method", METHODS.names())
def test_every_cell_is_published(method: str) -> None:
    cells = [*plain_cells([method]), *setting_cells(method, FOUND)]
    missing = [str(cell) for cell in cells if cell not in FOUND]
    assert not missing, f"docs/matrix.json lacks {len(missing)} cells of {method}, {missing[0]} first: {RUN_IT} {method}"


def test_nothing_else_is_published() -> None:
    extra = [str(cell) for cell in published() if cell not in FOUND or cell.architecture not in ARCHITECTURES]
    assert not extra, f"docs/matrix.json has cells that do not exist, {extra[0]} first: {RUN_IT}"


def test_page_is_that_of_the_outcomes() -> None:
    versions = json.loads(PUBLISHED.read_text(encoding="utf-8"))["versions"]
    assert PUBLISHED.with_suffix(".md").read_text(encoding="utf-8") == page(published(), versions), RUN_IT


@pytest.mark.parametrize("task", TASKS.names())
def test_a_task_works_where_it_makes_sense_and_is_refused_elsewhere(task: str) -> None:
    sensible = case_of(task).architectures
    works = {cell.architecture for cell in WORKING if cell.task == task}
    assert works == set(sensible)


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_works_somewhere(method: str) -> None:
    assert [cell for cell in WORKING if cell.method == method]


# --- found again ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", covering(WORKING), ids=str)
def test_works_as_published(cell: Cell, run: Run) -> None:
    assert run(cell) == WORKS, RUN_IT


@pytest.mark.parametrize(
    "cells", [list(cells) for _, cells in groupby(REFUSED, lambda cell: (cell.task, cell.method))], ids=lambda cells: str(cells[0])
)
def test_is_refused_as_published(cells: list[Cell], run: Run) -> None:
    for cell in cells:
        assert run(cell) == FOUND[cell], RUN_IT


# --- the check itself -------------------------------------------------------------------------------------------------------

SOMEWHERE = Cell("text-classification", "broken", "bert")


class Leaking(LinearProbe):
    name = "broken"

    def after_step(self, model: nn.Module, step: int) -> None:
        with torch.no_grad():
            next(parameter for parameter in model.parameters() if not parameter.requires_grad).mul_(1.1)


class Idle(Full):
    name = "broken"

    def training_begins(self, model: nn.Module, total_steps: int) -> None:
        self.start = next(iter(model.parameters())).detach().clone()

    def after_step(self, model: nn.Module, step: int) -> None:
        with torch.no_grad():
            next(iter(model.parameters())).copy_(self.start)


class Forgetful(LinearProbe):
    name = "broken"

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        model.register_buffer("shift", torch.zeros(()))
        model.classifier.register_forward_hook(lambda module, inputs, output: output * (1 + model.shift))  # type: ignore[operator]
        return super().apply(model, layout)

    def after_step(self, model: nn.Module, step: int) -> None:
        model.shift += 1.0  # type: ignore[operator]


class Late(LinearProbe):
    name = "broken"

    def after_step(self, model: nn.Module, step: int) -> None:
        raise ModelError("no, after all")


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        (Leaking, AssertionError, "changed without being declared: .*embeddings"),
        (Idle, AssertionError, "declared and yet not trained: .*embeddings"),
        (Forgetful, Exception, "differs from the trained model|the saved run predicts"),
        (Late, ModelError, "no, after all"),
    ],
)
def test_a_broken_method_is_found_out(
    method: type, error: type[Exception], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(METHODS._plugins, "broken", method)
    with pytest.raises(error, match=words):
        outcome(SOMEWHERE, tmp_path)


def test_few_cells_cover_all_pairs() -> None:
    cells = plain_cells(["full", "lora", "bitfit"])
    few = covering(cells)
    assert len(few) < len(cells) / 2
    for pair in (lambda cell: (cell.method, cell.task), lambda cell: (cell.method, cell.architecture)):
        assert {pair(cell) for cell in few} == {pair(cell) for cell in cells}
    tried = [Cell("text-classification", method, "bert", setting) for method in ("full", "lora") for setting in SETTINGS]
    assert {cell.setting for cell in covering(tried)} == set(SETTINGS)
    assert {cell.method for cell in covering(tried)} == {"full", "lora"}


def test_outcomes_survive_the_file() -> None:
    assert from_json(json.loads(json.dumps(to_json(FOUND)))) == FOUND
