from __future__ import annotations

import subprocess
import sys

PARENT = """
import subprocess, sys
held = bytearray(b"x") * (512 * 2**20)
print(subprocess.run([sys.executable, "-c", sys.argv[1]], capture_output=True, text=True, check=True).stdout)
"""
CHILD = "from ftkit.run.machine import peak_resident_mib; held = bytearray(b'x') * (64 * 2**20); print(peak_resident_mib())"


def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT, CHILD], capture_output=True, text=True, check=True)
    assert 64 < float(done.stdout) < 400
