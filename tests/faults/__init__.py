"""Faults on purpose: kills, signals, full disks, damaged files, changed inputs, numbers that are none. `scripts/reliability.py` runs all."""
