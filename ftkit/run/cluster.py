"""What a run in several processes is started with: how many, on which machines, and where those meet. Imports no torch."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ftkit.errors import Problem, RecipeError
from ftkit.recipe.reading import read_file

MOST = 1024
LONGEST_WAIT = 7 * 24 * 3600
COMMAND_LINE = "command line"
_WHOLE = {"nproc": (1, MOST), "nodes": (1, MOST), "node_rank": (0, MOST - 1), "rendezvous_timeout": (1, LONGEST_WAIT)}
KEYS = ("nproc", "nodes", "node_rank", "rendezvous", "rendezvous_timeout")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")
LONGEST_NAME, LONGEST_PART = 253, 63
"""Characters of a host name, and between its dots."""
_EXAMPLE = "an address of the machine with node rank 0 and a free port of it, such as 10.0.0.1:29500"


@dataclass(frozen=True)
class Cluster:
    """The processes of a run. nproc: of this machine; node_rank: of this machine, from 0.

    host, port: where the machine with node rank 0 is reached by all; empty on one machine.
    patience: seconds that a machine waits for the others.
    """

    nproc: int = 1
    nodes: int = 1
    node_rank: int = 0
    host: str = ""
    port: int = 0
    patience: int = 600

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        return self.nproc * self.nodes > 1


def cluster_of(file: Path | None, given: Mapping[str, Any]) -> Cluster:
    """What a launcher file and options say together. Raises RecipeError with every problem.

    given: by the keys of a launcher file, from the command line; None where not given. They win over the file.
    """
    values, places = _file_values(file) if file is not None else ({}, {})
    for key, value in given.items():
        if value is not None:
            values[key], places[key] = value, f"{COMMAND_LINE}: --{key.replace('_', '-')}"
    if problems := [problem for key in values if (problem := _wrong(key, values[key], places[key]))]:
        raise RecipeError(problems)
    _refuse_contradictions(values, places)
    host, port = _address(values["rendezvous"]) if "rendezvous" in values else ("", 0)
    whole = {name: values[name] for name in ("nproc", "nodes", "node_rank") if name in values}
    return Cluster(**whole, host=host, port=port, patience=values.get("rendezvous_timeout", Cluster.patience))


def _file_values(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and places by key."""
    document = read_file(file, "launcher")
    if not isinstance(document.value, dict):
        hint = f"Write keys of {', '.join(KEYS)}, such as `nproc: 8`"
        raise RecipeError(Problem(message="a launcher file is a mapping (key: value)", place=document.place(()), hint=hint))
    places = {key: document.place((key,)) for key in document.value}
    unknown = [_unknown(str(key), place) for key, place in places.items() if key not in KEYS]
    if unknown:
        raise RecipeError(unknown)
    return dict(document.value), places


def _unknown(key: str, place: str) -> Problem:
    near = get_close_matches(key, KEYS, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(KEYS)}"
    if key == "sharding":
        hint = "How the model is divided is part of the recipe: `train.sharding`"
    return Problem(message=f"unknown key {key!r}", place=place, hint=hint)


def _wrong(key: str, value: Any, place: str) -> Problem | None:
    name = "" if place.startswith(COMMAND_LINE) else key
    if key == "rendezvous":
        if isinstance(value, str) and _address(value)[0]:
            return None
        return Problem(message=f"{value!r} is not HOST:PORT", place=place, key=name, hint=f"Give {_EXAMPLE}")
    low, high = _WHOLE[key]
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return None
    return Problem(message=f"{value!r} is not a whole number from {low} to {high}", place=place, key=name)


def _address(text: str) -> tuple[str, int]:
    """Host and port; an empty host if the text is no HOST:PORT."""
    found = _ADDRESS.fullmatch(text)
    if not found or not 1 <= int(found["port"]) <= 65535:
        return "", 0
    if found["v6"]:
        try:
            ipaddress.IPv6Address(found["v6"])
        except ValueError:
            return "", 0
    elif len(found["name"]) > LONGEST_NAME or not all(0 < len(part) <= LONGEST_PART for part in found["name"].split(".")):
        return "", 0
    return found["v6"] or found["name"], int(found["port"])


def _refuse_contradictions(values: Mapping[str, Any], places: Mapping[str, str]) -> None:
    nodes, rank = values.get("nodes"), values.get("node_rank")
    if nodes is None:
        if idle := [key for key in ("node_rank", "rendezvous", "rendezvous_timeout") if key in values]:
            message = "is for several machines, and their number is not said"
            raise RecipeError(Problem(message=message, place=places[idle[0]], hint="Give --nodes, or leave it out"))
        return
    if rank is not None and rank >= nodes:
        message = f"node rank {rank} of {nodes} machines: they are numbered from 0 to {nodes - 1}"
        raise RecipeError(
            Problem(message=message, place=places["node_rank"], hint=f"Give each machine its own of 0 to {nodes - 1}")
        )
    if nodes > 1 and rank is None:
        message = f"{nodes} machines, and which of them this is, is not said"
        raise RecipeError(Problem(message=message, place=places["nodes"], hint=f"Give --node-rank, from 0 to {nodes - 1}"))
    if nodes > 1 and "rendezvous" not in values:
        message = f"{nodes} machines, and where they meet is not said"
        raise RecipeError(Problem(message=message, place=places["nodes"], hint=f"Give --rendezvous: {_EXAMPLE}"))
