"""From a source as the recipe names it to a table: finds the files, picks the reader of the format, draws a sample."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import numpy as np

from ftkit.data.building import NO_ROWS_HINT
from ftkit.data.progress import UNWATCHED, Meter, Watcher
from ftkit.data.readers import columnar, conll, delimited, hub, json_file, jsonl, text
from ftkit.data.readers.source_file import SourceFile
from ftkit.data.table import Table
from ftkit.errors import DataError, Problem
from ftkit.paths import PACKAGE_PREFIX, home_expanded, resolve_package
from ftkit.recipe.schema import SourceSpec

HUB_PREFIX = "hub:"

READERS: dict[str, Callable[[SourceFile], Table]] = {
    "jsonl": jsonl.read,
    "json": json_file.read,
    "squad": json_file.read_squad,
    "csv": delimited.read,
    "tsv": delimited.read,
    "conll": conll.read,
    "parquet": columnar.read_parquet,
    "arrow": columnar.read_arrow,
    "text": text.read,
    "document": text.read_document,
    "folder": text.read_folder,
    "image": text.read_image,
}

FORMAT_OF_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".conll": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".bio": "conll",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".txt": "text",
    ".text": "text",
    **dict.fromkeys(text.IMAGE_SUFFIXES, "image"),
}

FOLDER_FORMATS = {"folder", "arrow"}
APPLIES_TO = {
    "delimiter": {"csv", "tsv", "conll"},
    "encoding": {"jsonl", "json", "squad", "csv", "tsv", "conll", "text", "document", "folder"},
    "revision": {"hub"},
    "config": {"hub"},
    "split": {"hub", "arrow"},
}
DEFAULTS = {"delimiter": None, "encoding": "utf-8", "revision": None, "config": None, "split": None}


MAX_COUNT_DIGITS = 18
"""Digits of a row count after `#`."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a path stands for: local files, or the id of a hub data set; and how many rows to draw."""

    paths: tuple[Path, ...] = ()
    hub_id: str = ""
    sample: int | None = None


def read_sources(
    specs: Iterable[SourceSpec],
    *,
    split: str,
    base: Path,
    columns: Collection[str] | None = None,
    seed: int = 0,
    plain_text: str = "text",
    watch: Watcher = UNWATCHED,
) -> list[Table]:
    """A table for each source. Raises DataError. Arguments: see `read_source`."""
    return [
        read_source(spec, split=split, base=base, columns=columns, seed=seed, plain_text=plain_text, watch=watch) for spec in specs
    ]


def read_source(
    spec: SourceSpec,
    *,
    split: str = "train",
    base: Path,
    columns: Collection[str] | None = None,
    seed: int = 0,
    plain_text: str = "text",
    watch: Watcher = UNWATCHED,
    mixed: bool = False,
) -> Table:
    """The rows of one source.

    split: the split that hub data sets give unless the source names one. base: the recipe's folder, for relative paths.
    columns: names worth reading; None reads all. seed: of the draw of `path#500`.
    plain_text: the format that .txt files have unless the source names one. watch: is told how many rows are read.
    mixed: keep columns whose values are of several kinds, which are `conflicts` otherwise.
    Raises DataError if anything is missing, damaged or not as `spec` says.
    """
    found = locate(spec, base)
    wanted = None if columns is None else frozenset(columns)
    if found.hub_id:
        _refuse_other_options(spec, "hub", found.hub_id)
        part = spec.split or split
        file = SourceFile(path=Path(), label=f"{found.hub_id} ({part})", columns=wanted, weight=spec.weight, split=part)
        table = hub.read(file, found.hub_id, spec)
    else:
        meter = Meter(watch, [path.stat().st_size if path.is_file() else 0 for path in found.paths])
        read = partial(
            _read_file, spec=spec, columns=wanted, split=spec.split or split, plain_text=plain_text, meter=meter, mixed=mixed
        )
        table = Table.concatenate([read(path) for path in found.paths], conflicts="keep" if mixed else "note")
    return table if found.sample is None else _sample(table, found.sample, spec.path, seed)


def locate(spec: SourceSpec, base: Path) -> Found:
    """Finds what `spec.path` names. A path that exists as written is taken as written, whatever characters it holds.

    Raises DataError if there is nothing of that name.
    """
    plain, marked, count = spec.path.rpartition("#")
    attempts: list[tuple[str, int | None]] = [(spec.path, None)]
    if marked and count.isdecimal() and len(count) <= MAX_COUNT_DIGITS and plain:
        attempts.append((plain, int(count)))
    is_hub = spec.format == "hub" or spec.path.startswith(HUB_PREFIX)
    for path, sample in attempts if not is_hub else ():
        if paths := _existing(path, base):
            return Found(paths=tuple(paths), sample=sample)
    path, sample = attempts[-1]
    if is_hub and not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", path.removeprefix(HUB_PREFIX)):
        raise DataError(Problem(message=f"{path!r} names no hub data set", hint="A hub id reads `hub:owner/name`."))
    if is_hub:
        return Found(hub_id=path.removeprefix(HUB_PREFIX), sample=sample)
    if spec.format == "auto" and _looks_like_hub_id(path, base):
        return Found(hub_id=path, sample=sample)
    raise _missing(path, base)


def is_plain_text(path: str) -> bool:
    """Whether a path, a glob or `path#500` names files of plain text by their ending."""
    return FORMAT_OF_SUFFIX.get(_suffix(Path(re.sub(r"#[0-9]+$", "", path)))) == "text"


def shown(path: Path) -> str:
    """A path as messages show it: relative to the current folder where it lies in it."""
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)


def _existing(text: str, base: Path) -> list[Path]:
    if text.startswith(PACKAGE_PREFIX):
        return _in_package(text)
    for root in (Path.cwd(), base):
        path = root / home_expanded(text)
        # A name that the file system cannot even look up (too long, a NUL) is the name of nothing.
        with suppress(OSError, ValueError):
            if path.exists():
                return [path]
    for root in (Path.cwd(), base):
        if files := _matches(str(root / home_expanded(text))):
            return files
    return []


def _in_package(text: str) -> list[Path]:
    parts = text.split("/")
    fixed = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    for end in dict.fromkeys((len(parts), fixed)):
        try:
            path = resolve_package("/".join(parts[:end]))
        except FileNotFoundError:
            continue
        return [path] if end == len(parts) else _matches(str(path / "/".join(parts[end:])))
    return []


def _matches(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern):
        return []
    return [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if path.is_file()]


def _looks_like_hub_id(text: str, base: Path) -> bool:
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)", text)
    if match is None or _suffix(Path(text)) in FORMAT_OF_SUFFIX:
        return False
    return not any((root / match.group(1)).exists() for root in (Path.cwd(), base))


def _missing(text: str, base: Path) -> DataError:
    if text.startswith(PACKAGE_PREFIX):
        try:
            resolve_package(text.split("*")[0])
            reason = "no file matches"
        except FileNotFoundError as error:
            reason = str(error)
        return DataError(Problem(message=f"{text}: {reason}", hint="Install the package, or give a local path."))
    if glob.has_magic(text):
        return DataError(f"no file matches {text!r}", hint=f"Looked in {shown(Path.cwd())} and {shown(base)}.")
    for path in (root / home_expanded(text) for root in (Path.cwd(), base)):
        with suppress(OSError, ValueError):
            message = f"is a link to {os.readlink(path)!r}, which leads nowhere"
            return DataError(Problem(message=message, place=shown(path), hint="Restore that file, or give another path."))
    nearest = _nearest(Path(text), base)
    roots = dict.fromkeys(str((root / text).parent) for root in (Path.cwd(), base))
    hint = f"Did you mean {nearest!r}?" if nearest else f"Looked in {' and '.join(roots)}. Hub data sets: `hub:owner/name`."
    return DataError(f"no such file or folder: {text}", hint=hint)


def _nearest(path: Path, base: Path) -> str:
    for root in (Path.cwd(), base):
        folder = (root / path).parent
        if folder.is_dir() and (names := get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1, cutoff=0.5)):
            return str(path.with_name(names[0]))
    return ""


def _read_file(
    path: Path, *, spec: SourceSpec, columns: frozenset[str] | None, split: str, plain_text: str, meter: Meter, mixed: bool
) -> Table:
    kind = _format(path, spec)
    if kind == "text" and spec.format == "auto":
        kind = plain_text
    label = shown(path)
    _refuse_other_options(spec, kind, label)
    if path.is_dir() and kind not in FOLDER_FORMATS:
        hint = f"Give its files: {spec.path}/*{'.' + kind if spec.format != 'auto' else '.jsonl'}"
        raise DataError(Problem(message=f"is a folder, but `format: {kind}` reads files", place=label, hint=hint))
    if kind == "folder" and not path.is_dir():
        raise DataError(Problem(message="is a file, but `format: folder` reads a folder of class folders", place=label))
    if not path.is_dir() and not path.is_file():
        raise DataError(Problem(message="is no regular file", place=label, hint="Write it to a file first."))
    if path.is_file() and not path.stat().st_size:
        raise DataError(Problem(message="the file is empty", place=label, hint=NO_ROWS_HINT))
    file = SourceFile(
        path=path,
        label=label,
        columns=columns,
        weight=spec.weight,
        encoding=spec.encoding,
        delimiter=spec.delimiter or ("\t" if kind == "tsv" else None),
        split=split,
        meter=meter,
        mixed=mixed,
    )
    try:
        return READERS[kind](file)
    except OSError as error:
        raise DataError(Problem(message=f"cannot be read: {error.strerror or error}", place=label)) from error


def _format(path: Path, spec: SourceSpec) -> str:
    if spec.format != "auto":
        return spec.format
    if path.is_dir():
        return "arrow" if columnar.is_saved_dataset(path) else "folder"
    suffix = _suffix(path)
    if suffix not in FORMAT_OF_SUFFIX:
        known = ", ".join(READERS)
        message = f"unknown file ending {suffix!r}" if suffix else "the file has no ending that tells its format"
        raise DataError(Problem(message=message, place=shown(path), hint=f"Say `format:` for this source, one of: {known}."))
    return FORMAT_OF_SUFFIX[suffix]


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _refuse_other_options(spec: SourceSpec, kind: str, label: str) -> None:
    for key, default in DEFAULTS.items():
        if getattr(spec, key) != default and kind not in APPLIES_TO[key]:
            message = f"`{key}` has no meaning for format {kind}"
            raise DataError(Problem(message=message, place=label, key=key, hint=f"Remove `{key}` from this source."))


def _sample(table: Table, count: int, path: str, seed: int) -> Table:
    if not 1 <= count <= len(table):
        message = f"cannot draw {count} rows: the source has {len(table)}"
        raise DataError(Problem(message=message, place=path, hint=f"Write a number from 1 to {len(table)} after `#`."))
    drawn = np.random.Generator(np.random.PCG64([seed, count])).choice(len(table), size=count, replace=False)
    return table.select(np.sort(drawn))
