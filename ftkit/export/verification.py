"""Proves an export: a new process loads it from disk as a user would and must compute the same logits.

The new process is `python -m ftkit.export.verification REQUEST.json`; its answer lies beside the request.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ftkit.errors import ExportError
from ftkit.files import read_json, write_json

RELATIVE_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}
"""Largest allowed difference between logits, relative to their largest magnitude, by the type of the base weights.

float32: merging rounds each weight once; over some tens of layers that stays near 1e-6 of the logits' size.
"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One export to load. `base` is the plain model under an adapter; `head` the config entries and auto class of its head."""

    format: str
    path: str
    auto_class: str
    base: str
    revision: str | None
    dtype: str
    head: dict[str, Any]
    trust_remote_code: bool = False


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
        command = [sys.executable, "-m", "ftkit.export.verification", str(folder / "request.json")]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportError(f"the export does not load in a new process: {last}")
        return read_json(folder / "answer.json")["differences"]


def _environment() -> dict[str, str]:
    """This process's environment without what makes a process part of a distributed job."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    return {key: value for key, value in os.environ.items() if key not in launcher and not key.startswith("TORCHELASTIC")}


def _difference(request: Request, inputs: dict[str, Any], expected: dict[str, Any]) -> float:
    import torch

    model = _load(request).eval()
    with torch.no_grad():
        found = logits_of(model(**inputs))
    return max(float((found[name].float() - value).abs().max()) for name, value in expected.items())


def _load(request: Request) -> Any:
    import torch
    import transformers

    # Another seed than any run's: whatever the export lacks would come out random, and show.
    torch.manual_seed(987_654_321)
    auto = getattr(transformers, request.auto_class)
    common: dict[str, Any] = {"dtype": getattr(torch, request.dtype), "trust_remote_code": request.trust_remote_code}
    if request.format == "merged":
        return auto.from_pretrained(request.path, use_safetensors=True, **common)
    from peft import PeftModel

    from ftkit.tuners.registration import register_tuners

    register_tuners()
    base = auto.from_pretrained(request.base, revision=request.revision, use_safetensors=True, **request.head, **common)
    return PeftModel.from_pretrained(base, request.path)


def _answer(question: Path) -> None:
    from safetensors.torch import load_file

    from ftkit.models.quiet import quiet_libraries
    from ftkit.registry import load_plugin

    quiet_libraries()
    asked = read_json(question)
    for path in asked["plugins"]:
        load_plugin(Path(path))
    inputs, expected = (load_file(question.parent / f"{name}.safetensors") for name in ("inputs", "expected"))
    differences = [_difference(Request(**request), inputs, expected) for request in asked["requests"]]
    (question.parent / "answer.json").write_text(json.dumps({"differences": differences}), encoding="utf-8")


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
