"""How many processes train together, and which one this is: what a launcher says of it in the environment. Imports no torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.errors import Problem, RecipeError

if TYPE_CHECKING:
    from ftkit.recipe.schema import TrainSpec

OTHER_SHARDING = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)
ANOTHER_HAS_ENDED = "another process of this run has ended"
HOW_TO_START = "Start it with `ftkit train RECIPE --nproc N`, or `torchrun --nproc_per_node N -m ftkit train RECIPE`"


@dataclass(frozen=True)
class World:
    """The processes of a run. rank: of this one, from 0; local_rank: on its machine; size: of all, on all machines."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        return self.size > 1


def launched_world() -> World:
    """What torchrun, `accelerate launch` or `ftkit train --nproc` say in the environment. Raises RecipeError if that makes no sense."""
    rank, local_rank, size = (_number(name, default) for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
    if not 0 <= rank < size:
        raise RecipeError(f"the environment says that this is process {rank} of {size} (RANK, WORLD_SIZE)", hint=HOW_TO_START)
    return World(rank=rank, local_rank=local_rank, size=size)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise RecipeError(f"the environment variable {name} is {text!r}, not a number", hint="Unset it, or use a launcher")
    return int(text)


def refuse_other_size(world: World, train: TrainSpec) -> None:
    """Raises RecipeError if other processes were started than the recipe or the launcher asked for."""
    expected = train.num_processes
    if train.sharding != "none" and not world.several:
        problem = Problem(message="one process has nobody to divide the model with", key="train.sharding", hint=HOW_TO_START)
        raise RecipeError(problem)
    if expected is not None and expected != world.size:
        message = f"{world.size} process{'es were' if world.several else ' was'} started, the recipe says {expected}"
        raise RecipeError(Problem(message=message, key="train.num_processes", hint=f"Start it with --nproc {expected}"))
    if named := [name for name in OTHER_SHARDING if os.environ.get(name, "").casefold() == "true"]:
        message = f"the launcher's configuration turns on sharding of its own ({named[0]})"
        raise RecipeError(message, hint="Turn it off there, and set `train.sharding: fsdp2` in the recipe")
    asked = 1 if world.several else _asked_of_accelerate(_parents_words())
    if asked > 1:
        message = f"`accelerate launch` was asked for {asked} processes and started one, as it does on the CPU"
        raise RecipeError(message, hint=HOW_TO_START.replace(" N", f" {asked}"))


def _parents_words() -> list[str]:
    """The command line of the process that started this one; none where it cannot be seen."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [os.fsdecode(word) for word in words if word]


def _asked_of_accelerate(words: list[str]) -> int:
    """Processes that a command line `accelerate launch ...` asks for; 1 for any other, and where it names none."""
    names = [Path(word).name for word in words]
    launches = "accelerate-launch" in names or "accelerate.commands.launch" in words
    if not launches and not ("launch" in words and any(name in ("accelerate", "accelerate_cli.py") for name in names)):
        return 1
    for number, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or "".join(words[number + 1 : number + 2])
            return int(value) if value.isdecimal() else 1
    return _asked_of_config(words)


def _asked_of_config(words: list[str]) -> int:
    """Processes that the launch's configuration file names, that of `--config_file` or the one that `accelerate config` wrote."""
    named = [value for word, value in pairwise(words) if word in ("--config_file", "--config-file")]
    if not named and "--cpu" in words:
        return 1
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(os.environ.get("HF_HOME") or Path(cache, "huggingface")).expanduser()
    try:
        text = Path(named[0] if named else home / "accelerate" / "default_config.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return 1
    found = re.search(r"""^\s*"?num_processes"?\s*:\s*(\d+)""", text, re.MULTILINE)
    return int(found[1]) if found else 1
