"""Exports of a trained model and their proof."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ftkit.data.features import FeatureStore
from ftkit.errors import ExportError, RecipeError
from ftkit.exports.formats import export_adapter, export_merged
from ftkit.exports.verification import Request, logits_of, relative_tolerance, verify
from ftkit.files import size_of
from ftkit.models.load import load_model
from ftkit.models.processor import align_padding
from ftkit.models.quantization import dequantize_into
from ftkit.models.trainable import load_trainable, trainable_state
from ftkit.registry import PLUGIN_FILES
from ftkit.run.folder import PROBE, readable, refuse_links
from ftkit.run.observer import Observer
from ftkit.run.predictor import load_predictor
from ftkit.run.wiring import Prepared
from ftkit.training.evaluation import evaluating

PROBE_ROWS = 8


def check_format(prepared: Prepared, form: str) -> None:
    """Raises RecipeError if the method cannot be exported in this form."""
    method, can = prepared.method, prepared.method.capabilities
    if form == "adapter" and not can.adapter:
        raise RecipeError(f"{method.name} trains the model itself; there is no separate adapter", hint="Use --format merged")
    if form == "merged" and can.adapter and not can.merge:
        raise RecipeError(f"what {method.name} trains cannot be merged into the model", hint="Use --format adapter")


def export_all(
    prepared: Prepared, targets: dict[str, Path], inputs: dict[str, torch.Tensor], *, observer: Observer
) -> dict[str, dict[str, Any]]:
    """Writes each format to its folder, proves all of them in one new process, and returns the facts by format.

    inputs: a batch to compare logits on, see `probe_inputs`. The model of `prepared` may be merged afterwards and is not to be used again.
    Raises ExportError if an export does not load or computes something else; it is left in place for inspection.
    """
    model = _without_autocast(prepared.model).to("cpu")
    with evaluating(model):
        expected = logits_of(model(**inputs))
    for form in sorted(targets):  # `adapter` before `merged`: merging changes the model.
        observer.stage(f"exporting {form}")
        if form == "adapter":
            export_adapter(prepared.method, model, prepared.processor, targets[form], base_name=prepared.plan.recipe.model.name)
        else:
            dtype = getattr(torch, prepared.plan.recipe.model.dtype)
            export_merged(_unquantized(prepared, model), prepared.processor, targets[form], dtype=dtype)
    observer.stage("verifying exports")
    differences = verify([_request(prepared, form, path) for form, path in targets.items()], inputs, expected, PLUGIN_FILES)
    return _facts(prepared, targets, differences, expected)


def _without_autocast(model: nn.Module) -> nn.Module:
    """The same model as whoever loads an export runs it: Accelerate leaves autocast on in a model that it prepared.

    Its own way back (`extract_model_from_parallel`) takes transformers' decorators of `forward` off, too.
    """
    if model.__dict__.pop("_original_forward", None) is not None:
        del model.__dict__["forward"]
    return model


def _unquantized(prepared: Prepared, model: nn.Module) -> nn.Module:
    """The model itself, or, if its base is quantized, the same on a plain base that holds the values the quantized one stands for.

    Merged into 4-bit weights, an update is rounded away.
    """
    spec = prepared.plan.recipe.model
    if spec.quantization is None:
        return model
    whole = spec.model_copy(update={"quantization": None})
    loaded = load_model(whole, prepared.task.head(), seed=prepared.plan.recipe.seed, allow_remote_code=prepared.task.allow_code)
    align_padding(loaded.model, prepared.processor)
    dequantize_into(loaded.model, prepared.layout)
    plain = prepared.method.apply(loaded.model, loaded.layout)
    load_trainable(plain, trainable_state(model))
    prepared.method.restore(plain, prepared.method.state(model))
    return plain


def probe_inputs(prepared: Prepared, rows: FeatureStore) -> dict[str, torch.Tensor]:
    """Model inputs of the first rows of a split, by argument name: what exports are compared on."""
    indices = np.arange(min(PROBE_ROWS, len(rows)))
    batch = prepared.task.collate(rows.take(indices), prepared.processor)
    return {name: batch[name] for name in prepared.task.model_inputs if name in batch}


def _saved_probe(file: Path) -> dict[str, torch.Tensor]:
    with readable(file):
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(str(error)) from error


def _request(prepared: Prepared, form: str, path: Path) -> Request:
    head = prepared.task.head()
    model = prepared.plan.recipe.model.model_dump(mode="json")
    return Request(format=form, path=str(path), auto_class=head.auto_class, model=model, head=copy.deepcopy(head.config))


def _facts(
    prepared: Prepared, targets: dict[str, Path], differences: Sequence[float], expected: dict[str, torch.Tensor]
) -> dict[str, dict[str, Any]]:
    size = max(1.0, max(float(value.abs().max()) for value in expected.values()))
    tolerance = relative_tolerance(prepared.plan.recipe.model) * size
    facts = {}
    for (form, path), difference in zip(targets.items(), differences, strict=True):
        facts[form] = {"path": str(path), "bytes": size_of(path), "max_abs_difference": difference, "tolerance": tolerance}
        if not math.isfinite(difference) or difference > tolerance:
            raise ExportError(
                f"the {form} export at {path} differs from the trained model: logits by {difference:.3g}, allowed {tolerance:.3g}",
                hint="Do not use it. Please report this with the output of `ftkit env` and the recipe",
            )
    return facts


def export_run(run: Path, form: str, *, to: Path | None, allow_code: bool, observer: Observer) -> dict[str, Any]:
    """Exports a finished run to a folder. See `ftkit.export`."""
    if form not in ("adapter", "merged"):
        raise RecipeError(f"unknown export format {form!r}", hint="Known: adapter, merged")
    if to is None:
        refuse_links(run)
    observer.stage("loading the run")
    predictor = load_predictor(run, allow_code=allow_code)
    check_format(predictor.prepared, form)
    target = (to or predictor.folder / "export" / form).absolute()
    facts = export_all(predictor.prepared, {form: target}, _saved_probe(predictor.folder / PROBE), observer=observer)
    return {"format": form, **facts[form]}
