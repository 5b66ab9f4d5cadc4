"""This machine and the versions on it, for lock files and bug reports. Imports no torch."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

PACKAGES = (
    "ftkit", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "bitsandbytes", "evaluate",
    "scikit-learn", "numpy", "pyarrow", "pydantic",
)  # fmt: skip


def versions() -> dict[str, str | None]:
    """Version of Python and of each package that shapes results; None where it is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe_machine() -> dict[str, Any]:
    """Operating system, processor, cores, threads of a torch that is loaded (else None), memory and GPUs."""
    import psutil

    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads() if (torch := sys.modules.get("torch")) else None,
        "memory_mib": psutil.virtual_memory().total // 2**20,
        "gpus": gpus(),
    }


def peak_resident_mib() -> float:
    """Largest resident memory of this process, in MiB."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    # On Linux ru_maxrss begins with the peak of the process that started this one, a notebook's or a test suite's.
    peak = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    if peak is not None:
        return int(peak) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpus() -> list[str]:
    """Names of NVIDIA GPUs, by nvidia-smi; empty where there are none or the tool is missing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    asked = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = _output(asked)
    return [line.strip() for line in answer.splitlines() if line.strip()] if answer else []


def has_gpu() -> bool:
    """Whether a GPU seems to be here, without asking torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or visible in ("", "-1"):
        return False
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() or platform.system() == "Darwin"


def git_revision(folder: Path) -> dict[str, Any] | None:
    """Commit and dirty flag (None where it cannot be told) of the git checkout that holds `folder`, None outside one.

    The checkout may be somebody else's: no program that its own configuration names is started, nothing is fetched or written.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    own = _git(folder, "config", "--show-scope", "--name-only", "--includes", "--null", "--list").split("\0")
    scopes = list(zip(own[::2], own[1::2], strict=False))
    if not scopes:
        return {"commit": commit.strip(), "dirty": None}
    filters = {name.rpartition(".")[0] for scope, name in scopes if scope in ("local", "worktree") and name.startswith("filter.")}
    off = {f"{name}.{setting}": "" for name in filters for setting in ("clean", "smudge", "process")}
    off |= {f"{name}.required": "false" for name in filters}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all", settings=off)
    return {"commit": commit.strip(), "dirty": bool(changed)}


def _git(folder: Path, *arguments: str, settings: Mapping[str, str] = MappingProxyType({})) -> str:
    # Through the environment: a name may hold an equals sign, at which `-c` would break off.
    given = {"core.fsmonitor": "false", "safe.bareRepository": "explicit", **settings}
    before = os.environ.get("GIT_CONFIG_COUNT", "")
    first = int(before) if before.isdecimal() else 0
    environment = {**os.environ, "GIT_CONFIG_COUNT": str(first + len(given))}
    for number, (name, value) in enumerate(given.items(), first):
        environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    # Without a protocol nothing that a partial clone lacks is fetched, by whatever program its configuration names.
    environment |= {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}
    return _output(["git", "--no-optional-locks", "-C", str(folder), *arguments], environment)


def _output(command: list[str], environment: dict[str, str] | None = None) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
