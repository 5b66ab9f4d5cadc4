"""Starts Python in several processes that form a group, as torchrun does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEADLINE = 400
DIVIDED = ("train.sharding=fsdp2",)

JOBS = """
import json, os, sys
from pathlib import Path

import torch
import ftkit
from ftkit.models.sharding import whole
from ftkit.run.training import TrainingSession

size, run = int(os.environ.get("WORLD_SIZE", 1)), TrainingSession.run


def compared(session):
    outcome = run(session)
    values = [whole(value.detach()).flatten() for _, value in session._bare.named_parameters() if value.requires_grad]
    if size > 1 and values:
        mine = torch.cat(values)
        others = [torch.empty_like(mine) for _ in range(size)]
        torch.distributed.all_gather(others, mine)
        assert all(torch.equal(mine, other) for other in others), "processes ended with different weights"
    return outcome


TrainingSession.run = compared
# Each process draws its own dropout; without it results can be compared.
torch.nn.functional.dropout = lambda values, *arguments, **options: values
attention = torch.nn.functional.scaled_dot_product_attention
torch.nn.functional.scaled_dot_product_attention = lambda *values, dropout_p=0.0, **options: attention(*values, **options)
for job in json.loads(Path(sys.argv[1]).read_text()):
    ftkit.train(ftkit.load_recipe(job["recipe"], job.get("overrides", ())), output=Path(job["output"] + sys.argv[2]))
assert size == 1 or torch.distributed.get_world_size() == size
print("WORLD", size, flush=True)
"""


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """One thread a process, a cache of the test's own, and this clone before what is installed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {
        **os.environ, "PYTHONPATH": path, "FTKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "CI": "1",
        "ACCELERATE_USE_CPU": "true", **more,
    }  # fmt: skip


def command(processes: int, *words: str) -> list[str]:
    """Words of a command line that runs Python with `words`, in one process or under torchrun in several."""
    if processes == 1:
        return [sys.executable, *words]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *words]


def run(processes: int, words: Sequence[str], tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs to the end. more: variables of the environment."""
    return subprocess.run(
        command(processes, *words),
        env=environment(tmp_path, **more),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def train_all(jobs: Sequence[dict[str, Any]], processes: int, tmp_path: Path, *overrides: str) -> str:
    """Trains each job in that many processes, into `output` with an ending that is returned."""
    script, listed = tmp_path / "jobs.py", tmp_path / "jobs.json"
    ending = "-".join(["", str(processes), *(word.partition("=")[2] for word in overrides)])
    script.write_text(JOBS, encoding="utf-8")
    changed = [{**job, "overrides": [*job.get("overrides", ()), *overrides]} for job in jobs]
    listed.write_text(json.dumps(changed), encoding="utf-8")
    done = run(processes, [str(script), str(listed), ending], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count(f"WORLD {processes}") == processes, done.stdout[-2000:]
    return ending


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def results_of(folder: Path) -> dict[str, Any]:
    """results.json."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))
