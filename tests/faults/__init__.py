"""Faults on purpose: kills, signals, full disks, damaged files, changed inputs. `scripts/reliability.py` tries them all."""
