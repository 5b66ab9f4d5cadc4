"""What was trained, as the verbs of `ftkit adapters` take it: a finished run, or the folder of an exported adapter. No torch here."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.data.problems import shorten
from ftkit.errors import ModelError, Problem, RunFolderError
from ftkit.files import parse_json, read_json, refuse_filled
from ftkit.methods.base import Capabilities, Method
from ftkit.models.facts import read_facts
from ftkit.recipe.load import parse_recipe
from ftkit.recipe.schema import ModelSpec, Recipe
from ftkit.registry import METHODS
from ftkit.run.folder import PLAN, TASK, finished_results, readable, recorded_base, run_around
from ftkit.run.lockfile import hash_model

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = ("adapter_model.bin", "pytorch_adapter.bin")
LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format."""

MOST_DIMENSIONS = 64

RUN, ADAPTER = "run", "adapter"


@dataclass(frozen=True)
class Trained:
    """A finished run (`kind` run) or an exported adapter (`kind` adapter).

    method: of the recipe, or PEFT's type in small letters. base: the name of the base model, as recorded.
    base_files: sha256 of its files by name; empty where nobody recorded them. recipe, results: of a run. config: of an adapter.
    """

    path: Path
    kind: str
    method: str
    base: str
    base_files: Mapping[str, str] = field(default_factory=dict)
    recipe: Recipe | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> Path:
        """The safetensors file with what was trained."""
        return self.path / str(self.results["weights"]) / "trainable.safetensors" if self.kind == RUN else self.path / WEIGHTS

    @property
    def run_recipe(self) -> Recipe:
        """The recipe of a run. Raises RunFolderError for an adapter."""
        if self.recipe is None:
            raise RunFolderError(Problem(message="is no run", place=str(self.path), hint="Give a run folder"))
        return self.recipe

    def method_of_run(self) -> Method:
        """The method of a run, with its options."""
        component = self.run_recipe.method
        return METHODS.get(component.name)(component.options)

    @property
    def capabilities(self) -> Capabilities:
        """What can be done with what a run trained."""
        return self.method_of_run().capabilities

    def learned(self) -> Any:
        """What the task of a run learned from its training rows (the label names)."""
        with readable(self.path / TASK):
            return read_json(self.path / TASK)["state"]

    def tensors(self) -> dict[str, Tensor]:
        """What was trained, under `plain_name`s. Raises RunFolderError or ModelError if it cannot be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from ftkit.training.checkpoint import open_checkpoint

        if self.kind == RUN:
            saved = open_checkpoint(self.weights.parent).tensors("trainable")
        else:
            try:
                saved = load_file(self.weights)
            except (OSError, SafetensorError) as error:
                raise ModelError(Problem(message=f"cannot be read: {error}", place=str(self.weights))) from error
        return {plain_name(name): tensor for name, tensor in saved.items()}


def read_trained(path: Path) -> Trained:
    """The run or adapter in a folder. Raises RunFolderError if it is neither, or an unfinished run."""
    if (path / PLAN).is_file():
        return _read_run(path)
    if (path / CONFIG).is_file():
        return _read_adapter(path)
    if not path.is_dir():
        raise RunFolderError(
            Problem(message="there is no such folder", place=str(path), hint="Find some with: ftkit adapters list .")
        )
    message = f"is neither a run folder nor an adapter (it has no {PLAN} and no {CONFIG})"
    raise RunFolderError(Problem(message=message, place=str(path), hint="Find some with: ftkit adapters list FOLDER"))


def read_trained_run(path: Path, why: str) -> Trained:
    """The run in a folder, or the one that an exported adapter lies in. why: what only a run knows. Raises RunFolderError."""
    found = read_trained(path)
    if found.kind == RUN:
        return found
    if (around := run_around(path)) is not None:
        return _read_run(around)
    raise RunFolderError(Problem(message=f"is an adapter without its run, and {why}", place=str(path), hint="Give the run folder"))


def _read_run(path: Path) -> Trained:
    results = finished_results(path)
    recipe = plan_recipe(path)
    return Trained(path, RUN, recipe.method.name, recipe.model.name, recorded_base(path), recipe, results)


def plan_recipe(run: Path) -> Recipe:
    """The complete recipe of a run."""
    with readable(run / PLAN):
        return parse_recipe((run / PLAN).read_text(encoding="utf-8"), str(run / PLAN), base=run)


_TYPES: dict[str, tuple[Any, str]] = {
    "peft_type": (str, "a name"),
    "base_model_name_or_path": ((str, type(None)), "a name"),
    "rank_pattern": ((dict, type(None)), "a mapping"),
    "alpha_pattern": ((dict, type(None)), "a mapping"),
}


def _read_adapter(path: Path) -> Trained:
    with readable(path / CONFIG):
        config = dict(read_json(path / CONFIG))
    if "peft_type" not in config:
        hint = f"Convert it: ftkit adapters convert {shlex.quote(str(path))} --to ftkit --output DIR" if "config" in config else ""
        whose = "is an adapter of AdapterHub's library" if hint else "is no adapter of PEFT (it has no `peft_type`)"
        raise RunFolderError(Problem(message=whose, place=str(path / CONFIG), hint=hint))
    for key, (types, expected) in _TYPES.items():
        if not isinstance(config.get(key), types):
            hint = "Restore the file from a copy, or export the adapter again"
            message = f"`{key}` is {shorten(config[key])}, expected {expected}"
            raise RunFolderError(Problem(message=message, place=str(path / CONFIG), hint=hint))
    if not (path / WEIGHTS).is_file():
        pickled = next((name for name in PICKLED if (path / name).is_file()), "")
        what = f"has its weights in {pickled}, which runs code when it is read" if pickled else f"has no {WEIGHTS}"
        raise RunFolderError(Problem(message=what, place=str(path), hint="Save it again with safe_serialization=True"))
    run = run_around(path)
    files = recorded_base(run) if run else {}
    method = str(config["peft_type"]).lower().replace("_", "-")
    return Trained(path, ADAPTER, method, str(config.get("base_model_name_or_path") or ""), files, config=config)


def plain_name(name: str) -> str:
    """A parameter's name without what PEFT puts around it, the same for a run and for its exported adapter."""
    name = name.removeprefix("base_model.model.").removeprefix("base_model.")
    segments = name.split(".")
    kept = [
        segment
        for index, segment in enumerate(segments)
        if segment not in ("modules_to_save", "default") or (segment == "default" and index == 0)
    ]
    return ".".join(kept)


# --- bases -------------------------------------------------------------------------------------------------------------


def same_base(one: Trained, other: Trained) -> tuple[bool | None, str]:
    """Whether two were trained on the same base, and how that is known; None where only the names tell, and agree."""
    if one.base_files and other.base_files:
        changed = sorted(
            name for name in {*one.base_files, *other.base_files} if one.base_files.get(name) != other.base_files.get(name)
        )
        return not changed, f"other files: {', '.join(changed)}" if changed else "the same files, by sha256"
    names = [Path(found.base).name for found in (one, other)]
    if names[0] != names[1]:
        return False, f"other names: {names[0]}, {names[1]}"
    return None, "the same name; the files were not recorded"


def refuse_other_bases(members: Sequence[Trained]) -> None:
    """Raises ModelError with each member whose base is not that of the first."""
    first, problems = members[0], []
    for member in members[1:]:
        same, how = same_base(first, member)
        if not same:
            message = f"it was trained on another base than {first.path}: {how}"
            problems.append(Problem(message=message, place=str(member.path), hint="Give adapters of one base"))
    if problems:
        raise ModelError(problems)


def refuse_output(output: Path, sources: Sequence[Path]) -> None:
    """Raises RunFolderError if a folder cannot be written: it holds files, or lies in what is read, where nobody would find it."""
    folder = output.resolve()
    for source in sources:
        if source.resolve() in folder.parents:
            message = f"lies inside {source}, which is read"
            raise RunFolderError(Problem(message=message, place=str(output), hint="Choose another folder with --output"))
    refuse_filled(output.absolute(), option="--output")


class BaseCheck:
    """Tells for many adapters whether they belong to one base model, whose files are hashed once.

    Raises ModelError if there is no such model on this machine.
    """

    def __init__(self, base: str) -> None:
        self.name = base
        self.files = hash_model(read_facts(ModelSpec(name=base)))
        if not self.files:
            raise ModelError(Problem(message=f"{base!r} is not on this machine", place="--base", hint="Give a model folder"))

    def matches(self, found: Trained) -> str:
        """`yes` or `no` by the sha256 of its files; `same name` or `no` where those were not recorded."""
        if found.base_files:
            return "yes" if all(self.files.get(name) == digest for name, digest in found.base_files.items()) else "no"
        return "same name" if Path(found.base).name == Path(self.name).name else "no"


# --- folders -----------------------------------------------------------------------------------------------------------


def find_folders(folder: Path) -> Iterator[Path]:
    """Run and adapter folders at or below a folder, sorted. What lies inside a run is the run's own."""
    if (folder / PLAN).is_file() or (folder / CONFIG).is_file():
        yield folder
        return
    with os.scandir(folder) as entries:
        inner = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."))
    for name in inner:
        yield from find_folders(folder / name)


def stored_parameters(file: Path) -> int:
    """Number of values in a safetensors file, from its header alone. Raises ValueError for what is no such file, or not a whole one."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if not 0 < size <= min(LONGEST_HEADER, file.stat().st_size - 8):
            raise ValueError("no safetensors file")
        header = parse_json(stream.read(size).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    values = sum(_values_in(entry) for entry in entries)
    if file.stat().st_size != 8 + size + max((_end_of(entry) for entry in entries), default=0):
        raise ValueError("cut short")
    return values


def _end_of(entry: Mapping[str, Any]) -> int:
    offsets = entry.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(place) is int and place >= 0 for place in offsets):
        raise ValueError("its header names no place of a tensor")
    return int(offsets[1])


def _values_in(entry: Any) -> int:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("its header names no shape of a tensor")
    return prod(shape)
