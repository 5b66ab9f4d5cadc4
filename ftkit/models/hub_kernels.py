"""Keeps native code of the hub out: packages below ftkit fetch it through `kernels`, where that is installed, without being asked.

bitsandbytes does so when it is imported, on CPUs with AVX512-BF16, and PEFT imports it for any model; transformers does so for some
architectures, and for whatever attention a config.json names.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SETTING = "USE_HUB_KERNELS"
"""transformers' own. Who sets it to a yes wants kernels of the hub, and gets them."""

_PACKAGE = "kernels"


def keep_hub_kernels_out() -> None:
    """From now on `kernels` looks as if it were not installed, unless the environment asks for it.

    Where this process has imported it already, the program around ftkit uses it: that stays, and only bitsandbytes goes without.
    """
    if os.environ.setdefault(SETTING, "NO").upper() in ("1", "ON", "YES", "TRUE"):
        return
    # It warns that it could not fetch what it is not to fetch.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if sys.modules.get(_PACKAGE) is None:
        sys.modules[_PACKAGE] = None  # type: ignore[assignment]
    elif "bitsandbytes" not in sys.modules:
        with _hidden(), suppress(Exception):  # whatever fails here fails again for whoever needs it
            import bitsandbytes  # noqa: F401


@contextmanager
def _hidden() -> Iterator[None]:
    module = sys.modules[_PACKAGE]
    sys.modules[_PACKAGE] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules[_PACKAGE] = module
