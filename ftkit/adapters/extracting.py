"""`ftkit adapters extract`: a LoRA out of a model that was tuned itself.

For each linear layer of the blocks, with the update U = W_tuned - W_base (out x in) and its singular values s_1 >= s_2 >= ...:
    U ~ B A,   B = [sqrt(s_i) u_i],   A = [sqrt(s_i) v_i^T],   i <= r
the best approximation of rank r (Eckart & Young 1936): |U - B A|^2 = sum_{i > r} s_i^2 in the Frobenius norm.
The head is kept as it is. What else training changed (embeddings, norms, biases) has no place in B A and is left out: it is listed, with
its share of the squared norm of the whole change. With `keep_rest` the adapter holds it beside B A, exactly: changes of the biases of
adapted layers as biases of B (`lora_bias`), other modules whole (`modules_to_save`). What PEFT has no place for either is listed with
the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.adapters.beside_updates import WRAPPED, Rest, place_rest, rest_facts
from ftkit.adapters.inspecting import untuned
from ftkit.adapters.merging import filled
from ftkit.adapters.sources import BaseCheck, Trained, read_trained_run, refuse_output
from ftkit.errors import ModelError, Problem, RecipeError
from ftkit.recipe.schema import Component
from ftkit.registry import METHODS
from ftkit.run.observer import Observer

if TYPE_CHECKING:
    from torch import Tensor

    from ftkit.recipe.schema import ModelSpec
    from ftkit.run.predictor import Predictor

TARGET = "lora"


@dataclass(frozen=True, kw_only=True)
class ExtractRequest:
    """What to extract. base: a model other than that of the run's recipe to take the updates against. evaluate: as for a merge.

    keep_rest: the adapter is to hold what is no update of a linear layer, too.
    """

    run: Path
    rank: int
    output: Path
    base: str | None = None
    evaluate: Sequence[str] | None = None
    allow_code: bool = False
    keep_rest: bool = False


def extract_lora(request: ExtractRequest, observer: Observer) -> dict[str, Any]:
    """Writes the run folder of the LoRA and returns its results; `derived` holds `layers` ({layer, rank, norm, relative_error}),
    `relative_error` of all layers together, `kept` (its file's part takes `kept_bytes`) and `left_out` ({part, parameters, norm, share}, in
    spite of `keep_rest` also `why`), `remaining_error`: that of the whole change, and `before`: the metrics of the tuned model.

    Raises RecipeError, ModelError or RunFolderError for what has no such form.
    """
    found = read_trained_run(request.run, "an adapter needs no extraction")
    _refuse(found, request)
    from ftkit.run.derived import Origin, chosen_tables, derived_plan, measured, write_derived
    from ftkit.run.predictor import load_predictor

    observer.stage("loading the run")
    tuned = load_predictor(found.path, allow_code=request.allow_code)
    spec = _base_spec(tuned, request.base)
    tables = chosen_tables(tuned.plan, request.evaluate, observer)
    before = measured(tuned, tables, observer, found.path.name)
    observer.stage("extracting")
    split = _split(tuned, spec, request)
    tensors, facts = _decomposed(split.updates, request.rank)
    rest = place_rest(tuned, split.rest, split.updates) if request.keep_rest else Rest(left_out=dict.fromkeys(split.rest, ""))
    options_class: Any = METHODS.get(TARGET).Options
    options = options_class(rank=request.rank, alpha=float(request.rank), targets=_targets(tuned, split.updates), **rest.options)
    plan = derived_plan(tuned.plan, Component(name=TARGET, options=options), model=spec)
    facts |= {**rest_facts(split.rest, split.updates, rest, facts["relative_error"]), "rank": request.rank}
    origin = Origin("extract", [found.path], facts, {str(found.path): before})
    prepared = filled(tuned, plan, {**tensors, **rest.tensors, **_head(tuned)})
    return write_derived(tuned, prepared, origin, request.output, tables, observer)


def _refuse(found: Trained, request: ExtractRequest) -> None:
    method = found.method_of_run()
    if method.capabilities.adapter:
        message = f"{method.name} trained an adapter beside the model; there is nothing to extract"
        raise RecipeError(Problem(message=message, place=str(found.path), hint="Export it: ftkit export RUN --format adapter"))
    if not method.capabilities.trains:
        raise RecipeError(
            Problem(message=f"{method.name} trains nothing", place=str(found.path), hint="Give a run that tuned its model")
        )
    if request.base is not None:
        BaseCheck(request.base)
    refuse_output(request.output, [found.path])


def _base_spec(tuned: Predictor, base: str | None) -> ModelSpec:
    """The base that the LoRA will stand on. Another one keeps the tokenizer of the run."""
    model = tuned.plan.recipe.model
    if base is None:
        return model
    name = str(Path(base).absolute()) if Path(base).exists() else base
    return model.model_copy(update={"name": name, "tokenizer": model.tokenizer or model.name, "revision": None})


@dataclass(frozen=True)
class _Split:
    """What training changed: updates of linear layers by path, and of all other parameters by name; heads are in neither."""

    updates: Mapping[str, Tensor]
    rest: Mapping[str, Tensor]


def _split(tuned: Predictor, spec: ModelSpec, request: ExtractRequest) -> _Split:
    layout = tuned.prepared.layout
    base = dict(untuned(tuned, allow_code=request.allow_code, spec=spec).named_parameters())
    head = set(head_names(tuned))
    linears = {f"{path}.weight": path for path in layout.linears("all")}
    updates: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, weight in tuned.bare_model.named_parameters():
        if name in head:
            continue
        if name not in base or base[name].shape != weight.shape:
            hint = "Give the model that the run was tuned from"
            raise ModelError(Problem(message=f"the base has no {name} of this shape", place="--base", hint=hint))
        change = weight.detach().cpu().double() - base[name].detach().double()
        if not change.any():
            continue
        if (path := linears.get(name)) is None:
            rest[name] = change
        else:
            # transformers' Conv1D holds its weight turned around.
            updates[path] = change.T if type(layout.model.get_submodule(path)).__name__ == "Conv1D" else change
    _refuse_ranks(updates, request)
    return _Split(updates, rest)


def _refuse_ranks(updates: Mapping[str, Tensor], request: ExtractRequest) -> None:
    if not updates:
        message = "no linear layer of its blocks differs from the base: there is no update to extract"
        raise ModelError(Problem(message=message, place=str(request.run), hint="Give a run that tuned blocks (full, partial)"))
    layer = min(updates, key=lambda path: min(updates[path].shape))
    largest = min(updates[layer].shape)
    if request.rank > largest:
        message = f"{request.rank} is above {largest}, the full rank of {layer}"
        raise RecipeError(Problem(message=message, place="--rank", hint=f"Give 1 to {largest}; far below is the point of it"))


def head_names(tuned: Predictor) -> list[str]:
    """Names of the parameters that a LoRA on this model trains as its head."""
    from ftkit.tuners.wrap import adapted_head_parameters

    return adapted_head_parameters(tuned.prepared.layout)


def _head(tuned: Predictor) -> dict[str, Tensor]:
    parameters = dict(tuned.bare_model.named_parameters())
    return {f"{WRAPPED}{name}": parameters[name].detach().cpu().clone() for name in head_names(tuned)}


def _decomposed(updates: Mapping[str, Tensor], rank: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A and B by the names in an adapter's file, and how far B A is from each update."""
    import torch

    tensors: dict[str, Tensor] = {}
    layers, lost, whole = [], 0.0, 0.0
    for path, update in updates.items():
        left, values, right = torch.linalg.svd(update, full_matrices=False)
        root = values[:rank].sqrt()
        tensors[f"{WRAPPED}{path}.lora_A.weight"] = (root[:, None] * right[:rank]).float().contiguous()
        tensors[f"{WRAPPED}{path}.lora_B.weight"] = (left[:, :rank] * root).float().contiguous()
        missed, total = float(values[rank:].square().sum()), float(values.square().sum())
        layers.append({"layer": path, "rank": rank, "norm": total**0.5, "relative_error": (missed / total) ** 0.5})
        lost, whole = lost + missed, whole + total
    return tensors, {"layers": layers, "relative_error": (lost / whole) ** 0.5}


def _targets(tuned: Predictor, updates: Mapping[str, Tensor]) -> str | list[str]:
    linears = tuned.prepared.layout.linears("all")
    return "all-linear" if set(linears) == set(updates) else [path for path in linears if path in updates]
