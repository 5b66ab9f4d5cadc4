"""Tries every fault on the recipes and counts what comes out otherwise than it must."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import disks, kills, numbers, spoiled, stops
from tests.faults.cases import CASES, Case
from tests.faults.trial import FAULTS, Bench

OF_KILLS = tuple(name for name, trial in FAULTS.items() if trial.__module__ == kills.__name__)
OF_MOUNTS = tuple(name for name in FAULTS if FAULTS[name] in (disks.full_disk, disks.read_only))
MODULES = (disks, kills, numbers, spoiled, stops)


@dataclass
class Row:
    """Of the table. trials, faults (some trials have several, some none), and what went wrong: recipe and words."""

    fault: str
    trials: int = 0
    faults: int = 0
    wrong: list[str] = field(default_factory=list)


def preload() -> None:
    """Imports what runs import, so that the processes made from this one have it."""
    import peft  # noqa: F401
    import torch
    import transformers

    import ftkit.run.train  # noqa: F401
    from tests.matrix.architectures import ARCHITECTURES, family_of
    from tests.tiny import tiny_config

    torch.set_num_threads(1)
    for architecture in ARCHITECTURES:
        config = tiny_config(family_of(architecture))
        assert type(config) in transformers.AutoModel._model_mapping
    for name in ("AutoTokenizer", "PreTrainedTokenizerFast", "AutoImageProcessor"):
        getattr(transformers, name)


def run(
    folder: Path, *, kills: int, trials: int, seed: int = 0, cases: Sequence[Case] = CASES, told: Callable[[str], None] = print
) -> list[Row]:
    """Rows of the table. kills: how many SIGKILLs over all cases; trials: of every other fault, each on one case after the other."""
    generator, rows = random.Random(seed), {name: Row(name) for name in FAULTS}
    names = [name for name in FAULTS if name not in OF_MOUNTS or disks.can_mount()]
    for place, case in enumerate(cases):
        bench = Bench(case, folder / str(place))
        for name in names:
            share = _share(kills // len(OF_KILLS) if name in OF_KILLS else trials, place, len(cases))
            while share > 0:
                outcome = FAULTS[name](bench, generator)
                rows[name].trials += 1
                rows[name].faults += outcome.count
                rows[name].wrong += [f"{case.name}: {text}" for text in outcome.wrong]
                for text in outcome.wrong:
                    told(f"wrong: {name}: {case.name}: {text}")
                share -= outcome.count if name in OF_KILLS else 1
        told(
            f"{case.name}: {sum(row.faults for row in rows.values())} faults, {sum(len(row.wrong) for row in rows.values())} wrong"
        )
        shutil.rmtree(bench.folder)
    return [rows[name] for name in names]


def _share(count: int, place: int, places: int) -> int:
    """How many of `count` fall on one of several places, as evenly as may be, beginning at the first."""
    return count // places + (place < count % places)


def table(rows: Iterable[Row]) -> str:
    """Markdown."""
    lines = ["| fault | trials | faults | lost or inexact |", "|---|--:|--:|--:|"]
    return "\n".join([*lines, *(f"| {row.fault} | {row.trials} | {row.faults} | {len(row.wrong)} |" for row in rows)])
