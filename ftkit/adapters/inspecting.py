"""`ftkit adapters inspect`: how large the trained update of each layer is, and how many directions it uses.

    norm            |U|, the Frobenius norm of the update U = W_tuned - W_base
    relative norm   |U| / |W_base|
    effective rank  exp(-sum_i p_i ln p_i),   p_i = s_i / sum_j s_j,   s_i the singular values of U

The effective rank is between 1 and the rank of U, and equals it where all singular values are equal. Source: Roy & Vetterli 2007, "The
effective rank: A measure of effective dimensionality", EUSIPCO, equations 3 to 5, https://ieeexplore.ieee.org/document/7098875.

Where U comes from: of a LoRA it is s B A, read off its files alone; of a method that merges, the merged weight minus that of the base; of a
tuned model, its weight minus that of the base. What changes activations instead of weights (prompts, bottleneck adapters), or stands in a
folder without its base, has only norms: those of the trained tensors themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ftkit.adapters.listing import entry_of
from ftkit.adapters.portable import Portable, factors, of_folder, of_predictor
from ftkit.adapters.sources import RUN, Trained, plain_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftkit.recipe.schema import ModelSpec
    from ftkit.run.predictor import Predictor

UPDATE, WEIGHTS = "update", "weights"

NOTHING = 1e-12
"""Singular values below this share of the largest are rounding, not directions."""


def inspect_adapter(found: Trained, *, allow_code: bool = False) -> dict[str, Any]:
    """What `ftkit adapters list` says of it, and `source` (low rank, merged, tuned or tensors: where the updates come from), `layers`:
    {`layer`, `parameters`, `what`, `norm`, `relative_norm`, `effective_rank`, `rank`} for each, and `update_norm` of all updates together.

    what: `update`, or `weights` where the norm is that of the trained values themselves. Values that a layer does not have are null.
    Raises ModelError or RunFolderError if it cannot be loaded.
    """
    adapter = of_folder(found)
    if adapter is not None and adapter.low_rank:
        return _report(found, "low rank", list(_low_rank(adapter)))
    if adapter is not None and found.kind != RUN:
        return _report(found, "tensors", list(_norms(found.tensors())))
    can = found.capabilities
    if can.adapter and not can.merge:
        return _report(found, "tensors", list(_norms(found.tensors())))
    from ftkit.run.predictor import load_predictor

    predictor = load_predictor(found.path, allow_code=allow_code)
    if can.adapter and (adapter := of_predictor(predictor)).low_rank:
        return _report(found, "low rank", list(_low_rank(adapter)))
    source = "merged" if can.adapter else "tuned"
    return _report(found, source, list(_differences(predictor, allow_code=allow_code)))


def _report(found: Trained, source: str, layers: list[dict[str, Any]]) -> dict[str, Any]:
    updates = [layer["norm"] ** 2 for layer in layers if layer["what"] == UPDATE]
    return {**entry_of(found), "source": source, "layers": layers, "update_norm": sum(updates) ** 0.5 if updates else None}


def effective_rank(values: Tensor) -> float | None:
    """exp of the entropy of the singular values, taken as shares of their sum; None if all are zero."""
    kept = values[values > NOTHING * values.max()] if values.numel() else values
    if not kept.numel() or float(kept.sum()) == 0:
        return None
    shares = kept / kept.sum()
    return float((-(shares * shares.log()).sum()).exp())


def _layer(name: str, parameters: int, what: str, norm: float, **values: Any) -> dict[str, Any]:
    return {
        "layer": name,
        "parameters": parameters,
        "what": what,
        "norm": norm,
        "relative_norm": None,
        "effective_rank": None,
        "rank": None,
    } | values


def _low_rank(adapter: Portable) -> Iterator[dict[str, Any]]:
    """Singular values of s B A from two QR decompositions: those of the small matrix R_B R_A^T."""
    import torch

    updates = factors(adapter)
    for layer, (b, a) in updates.items():
        small = torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T
        values = torch.linalg.svdvals(small)
        size = a.numel() + b.numel()
        yield _layer(layer, size, UPDATE, float(values.norm()), effective_rank=effective_rank(values), rank=int(a.shape[0]))
    rest = {plain_name(name): tensor for name, tensor in adapter.tensors.items() if ".lora_" not in name or name.endswith(".bias")}
    yield from _norms(rest)


def _norms(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
    """Trained tensors by the module that they belong to: the norm of all its values together."""
    modules: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        modules.setdefault(name.rpartition(".")[0] or name, []).append(tensor)
    for module, own in modules.items():
        squares = sum(float(tensor.double().square().sum()) for tensor in own)
        yield _layer(module, sum(tensor.numel() for tensor in own), WEIGHTS, squares**0.5)


def _differences(predictor: Predictor, *, allow_code: bool) -> Iterator[dict[str, Any]]:
    """The change of each weight of the model; of linear layers with its directions."""
    import torch

    from ftkit.models.trainable import to_uniform_dtype
    from ftkit.tuners.wrap import merge

    prepared = predictor.prepared
    base = untuned(predictor, allow_code=allow_code)
    tuned: Any = prepared.model
    if prepared.method.capabilities.adapter:
        # Merged in double precision: rounding would show as many small directions.
        whole: Any = to_uniform_dtype(tuned.to("cpu"), torch.float64)
        tuned = merge(whole)
    linears = {f"{path}.weight" for path in prepared.layout.linears("all")}
    tuned_weights = dict(tuned.named_parameters())
    fresh = prepared.layout.fresh
    for name, weight in base.named_parameters():
        update = tuned_weights[name].detach().double().cpu() - weight.detach().double().cpu()
        if name in fresh or not update.any():
            continue
        norm, size = float(update.norm()), float(weight.detach().double().norm())
        values: dict[str, Any] = {"relative_norm": norm / size if size else None}
        if name in linears:
            values |= {"effective_rank": effective_rank(torch.linalg.svdvals(update)), "rank": min(update.shape)}
        yield _layer(name.removesuffix(".weight"), update.numel(), UPDATE, norm, **values)
    yield from _norms({name: tuned_weights[name].detach() for name in sorted(fresh) if name in tuned_weights})


def untuned(predictor: Predictor, *, allow_code: bool, spec: ModelSpec | None = None) -> nn.Module:
    """The base model of a loaded run (or another one) as it was before training, with a head whose values mean nothing."""
    from ftkit.models.load import load_model

    prepared = predictor.prepared
    recipe = prepared.plan.recipe
    return load_model(spec or recipe.model, prepared.task.head(), seed=recipe.seed, allow_remote_code=allow_code).model
