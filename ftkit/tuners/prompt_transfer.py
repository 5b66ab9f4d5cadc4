"""Takes prompts of earlier tasks apart into what they share and what is their own, to start a new task from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ftkit.errors import ModelError, Problem

KEY = "method.sources"
ROUNDS = 200
SMALLEST = 1e-12
"""Added to denominators: a row of zeros has no factor."""

Factors = tuple[Tensor, Tensor, Tensor]
"""Prompts S * (u v^T): S (length, width), u (length), v (width); of N prompts with one S: u (N, length), v (N, width)."""


def factors_to_start_from(folders: Sequence[str], length: int, width: int) -> Factors:
    """The shared prompt of earlier tasks and the mean of the vectors that are their own.

    folders: adapters exported by `prompt-tuning`, `p-tuning` or `multitask-prompt-tuning`, on one base. The factors of a single
    adapter that has them are those that its training found; prompts of several are taken apart, one for each source of an adapter
    that was trained on several. Raises ModelError for a folder that is none, or a prompt of another size.
    """
    found = [_read(Path(folder), length, width) for folder in folders]
    shared, rows, columns = found[0]
    if len(found) > 1:
        prompts = [shared * rows[:, :, None] * columns[:, None] for shared, rows, columns in found]
        shared, rows, columns = decompose(torch.cat(prompts))
    return shared, rows.mean(0), columns.mean(0)


def decompose(prompts: Tensor) -> Factors:
    """S, u and v with S * (u_n v_n^T) nearest to each of N prompts (N, length, width): S (length, width), u (N, length), v (N, width).

    Alternating least squares from S = the mean, u = v = 1. Wang et al. 2023 find the factors in training, by distillation.
    """
    prompts = prompts.double()
    shared = prompts.mean(0)
    rows, columns = prompts.new_ones(prompts.shape[:2]), prompts.new_ones(len(prompts), prompts.shape[2])
    for _ in range(ROUNDS):
        weights = shared * columns[:, None]
        rows = (prompts * weights).sum(2) / ((weights**2).sum(2) + SMALLEST)
        weights = shared * rows[:, :, None]
        columns = (prompts * weights).sum(1) / ((weights**2).sum(1) + SMALLEST)
        weights = rows[:, :, None] * columns[:, None]
        shared = (prompts * weights).sum(0) / ((weights**2).sum(0) + SMALLEST)
    # S u v stays what it is if u grows as v shrinks, or if both change sign; only means of like with like say something.
    scale = rows.norm(dim=1, keepdim=True) / rows.shape[1] ** 0.5 * rows.sum(1, keepdim=True).sign()
    scale = torch.where(scale.abs() < SMALLEST, torch.ones_like(scale), scale)
    return shared.float(), (rows / scale).float(), (columns * scale).float()


def _read(folder: Path, length: int, width: int) -> Factors:
    """S, and the u and v of each source of an adapter."""
    file = folder / SAFETENSORS_WEIGHTS_NAME
    try:
        tensors = {name.rpartition(".")[2]: value for name, value in load_file(file).items() if ".soft_prompt_encoder." in name}
    except (OSError, SafetensorError) as error:
        message = f"no adapter can be read here: {error}"
        raise ModelError(
            Problem(message=message, place=str(folder), key=KEY, hint="Give the folder of an exported adapter")
        ) from error
    if {"shared", "rows", "columns"} <= tensors.keys():
        rows, columns = tensors["rows"], tensors["columns"]
        factors = (tensors["shared"], rows if rows.dim() == 2 else rows[None], columns if columns.dim() == 2 else columns[None])
    elif "vectors" in tensors:
        factors = (tensors["vectors"], torch.ones(1, len(tensors["vectors"])), torch.ones(1, tensors["vectors"].shape[1]))
    else:
        hint = "Give an adapter of prompt-tuning, p-tuning or multitask-prompt-tuning"
        raise ModelError(Problem(message="the adapter holds no prompt", place=str(folder), key=KEY, hint=hint))
    if factors[0].shape != (length, width):
        message = f"its prompt has {' x '.join(map(str, factors[0].shape))} numbers, this run's {length} x {width}"
        raise ModelError(Problem(message=message, place=str(folder), key=KEY, hint="Use the same base and `method.length`"))
    return factors
