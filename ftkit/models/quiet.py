"""Keeps the libraries below ftkit from writing to the terminal: ftkit itself says what a user needs to know."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from ftkit.models.hub_kernels import keep_hub_kernels_out

# Read by the libraries when they are first imported; a value that the user has set stays.
_SETTINGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "BITSANDBYTES_NOWELCOME": "1",
    # transformers' GGUF reader draws its bar with plain tqdm, which no switch of transformers reaches.
    "TQDM_DISABLE": "1",
}
_MODULES = (r"transformers\.", r"peft\.", r"accelerate\.")
_LOGGERS = ("accelerate", "bitsandbytes", "huggingface_hub", "kernels", "peft")


def quiet_libraries() -> None:
    """Turns off progress bars, load reports and notices of transformers, peft and their companions; errors still show. Nor do they fetch
    code of the hub (see `hub_kernels`).

    Best called before they are imported; works afterwards too. A level set through TRANSFORMERS_VERBOSITY is kept.
    """
    chosen = "TRANSFORMERS_VERBOSITY" in os.environ
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    keep_hub_kernels_out()
    # What the libraries plan to change concerns whoever calls them, which is ftkit.
    for module in _MODULES:
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    # Marian's tokenizer recommends a package that it does not use any more.
    warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses", category=UserWarning)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        if not chosen:
            transformers_logging.set_verbosity_error()
