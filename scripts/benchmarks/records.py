"""What the benchmark scripts share: results kept line by line, child processes, and the marked places in a document.

Imports no torch, so that a script that only waits takes no memory from what it measures.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ftkit
from ftkit.files import json_text, write_text
from ftkit.run.machine import describe_machine, versions

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
SHOWN_PACKAGES = ("python", "torch", "transformers", "peft", "accelerate", "ftkit")
UNMEASURED = ("cli", "report")
"""Parts of ftkit that no measurement runs through."""
ERROR_LINES = 15


class Records:
    """Finished measurements, one JSON object a line, so that a run that is killed keeps what it has.

    A measurement is found again by `key_of` all that could change it.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        self._found = {record["key"]: record for record in self._read()}

    def _read(self) -> list[dict[str, Any]]:
        if not self._path.is_file():
            return []
        records = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                # Only the line that was being written when the process was killed; it is measured again.
                continue
        return records

    def get(self, key: str) -> dict[str, Any] | None:
        """The measurement with this key, None if it was not finished."""
        return self._found.get(key)

    def add(self, record: dict[str, Any]) -> None:
        """Keeps a measurement, made durable before this returns."""
        with self._path.open("a+b") as stream:
            stream.write(_missing_newline(self._path) + (json_text(record) + "\n").encode())
            stream.flush()
            os.fsync(stream.fileno())
        self._found[record["key"]] = record


def _missing_newline(path: Path) -> bytes:
    content = path.read_bytes()
    return b"\n" if content and not content.endswith(b"\n") else b""


def key_of(**settings: Any) -> str:
    """A hash of everything that a measurement depends on, but the contents of data and model files (`--fresh` is for those)."""
    everything = {**settings, "versions": versions(), "processor": describe_machine()["processor"], "code": _code_hash()}
    return hashlib.sha256(json_text(everything).encode()).hexdigest()[:16]


@cache
def _code_hash() -> str:
    """A hash of the code that measurements run through: a table never mixes figures of two states of it."""
    package = Path(ftkit.__file__).parent
    return files_hash([path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in UNMEASURED])


def files_hash(files: Iterable[Path]) -> str:
    """A hash of what is in these files."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def child_environment(threads: int) -> dict[str, str]:
    """The environment of a child process that computes with so many threads."""
    count = str(threads)
    return {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "CI": "1"}


def run_child(arguments: Sequence[str], threads: int, *, accepted: Sequence[int] = (0,)) -> None:
    """Runs this Python with these arguments. Ends the script with the last lines of what it wrote if it fails."""
    done = subprocess.run([sys.executable, *arguments], env=child_environment(threads), capture_output=True, text=True, check=False)
    if done.returncode not in accepted:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-ERROR_LINES:])
        sys.exit(f"a run ended with exit code {done.returncode}:\n{tail}")


def machine_line(threads: int) -> str:
    """The machine and the versions in one sentence."""
    machine, found = describe_machine(), versions()
    flags = _cpu_flags()
    parts = [machine["processor"], f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}", *machine["gpus"]]
    processor = ", ".join(parts) + (f" ({', '.join(flags)})" if flags else "")
    packages = ", ".join(f"{name} {found[name]}" for name in SHOWN_PACKAGES)
    return f"Machine: {processor}; {threads} thread{'s' if threads != 1 else ''}. Versions: {packages}."


def _cpu_flags() -> list[str]:
    info = Path("/proc/cpuinfo")
    text = info.read_text(errors="replace") if info.is_file() else ""
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return [flag for flag in CPU_FLAGS if flag in line.split()]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is aligned to the right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def check_place(document: Path, name: str) -> None:
    """Ends the script if `document` has no place of this name: better before hours of measuring than after."""
    text = document.read_text(encoding="utf-8") if document.is_file() else ""
    begin, end = _marks(name)
    if not 0 <= text.find(begin) < text.find(end):
        sys.exit(f"{document} has no place for these results. Put these two lines where they belong:\n{begin}\n{end}")


def fill_place(document: Path, name: str, content: str) -> None:
    """Puts `content` between the marks of `name`, in place of what stood there."""
    begin, end = _marks(name)
    before, _, rest = document.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    write_text(document, f"{before}{begin}\n{content.strip()}\n{end}{after}")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- results:{name} -->", f"<!-- end:{name} -->"


def shell_line(script: str, words: Sequence[str]) -> str:
    """The command that makes a table, as a reader would type it in the clone."""
    return shlex.join(["python", f"scripts/benchmarks/{script}", *words])
