#!/usr/bin/env python3
"""Fuzzes what reads files of others: recipes, data files, adapters, run folders, model folders. Nothing but FtkitError may come out.

    scripts/fuzz/fuzz.py --seconds 60                          every target in turn, sound files with changes (hypothesis)
    scripts/fuzz/fuzz.py --seconds 120 recipe csv              some targets
    scripts/fuzz/fuzz.py --seconds 60 --engine atheris recipe  bytes led by coverage (pip install atheris)

Prints how many inputs were tried and how many ftkit took. Ends with 1 and the smallest input found if something else came out;
inputs that end the process itself (atheris) are kept in the folder --crashes names.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[2]))

BATCH = 200
"""Inputs of a round of hypothesis."""

FEWEST = 10
"""Inputs that are tried however slow the machine is."""


def with_hypothesis(name: str, seconds: float, seed: int, fewest: int = FEWEST) -> Counter[str]:
    """Tries inputs for about so long, and so many at least. Raises what came out of the target, with the input in its notes."""
    from generators import strategies
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from targets import TARGETS

    counts: Counter[str] = Counter()
    strategy, target = strategies()[name], TARGETS[name]
    end = time.monotonic() + seconds

    def attempt(data: bytes) -> None:
        if time.monotonic() < end or failing or sum(counts.values()) < fewest:
            failing.append(data)
            counts["taken" if target(data) else "refused"] += 1
            failing.pop()

    options = settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )
    failing: list[bytes] = []
    while time.monotonic() < end or sum(counts.values()) < fewest:
        try:
            seeded(seed)(options(given(strategy)(attempt)))()
        except Exception as error:
            raise SystemExit(f"{name}: {type(error).__name__}: {error}\n  input: {failing[-1]!r}") from error
        seed += 1
    return counts


def with_atheris(name: str, seconds: int, seed: int, crashes: Path) -> Counter[str]:
    """The same by coverage, in a process of its own, which libFuzzer ends."""
    crashes.mkdir(parents=True, exist_ok=True)
    corpus = crashes / f"corpus-{name}"
    corpus.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--atheris-child", name, str(seconds), str(seed), f"{crashes}/", str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    found = re.search(r"Done (\d+) runs", done.stderr) or re.search(r"stat::number_of_executed_units:\s+(\d+)", done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"{name}: ended with {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
    covered = re.findall(r"cov: (\d+)", done.stderr)
    return Counter({"tried": int(found[1]), "places covered": int(covered[-1]) if covered else 0})


def atheris_child(name: str, seconds: str, seed: str, crashes: str, corpus: str) -> None:
    """What the process of its own does."""
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["ftkit", "yaml"]):
        from targets import TARGETS
    from generators import strategies
    from hypothesis import HealthCheck, given, settings
    from hypothesis import seed as seeded

    @seeded(int(seed))
    @settings(max_examples=50, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategies()[name])
    def plant(data: bytes) -> None:
        (Path(corpus) / f"{abs(hash(data)):x}").write_bytes(data)

    plant()  # libFuzzer begins with these
    options = [
        f"-max_total_time={seconds}",
        f"-seed={int(seed) + 1}",
        f"-artifact_prefix={crashes}",
        "-timeout=30",
        "-rss_limit_mb=8000",
    ]
    atheris.Setup([sys.argv[0], *options, "-max_len=4096", corpus], TARGETS[name])
    atheris.Fuzz()


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--atheris-child"]:
        atheris_child(*arguments[1:])
        return
    from targets import TARGETS

    parser = argparse.ArgumentParser(description="Fuzzes what reads files of others.")
    parser.add_argument("targets", nargs="*", help=f"of: {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("hypothesis", "atheris"), default="hypothesis")
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"), help="folder of inputs that end a process (atheris)")
    given = parser.parse_args(arguments)
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}; known: {', '.join(TARGETS)}")
    for name in given.targets or TARGETS:
        if given.engine == "atheris":
            counts = with_atheris(name, given.seconds, given.seed, given.crashes)
        else:
            counts = with_hypothesis(name, given.seconds, given.seed)
        print(f"{name:10} {sum(counts.values()) if given.engine == 'hypothesis' else counts['tried']:>8,} inputs: ", end="")
        print(", ".join(f"{count:,} {what}" for what, count in counts.items() if what != "tried"), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
