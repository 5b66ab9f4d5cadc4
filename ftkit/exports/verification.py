"""Proves an export: a new process loads it from disk as a user would and must compute the same logits.

The new process runs `main` with the path of a request; its answer lies beside that.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ftkit.children import command
from ftkit.errors import ExportError
from ftkit.files import read_json, write_json
from ftkit.recipe.schema import ModelSpec
from ftkit.tasks.base import Head

RELATIVE_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}
"""Largest allowed difference between logits, relative to their largest magnitude, by the type of the base weights.

float32: merging rounds each weight once; over some tens of layers that stays near 1e-6 of the logits' size.
"""

INT8_TOLERANCE = 5e-2
"""The same for a base in int8, whose products round their inputs as well; no plain model computes that."""

OTHER_SEED = 987_654_321
"""Another seed than any run's: whatever an export lacks comes out random, and shows."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One export to load. model: the recipe's `model`, the base of an adapter; head: config entries of the task's head."""

    format: str
    path: str
    auto_class: str
    model: dict[str, Any]
    head: dict[str, Any]


def relative_tolerance(model: ModelSpec) -> float:
    """Largest allowed difference between logits, relative to their largest magnitude."""
    if model.quantization is None:
        return RELATIVE_TOLERANCE[model.dtype]
    if model.quantization.type == "int8":
        return INT8_TOLERANCE
    return max(RELATIVE_TOLERANCE[model.dtype], RELATIVE_TOLERANCE[model.quantization.compute_dtype])


def logits_of(outputs: Any) -> dict[str, Any]:
    """The tensors of a model's outputs that its predictions are made of (`logits`, `start_logits` ...)."""
    return {name: value for name, value in outputs.items() if name.endswith("logits")}


def verify(requests: Sequence[Request], inputs: dict[str, Any], expected: dict[str, Any], plugins: Sequence[Path]) -> list[float]:
    """Largest absolute difference of each export's logits from `expected`, computed in a new process.

    inputs: tensors of the probe batch by argument name; expected: logits by name. Raises ExportError if an export does not load.
    """
    from safetensors.torch import save_file

    with TemporaryDirectory(prefix="ftkit-verify-") as name:
        folder = Path(name)
        save_file({key: value.cpu().contiguous() for key, value in inputs.items()}, folder / "inputs.safetensors")
        save_file({key: value.cpu().float().contiguous() for key, value in expected.items()}, folder / "expected.safetensors")
        question = {"requests": [asdict(request) for request in requests], "plugins": [str(path) for path in plugins]}
        write_json(folder / "request.json", question)
        started = command("ftkit.exports.verification", [str(folder / "request.json")])
        done = subprocess.run(started, capture_output=True, text=True, env=_environment(), stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportError(f"the export does not load in a new process: {last}", hint=_hint(last))
        return read_json(folder / "answer.json")["differences"]


def _hint(last: str) -> str:
    if not last.startswith("ModuleNotFoundError"):
        return ""
    return "New processes import nothing from the working folder: name the folder of what a plug-in imports in PYTHONPATH"


def _environment() -> dict[str, str]:
    """This process's environment without what makes a process part of a distributed job or use a GPU."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    kept = {key: value for key, value in os.environ.items() if key not in launcher and not key.startswith("TORCHELASTIC")}
    # Quantized models are loaded onto the device they will compute on, and the probe lies on the CPU.
    return {**kept, "ACCELERATE_USE_CPU": "true"}


def differences(requests: Sequence[Request], inputs: dict[str, Any], expected: dict[str, Any]) -> list[float]:
    """What `verify` finds out, computed in this process."""
    return [_difference(request, inputs, expected) for request in requests]


def _difference(request: Request, inputs: dict[str, Any], expected: dict[str, Any]) -> float:
    import torch

    model = _load(request).eval()
    with torch.no_grad():
        found = logits_of(model(**inputs))
    return max(float((found[name].float() - value).abs().max()) for name, value in expected.items())


def _load(request: Request) -> Any:
    import torch
    import transformers

    torch.manual_seed(OTHER_SEED)
    if request.format == "merged":
        auto, dtype = getattr(transformers, request.auto_class), getattr(torch, request.model["dtype"])
        trust = bool(request.model["trust_remote_code"])
        return auto.from_pretrained(request.path, use_safetensors=True, dtype=dtype, trust_remote_code=trust)
    from peft import PeftModel

    from ftkit.models.load import load_model
    from ftkit.tuners.registration import register_tuners

    register_tuners()
    spec = ModelSpec.model_validate(request.model)
    head = Head(auto_class=request.auto_class, peft_task_type=None, config=request.head)
    base = load_model(spec, head, seed=OTHER_SEED, allow_remote_code=spec.trust_remote_code).model
    return PeftModel.from_pretrained(base, request.path)


def main(arguments: Sequence[str]) -> None:
    """Answers the request whose path is the only argument."""
    from safetensors.torch import load_file

    from ftkit.models.quiet import quiet_libraries
    from ftkit.registry import load_plugin

    quiet_libraries()
    question = Path(arguments[0])
    asked = read_json(question)
    for path in asked["plugins"]:
        load_plugin(Path(path))
    inputs, expected = (load_file(question.parent / f"{name}.safetensors") for name in ("inputs", "expected"))
    found = differences([Request(**request) for request in asked["requests"]], inputs, expected)
    (question.parent / "answer.json").write_text(json.dumps({"differences": found}), encoding="utf-8")
