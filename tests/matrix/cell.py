"""One cell of the compatibility matrix: a method, a task and an architecture, taken through all of ftkit in this process.

Recipe text -> validate -> train with checkpoint and exports -> the saved run loaded strictly -> the same predictions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import ftkit
from ftkit.errors import FtkitError, ModelError
from ftkit.exports.verification import Request, differences
from ftkit.registry import METHODS
from ftkit.run import exporting, train
from ftkit.run.exporting import export_all
from ftkit.run.observer import Observer
from ftkit.run.predictor import Predictor
from ftkit.run.train import RunResult
from ftkit.run.wiring import Prepared, prepare_model
from ftkit.training.events import StepEvent
from tests.matrix.architectures import family_of, recipe_model
from tests.matrix.case import Case, case_of
from tests.methods.cases import FITTING, VARIANTS

SPLITS = {"train": range(0, 8), "validation": range(8, 12), "test": range(12, 16)}
STEPS = 3
BAD_USAGE = 2
WORKS, REFUSED, REFUSED_LATE = "works", "refused: ", "refused on loading: "

ACCIDENTS = ("cannot be loaded (", "other parameters than", "would be trained in")
"""Parts of messages that tell of a defect in ftkit, a method or a library, not of what cannot work."""

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "gradient checkpointing": ("train.gradient_checkpointing=true",),
    "bf16 arithmetic": ("train.precision=bf16",),
    "bfloat16 base": ("model.dtype=bfloat16",),
    "random weights": ("model.weights=random",),
    "int8 base": ("model.quantization=int8",),
}
"""What a run can be asked for besides, as overrides of the recipe: the columns of the table of settings."""


@dataclass(frozen=True)
class Cell:
    """One cell, by the names that recipes use."""

    task: str
    method: str
    architecture: str
    setting: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.task, self.method, self.architecture, self.setting)))


def outcome(cell: Cell, folder: Path) -> str:
    """`works`; `refused: REASON` if `validate` refuses the recipe, `refused on loading: REASON` if that takes the model itself.

    folder: for models and data, shared by all cells, and for this cell's run. Anything else that happens is raised.
    """
    path, watching = write_recipe(cell, folder), Witness()
    try:
        recipe = ftkit.load_recipe(path, SETTINGS.get(cell.setting, ()))
        ftkit.validate(recipe)
    except FtkitError as error:
        if error.exit_code != BAD_USAGE:
            raise
        return f"{REFUSED}{reason_of(error, folder)}"
    try:
        with watching.at_work():
            result = ftkit.train(recipe, output=path.with_suffix(""), observer=watching)
    except ModelError as error:
        if watching.prepared is not None:
            raise
        return f"{REFUSED_LATE}{reason_of(error, folder)}"
    check(watching, result)
    return WORKS


def reason_of(error: FtkitError, folder: Path) -> str:
    """A refusal without the places of this run."""
    text = "; ".join(str(replace(problem, place="")) for problem in error.problems)
    assert str(folder) not in text, f"a reason names a path: {text}"
    assert not any(words in text for words in ACCIDENTS), f"an accident, not a refusal: {text}"
    return text


def write_recipe(cell: Cell, folder: Path) -> Path:
    """Writes recipe and data."""
    case, method = case_of(cell.task), METHODS.get(cell.method)
    data = folder / "data" / cell.task
    if not data.is_dir():
        write_data(case, data)
    options = options_of(cell.method, family_of(cell.architecture))
    can = method(method.Options(**options)).capabilities
    recipe = {
        "model": recipe_model(cell.architecture, folder / "models"),
        "task": {"name": cell.task, **case.options},
        "data": {**{name: str(data / f"{name}.jsonl") for name in SPLITS}, "cache": False},
        "method": {"name": cell.method, **options},
        "train": {"max_steps": STEPS, "batch_size": 4, "warmup_ratio": 0.0, "evaluate_every": {"steps": STEPS}},
        "export": [form for form, able in (("adapter", can.adapter), ("merged", can.merge)) if able],
    }
    path = folder / "runs" / f"{str(cell).replace(' ', '_')}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()), encoding="utf-8")
    return path


def options_of(method: str, family: str) -> Mapping[str, Any]:
    """What the contract suite gives a method on these models: the options of its first variant, and those that fit models so narrow."""
    first, _ = VARIANTS.get(method, [({}, ())])[0]
    return {**first, **(FITTING[method](family) if method in FITTING else {})}


def write_data(case: Case, folder: Path) -> None:
    """One file a split, and the files that rows name."""
    folder.mkdir(parents=True)
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    for name, numbers in SPLITS.items():
        lines = [json.dumps(case.row(number)) for number in numbers]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")


class Witness(Observer):
    """Sees the live model of a run: its parameters before training, and what it has become before exports change it."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.declared: set[str] = set()
        self.changed: set[str] = set()
        self.predictions: list[dict[str, Any]] = []
        self.prepared: Prepared | None = None
        self._before: dict[str, Tensor] = {}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within, a run shows its model here and proves its exports in this process."""
        with (
            patch.object(train, "prepare_model", self._prepare),
            patch.object(train, "export_all", self._export),
            patch.object(exporting, "verify", verify_here),
            patch("os.fsync", lambda descriptor: None),  # Waiting for the disk takes half the time of a cell.
        ):
            yield

    def _prepare(self, *arguments: Any, **options: Any) -> Prepared:
        self.prepared = prepared = prepare_model(*arguments, **options)
        self._before = {name: parameter.detach().clone() for name, parameter in prepared.model.named_parameters()}
        self.declared = {name for name in self._before if prepared.method.declares(name, prepared.layout)}
        return prepared

    def step(self, event: StepEvent, *, tokens_per_second: float, seconds_left: float) -> None:
        self.losses.append(event.loss)

    def _export(self, prepared: Prepared, *arguments: Any, **options: Any) -> dict[str, dict[str, Any]]:
        self._look(prepared)
        return export_all(prepared, *arguments, **options)

    def finished(self, results: dict[str, Any]) -> None:
        if not self.predictions and self.prepared is not None:
            self._look(self.prepared)

    def _look(self, prepared: Prepared) -> None:
        parameters = dict(prepared.model.named_parameters())
        self.changed = {name for name, parameter in parameters.items() if not torch.equal(parameter, self._before[name])}
        self.predictions = predictions_of(Predictor(Path(), prepared, ""))


def verify_here(requests: Sequence[Request], inputs: dict[str, Any], expected: dict[str, Any], plugins: Any) -> list[float]:
    """`ftkit.exports.verification.verify` without the new process, which costs seconds; others test that."""
    return differences(requests, inputs, expected)


def predictions_of(predictor: Predictor) -> list[dict[str, Any]]:
    source = predictor.plan.recipe.data.test
    assert source
    return list(predictor.predict(predictor.read(source[0].path)))


def check(watching: Witness, result: RunResult) -> None:
    """Raises AssertionError unless training was right and the saved run computes what the live model did."""
    losses = [
        *watching.losses,
        *(metrics["metrics"]["loss"] for name, metrics in result.results["splits"].items() if name != "train"),
    ]
    assert len(watching.losses) == (STEPS if watching.declared else 0)
    assert all(math.isfinite(loss) for loss in losses), losses
    untouched, surprising = sorted(watching.declared - watching.changed), sorted(watching.changed - watching.declared)
    assert not surprising, f"changed without being declared: {surprising}"
    assert not untouched, f"declared and yet not trained: {untouched}"
    reloaded = ftkit.load(result.folder)
    again = predictions_of(reloaded)
    assert again == watching.predictions, f"the saved run predicts {again}, the live model {watching.predictions}"
    found = reloaded.evaluate("test")["metrics"]
    expected = result.results["splits"]["test"]["metrics"]
    assert found == expected, f"the saved run scores {found}, the run itself {expected}"
