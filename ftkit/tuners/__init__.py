"""Torch modules of the tuning methods that PEFT lacks. Importing this package makes PEFT know them all."""

from ftkit.tuners.registration import register_tuners

register_tuners()
