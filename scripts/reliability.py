#!/usr/bin/env python3
"""Tries faults on small runs of every task: kills, signals, full disks, damaged files, changed inputs, numbers that are none.

    scripts/reliability.py                            a short round
    scripts/reliability.py --kills 200 --trials 20 --write docs/reliability.md
                                                      the table of that page

Prints the table; exits with 1 if anything was lost, inexact or otherwise than it must be. Full and read-only disks need root on Linux.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CI": "1", "COLUMNS": "200"}

from tests.faults import harness  # noqa: E402

OWN = "FTKIT_FAULTS_PROCESS"
BEGIN, END = "<!-- measured: faults -->", "<!-- end measured -->"


def own_mounts() -> None:
    """Goes on in a mount namespace of its own, so that no file system of a trial outlives this process, however it ends."""
    if harness.disks.can_mount() and os.environ.get(OWN) != str(os.getpid()):
        os.environ[OWN] = str(os.getpid())
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])


def main() -> int:
    """Runs the rounds that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs over all recipes (default: 20)")
    parser.add_argument("--trials", type=int, default=2, help="trials of every other fault (default: 2)")
    parser.add_argument("--recipes", type=int, default=len(harness.CASES), help="only so many recipes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="a page with a place for the table")
    options = parser.parse_args()
    own_mounts()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    mark = time.perf_counter()
    harness.preload()
    with TemporaryDirectory(prefix="ftkit-faults-") as folder:
        os.environ["FTKIT_CACHE"] = str(Path(folder) / "cache")
        try:
            rows = harness.run(
                Path(folder), kills=options.kills, trials=options.trials, seed=options.seed, cases=harness.CASES[: options.recipes]
            )
        finally:
            for child in psutil.Process().children():
                child.kill()
    text = harness.table(rows)
    print(text, f"{time.perf_counter() - mark:.0f} s", sep="\n")
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        options.write.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
