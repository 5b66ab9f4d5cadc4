"""`ftkit env`: what a bug report needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ftkit
from ftkit.cli.options import AsJson
from ftkit.cli.output import emit, print_facts, say

VARIABLES = (
    "ACCELERATE_USE_CPU", "CI", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "PYTHONHASHSEED",
    "TOKENIZERS_PARALLELISM", "TRANSFORMERS_OFFLINE",
)  # fmt: skip
"""Environment variables that change what a run does and hold nothing private."""


def env(as_json: AsJson = False) -> None:
    """Print versions and the machine, for a bug report."""
    report = environment()
    if as_json:
        emit(report)
        return
    revision = report["revision"]
    shown = f"{revision['commit']}{' with changes' if revision['dirty'] else ''}" if revision else "installed package"
    print_facts({"ftkit": ftkit.__version__, "revision": shown}, title="ftkit")
    print_facts({name: found or "not installed" for name, found in report["versions"].items()}, title="Versions")
    for line in report["untested"]:
        say(f"  {line}")
    if report["untested"]:
        say()
    machine = {
        **{name: value for name, value in report["machine"].items() if value is not None},
        "gpus": "; ".join(report["machine"]["gpus"]) or "none",
    }
    print_facts({name.replace("_", " "): value for name, value in machine.items()}, title="Machine")
    if report["variables"]:
        print_facts(report["variables"], title="Environment variables")


def environment() -> dict[str, Any]:
    """Versions, those among them that are untested, git revision of a clone, machine and environment variables, as JSON."""
    from ftkit.run.machine import describe_machine, git_revision, versions
    from ftkit.run.tested_versions import untested

    clone = Path(ftkit.__file__).parent.parent
    return {
        "ftkit": ftkit.__version__,
        "revision": git_revision(clone) if (clone / ".git").exists() else None,
        "versions": versions(),
        "untested": list(untested()),
        "machine": describe_machine(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
