#!/usr/bin/env python3
"""Trains on two simulated machines (network namespaces of Linux, joined by a cable of their own) and breaks them in every way.

    sudo .venv/bin/python scripts/two_nodes.py [--keep FOLDER]

A tiny model trains with `ftkit train --nodes 2`. Each trial kills something or cuts the cable, sees how the other machine ends, and
continues the run; then steps and weights are compared with those of the run that nothing happened to. Needs root and `ip` (iproute2);
ends with 2 where they are missing, with 1 if a trial came out otherwise than expected, else with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = 29500
SECONDS_TO_END = 30.0
"""More than a machine may take to end after the other one was killed."""
SECONDS_AFTER_A_CUT = 100.0
SECONDS_TO_TRAIN = 600.0
KILLED_AT_STEP = 45
STEPS = 240
CLOSE = 1e-5
RECIPE = f"""
model: model
task: text-classification
data: {{train: train.jsonl, validation: validation.jsonl}}
method: {{name: lora, rank: 4}}
train: {{max_steps: {STEPS}, batch_size: 8, learning_rate: 1e-3, evaluate_every: {{steps: 120}}, checkpoint_every: {{steps: 20}}}}
"""


@dataclass
class Machines:
    """Two namespaces with a cable between them, and a folder that both see, as machines see a shared file system."""

    folder: Path
    names: tuple[str, str] = field(default_factory=lambda: (f"ftkit-{os.getpid()}-0", f"ftkit-{os.getpid()}-1"))

    def set_up(self) -> None:
        ends = [f"v{os.getpid()}-{number}" for number in range(2)]
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "netns", self.names[0], "type", "veth", "peer", "name", ends[1], "netns", self.names[1])
        for name, end, address in zip(self.names, ends, ADDRESSES, strict=True):
            ip("-n", name, "link", "set", end, "name", "cable")
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")

    def take_down(self) -> None:
        for number, name in enumerate(self.names):
            with suppress(subprocess.CalledProcessError):
                self.kill(number)
                ip("netns", "delete", name)

    def kill(self, number: int) -> None:
        """Kills every process of a machine at once."""
        for process in ip("netns", "pids", self.names[number]).split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)

    def cable(self, state: str) -> None:
        for name in self.names:
            ip("-n", name, "link", "set", "cable", state)

    def start(self, number: int, output: str, *more: str) -> subprocess.Popen[str]:
        """`ftkit train` on one of them."""
        where = ["--nodes", "2", "--node-rank", str(number), "--rendezvous", f"{ADDRESSES[0]}:{PORT}"]
        command = ["ip", "netns", "exec", self.names[number], *ftkit(self.folder, output, *where, *more)]
        return begin(command, self.folder)


@dataclass(frozen=True)
class Ended:
    """How a machine ended: its exit code, what it said, and seconds since something was done to the other one."""

    code: int
    said: str
    seconds: float


@dataclass
class Table:
    rows: list[tuple[str, str, str, bool]] = field(default_factory=list)

    def add(self, trial: str, expected: str, found: str, held: bool) -> None:
        self.rows.append((trial, expected, found, held))
        print(f"{'ok  ' if held else 'NOT '} {trial}: {found}", flush=True)

    def print(self) -> None:
        print("\n| trial | expected | found |\n|---|---|---|")
        for trial, expected, found, held in self.rows:
            print(f"| {trial} | {expected} | {found if held else f'**{found}**'} |")


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def ftkit(folder: Path, output: str, *more: str) -> list[str]:
    words = ["train", str(folder / "recipe.yaml"), "--output", str(folder / output), "--quiet", *more]
    return [sys.executable, "-m", "ftkit", *words]


def begin(command: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    own = {
        "PYTHONPATH": path,
        "FTKIT_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "CI": "1",
    }
    environment = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
    return subprocess.Popen(
        command, env={**environment, **own}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str], since: float, limit: float) -> Ended:
    try:
        _, said = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return Ended(-1, f"still running after {limit:.0f} s", time.monotonic() - since)
    return Ended(process.returncode, said, time.monotonic() - since)


def metrics(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def distance(one: Path, other: Path) -> tuple[float, float]:
    """Largest differences between two runs: of the losses of steps, and of trained weights. Infinite if they have not the same steps."""
    from safetensors.numpy import load_file

    lines, others = metrics(one), metrics(other)
    if [line["step"] for line in lines] != [line["step"] for line in others]:
        return float("inf"), float("inf")
    losses = max(abs(line["loss"] - same["loss"]) for line, same in zip(lines, others, strict=True) if "loss" in line)
    first, second = (load_file(run / results(run)["weights"] / "trainable.safetensors") for run in (one, other))
    return losses, max(float(abs(first[name] - second[name]).max()) for name in first)


def prepare(folder: Path) -> None:
    sys.path.insert(0, str(ROOT))
    from tests.conftest import write_rows
    from tests.tiny import save_tiny

    # Each process draws its own dropout; without it runs in other numbers of processes can be compared.
    save_tiny(folder / "model", "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    write_rows(folder / "train.jsonl", 96, 0)
    write_rows(folder / "validation.jsonl", 15, 1)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def train_on_both(machines: Machines, output: str, *more: str) -> list[Ended]:
    since = time.monotonic()
    # The one that holds the rendezvous comes last: the other one has to wait for it.
    started = [machines.start(number, output, *more) for number in (1, 0)]
    return [ended(process, since, SECONDS_TO_TRAIN) for process in reversed(started)]


def same_as_one(machines: Machines, table: Table) -> None:
    alone = ended(begin(ftkit(machines.folder, "one"), machines.folder), time.monotonic(), SECONDS_TO_TRAIN)
    both = train_on_both(machines, "straight")
    codes = [end.code for end in (alone, *both)]
    if codes != [0, 0, 0]:
        table.add("two machines train", "exit codes 0, 0, 0", f"{codes}: {both[0].said} {both[1].said}", False)
        return
    size = results(machines.folder / "straight")["world_size"]
    losses, weights = distance(machines.folder / "one", machines.folder / "straight")
    found = f"{size} processes, losses within {losses:.1e}, weights within {weights:.1e}"
    expected = f"2 processes, losses and weights of one process within {CLOSE:g}"
    table.add("two machines train", expected, found, size == 2 and max(losses, weights) <= CLOSE)


def broken(machines: Machines, output: str, what: Callable[[list[subprocess.Popen[str]]], None], limit: float) -> list[Ended]:
    """Starts both, does something in the middle, and returns how both end."""
    started = [machines.start(number, output) for number in range(2)]
    until = time.monotonic() + SECONDS_TO_TRAIN
    while len(metrics(machines.folder / output)) < KILLED_AT_STEP and time.monotonic() < until:
        if any(process.poll() is not None for process in started):
            break
        time.sleep(0.05)
    since = time.monotonic()
    what(started)
    return [ended(process, since, limit) for process in started]


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    # `ip netns exec` becomes the command that it is given.
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text(encoding="ascii")
    return [int(word) for word in children.split()]


def trial(
    machines: Machines,
    table: Table,
    name: str,
    what: Callable[[list[subprocess.Popen[str]]], None],
    *,
    left: Sequence[int],
    code: int,
    says: str,
    limit: float = SECONDS_TO_END,
    on_one: bool = False,
    mend: Callable[[], None] = lambda: None,
) -> None:
    """left: the machines that were not touched. says: part of what each of these must say."""
    output = name.replace(" ", "-")
    ends = broken(machines, output, what, limit)
    step = len(metrics(machines.folder / output))
    for number in left:
        end = ends[number]
        expected = f"node {number} ends within {limit:.0f} s with {code}: {says}"
        held = end.code == code and says in end.said and end.seconds <= limit and 0 < step < STEPS
        found = f"after {end.seconds:.1f} s with {end.code}, at step {step}" + ("" if held else f": {end.said[-600:]}")
        table.add(name, expected, found, held)
    for number in range(2):
        with suppress(subprocess.CalledProcessError):
            machines.kill(number)
    mend()
    if on_one:
        again = [ended(begin(ftkit(machines.folder, output, "--resume"), machines.folder), time.monotonic(), SECONDS_TO_TRAIN)]
    else:
        again = train_on_both(machines, output, "--resume")
    if any(end.code for end in again):
        table.add(f"{name}, resumed", "exit code 0", " ".join(f"{end.code}: {end.said[-600:]}" for end in again), False)
        return
    losses, weights = distance(machines.folder / "straight", machines.folder / output)
    bound, words = (CLOSE, f"within {CLOSE:g}") if on_one else (0.0, "bit by bit")
    where = "on one machine" if on_one else "on both"
    found = f"losses within {losses:.1e}, weights within {weights:.1e}"
    table.add(f"{name}, resumed {where}", f"the undisturbed run {words}", found, max(losses, weights) <= bound)


def nobody_comes(machines: Machines, table: Table) -> None:
    for number in range(2):
        waits = machines.start(number, "never", "--rendezvous-timeout", "5")
        end = ended(waits, time.monotonic(), 90)
        held = end.code == 2 and end.said.count("error:") == 1 and "within 5 s" in end.said
        found = f"{end.code}: {' '.join(end.said.split())[:160]}"
        table.add(f"node {number} alone", "2 after 5 s, one message", found, held)


def all_trials(machines: Machines, table: Table) -> None:
    nobody_comes(machines, table)
    same_as_one(machines, table)
    if not all(held for *_, held in table.rows):
        return

    def a_worker(started: list[subprocess.Popen[str]]) -> None:
        os.kill(workers(started[1])[0], signal.SIGKILL)

    trial(machines, table, "a process of node 1 killed", a_worker, left=[0, 1], code=1, says="process 1 was ended by SIGKILL")
    trial(
        machines, table, "launcher of node 1 killed", lambda started: started[1].kill(),
        left=[0], code=143, says="node rank 1 ended without a word", on_one=True,
    )  # fmt: skip
    for number in (1, 0):
        trial(
            machines, table, f"node {number} killed", lambda _, number=number: machines.kill(number),  # type: ignore[misc]
            left=[1 - number], code=1, says=f"node rank {number} ended without a word",
        )  # fmt: skip
    trial(
        machines, table, "cable cut", lambda _: machines.cable("down"), left=[0, 1], code=1, says="ended without a word",
        limit=SECONDS_AFTER_A_CUT, mend=lambda: machines.cable("up"),
    )  # fmt: skip


@contextmanager
def place(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="ftkit-two-nodes-") as name:
        yield Path(name)


def end_by_signal(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="a new folder for model, data and runs (default: a temporary one)"
    )
    given = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print("error: simulating machines needs root and the command `ip` (package iproute2)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, end_by_signal)
    table = Table()
    with place(given.keep) as folder:
        prepare(folder)
        machines = Machines(folder)
        try:
            machines.set_up()
        except subprocess.CalledProcessError as error:
            machines.take_down()
            print(f"error: this system lets nobody make network namespaces: {error.stderr.strip()}", file=sys.stderr)
            return 2
        try:
            all_trials(machines, table)
        finally:
            machines.take_down()
    table.print()
    return 0 if all(held for *_, held in table.rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
