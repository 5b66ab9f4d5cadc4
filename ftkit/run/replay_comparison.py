"""In what a stretch of training that was repeated differs from what the run had written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftkit.errors import RunFolderError
from ftkit.files import parse_json
from ftkit.run.folder import METRICS, readable
from ftkit.training.checkpoint import RESUMABLE, Checkpoint, checkpoint_path, open_checkpoint

TENSORS = ("trainable", "optimizer", "method")
"""Files of a checkpoint that hold tensors."""

TIMES = ("training_seconds", "evaluation_seconds")
"""What a checkpoint holds that no repetition repeats."""


def compare(run: Path, copy: Path, end: Checkpoint, log: tuple[int, int]) -> dict[str, Any]:
    """What both wrote in a stretch that ends with a checkpoint of the run, compared bit by bit.

    log: where it begins and ends in metrics.jsonl, in bytes. Returns `compared`: {`metrics_lines`, `tensors`: how many by file}, and
    `differences`: {`loss`: {`step`, `run`, `replay`} of the first step with another one, or None; `metrics`: entries of `line`, `type`,
    `step`, `key`, `run`, `replay`, the first of each line that differs; `tensors`: entries of `file`, `tensor`, `max_abs_difference`
    (None: not there, or of another form); `state`: other entries of state.json}.
    """
    replayed = _replayed(copy, end.step)
    begin, last = log
    # Numbers that came out otherwise may have more digits.
    lines = [_lines(run / METRICS, begin, last), _lines(copy / METRICS, begin, None)]
    with readable(run / METRICS):
        loss, metrics = _first_loss(*lines), _metrics(*lines)
    sizes, tensors = {}, []
    for name in TENSORS:
        before = end.tensors(name)
        if before:
            sizes[name] = len(before)
        tensors += _tensors(name, before, {} if replayed is None else replayed.tensors(name))
    state = {} if replayed is None else replayed.state()
    with readable(end.path / "state.json"):
        changed = _keys(_timeless(end.state()), _timeless(state))
    return {
        "compared": {"metrics_lines": len(lines[0]), "tensors": sizes},
        "differences": {
            "loss": loss,
            "metrics": metrics,
            "tensors": tensors,
            "state": changed,
        },
    }


def _replayed(copy: Path, step: int) -> Checkpoint | None:
    """The checkpoint of the repetition; None where that ended before it."""
    try:
        return open_checkpoint(checkpoint_path(copy / "checkpoints", RESUMABLE, step))
    except RunFolderError:
        return None


def _lines(path: Path, begin: int, end: int | None) -> list[dict[str, Any]]:
    with readable(path):
        text = path.read_bytes()[begin:end].decode()
        return [dict(parse_json(line)) for line in text.splitlines()]


def _first_loss(run: list[dict[str, Any]], replay: list[dict[str, Any]]) -> dict[str, Any] | None:
    before, after = ({line["step"]: line["loss"] for line in lines if line["type"] == "step"} for lines in (run, replay))
    step = next((step for step in before if before[step] != after.get(step)), None)
    return None if step is None else {"step": step, "run": before[step], "replay": after.get(step)}


def _metrics(run: list[dict[str, Any]], replay: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for number in range(max(len(run), len(replay))):
        before, after = (dict(_flat(lines[number])) if number < len(lines) else {} for lines in (run, replay))
        if key := next(iter(_keys(before, after)), ""):
            kind = {name: before.get(name, after.get(name)) for name in ("type", "step")}
            found.append({"line": number + 1, **kind, "key": key, "run": before.get(key), "replay": after.get(key)})
    return found


def _flat(line: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The entries of a line, those of its metrics by dotted key."""
    found = []
    for key, value in line.items():
        found += [(f"{key}.{name}", inner) for name, inner in value.items()] if isinstance(value, dict) else [(key, value)]
    return found


def _keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]


def _timeless(state: Mapping[str, Any]) -> dict[str, Any]:
    totals = {key: value for key, value in dict(state.get("totals") or {}).items() if key not in TIMES}
    # How long the log is says nothing that its lines do not say.
    return {**{key: value for key, value in state.items() if key != "metrics_bytes"}, "totals": totals}


def _tensors(file: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in dict.fromkeys([*before, *after]):
        a, b = before.get(name), after.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            found.append({"file": file, "tensor": name, "max_abs_difference": None})
        elif not _same_bits(a, b):
            found.append({"file": file, "tensor": name, "max_abs_difference": float((a.double() - b.double()).abs().max())})
    return found


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(*(value.contiguous().reshape(-1).view(torch.uint8) for value in (a, b)))
