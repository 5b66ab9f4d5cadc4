"""Memory does not grow with the rows, but for a few numbers for each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BYTES_FOR_A_ROW = 100
"""Somewhat more than that of the largest arrays that come and go: digests, their order, ranks and strata while rows are divided. A
row as Python values takes 700."""

FEW, MANY = 60_000, 260_000

CODE = """
import resource, sys
from pathlib import Path

# Small limits, so that both sizes are kept on disk and neither is kept in memory as a whole.
from ftkit.data import arrow_files, spilling
spilling.SPILL_BYTES = arrow_files.RESIDENT_BYTES = 2**20

from ftkit.data.batching import epoch_batches
from ftkit.data.features import encode_table
from ftkit.data.splits import load_splits
from ftkit.diagnostics.examine import quick_findings
from ftkit.recipe.schema import DataSpec, TrainSpec
from tests.data.toy_task import ToyTask

task = ToyTask()
spec = DataSpec.model_validate({"train": sys.argv[1], "validation": "held.jsonl", "split": {"test": 0.01}})
splits = load_splits(spec, task, Path.cwd())
splits.fingerprints()
quick_findings(splits, task, TrainSpec())
for cache in (True, True, False):
    store = encode_table(splits.train, task, None, processor_key="", cache=cache, training=True)
batches = epoch_batches(store.lengths, seed=0, epoch=0, batch_size=8, max_tokens=None, bucket=True)
for number in range(0, len(batches), 100):
    store.take(batches[number])

status = Path("/proc/self/status")
if status.is_file():
    # ru_maxrss would begin with that of the process that started this one.
    lines = dict(line.split(":") for line in status.read_text().splitlines())
    print(int(lines["VmHWM"].split()[0]) * 1024, len(splits.train))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(splits.train))
"""


def peak(rows: int) -> int:
    """Largest resident memory in bytes of a process that reads, checks, divides, compares and encodes so many rows."""
    with Path(f"{rows}.jsonl").open("w") as stream:
        # Each fiftieth is a copy.
        numbers = (number // 50 * 50 if number % 50 == 1 else number for number in range(rows))
        stream.writelines(f'{{"text": "row {number} says nothing much", "label": "{"ab"[number % 2]}"}}\n' for number in numbers)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", CODE, f"{rows}.jsonl"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, kept = map(int, done.stdout.split())
    assert kept > 0.95 * rows
    return found


def test_peak_memory_grows_by_little_more_than_its_index_arrays() -> None:
    Path("held.jsonl").write_text("".join(f'{{"text": "held {number}", "label": "a"}}\n' for number in range(500)))
    few, many = peak(FEW), peak(MANY)
    assert many - few < BYTES_FOR_A_ROW * (MANY - FEW), f"{(many - few) / (MANY - FEW):.0f} bytes for each row"
