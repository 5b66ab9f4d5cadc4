"""Torch modules of the tuning methods that PEFT lacks. Importing this package makes PEFT know them all."""

from ftkit.models.hub_kernels import keep_hub_kernels_out

keep_hub_kernels_out()

from ftkit.tuners.registration import register_tuners  # noqa: E402  (imports PEFT)

register_tuners()
