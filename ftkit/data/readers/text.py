"""Plain text: a row a line or a row a file (column `text`), class folders (columns `text` or `image`, and `label`), and images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftkit.data.building import TableBuilder
from ftkit.data.plain_files import read_plain
from ftkit.data.readers.source_file import CHUNK_BYTES, CHUNK_ROWS, SourceFile, decode, known_encodings, row_lines, text_lines
from ftkit.data.table import Origin, Table
from ftkit.errors import DataError, Problem

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

ROWS_SUFFIXES = {".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt"}

SPLIT_OF_FOLDER = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
"""Folders that hold a split, by their usual names. They are no classes."""


def read(file: SourceFile) -> Table:
    """A row for each line that is not blank, without its line end."""
    lines: list[str] = []
    positions: list[int] = []
    size = 0
    with file.builder("line") as builder:
        for number, line in row_lines(file):
            if not line.strip():
                continue
            lines.append(line.rstrip("\r\n"))
            positions.append(number)
            size += len(line)
            if len(lines) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                _add(builder, {"text": lines}, positions)
                lines, positions, size = [], [], 0
        if lines:
            _add(builder, {"text": lines}, positions)
        return builder.finish()


def read_document(file: SourceFile) -> Table:
    """One row: the whole file, its line ends as they are."""
    with file.builder("row") as builder:
        _add(builder, {"text": ["".join(line for _, line in text_lines(file))]}, [1])
        return builder.finish()


def read_folder(file: SourceFile) -> Table:
    """A row for each file of a folder of class folders, sorted by path; the class folder's name is the label.

    Image files give a column `image`: {"bytes": the file, "path": its path below the folder}. A folder of nothing but image files
    gives this column alone.
    """
    folders = _class_folders(file.path)
    names = [name for folder in folders for name in _files_below(file.path, folder)]
    _refuse_splits(file.label, folders, names)
    if not names and (loose := _loose_images(file.path)):
        return _read_files(file, TableBuilder(_folder_origin(file, loose), file.columns, file.meter), loose, "image", labeled=False)
    if not names:
        raise DataError(
            Problem(
                message=f"a folder without class folders ({_contents(file.path)})",
                place=file.label,
                hint=f"Give {_example(file)}, or one folder of text or image files for each class.",
            )
        )
    images = {name for name in names if is_image(name)}
    if images and len(images) < len(names):
        other = next(name for name in names if name not in images)
        message = f"class folders with images and other files: {min(images)}, {other}"
        raise DataError(Problem(message=message, place=file.label, hint="Keep one kind."))
    return _read_files(
        file, TableBuilder(_folder_origin(file, names), file.columns, file.meter), names, "image" if images else "text"
    )


def _refuse_splits(label: str, folders: Sequence[str], names: Sequence[str]) -> None:
    """Raises DataError for a folder of splits, whose names would be taken for those of classes."""
    splits = {SPLIT_OF_FOLDER.get(folder.lower(), ""): folder for folder in folders}
    if not names or "" in splits or not (len(folders) > 1 or all(name.count(os.sep) > 1 for name in names)):
        return
    keys = ", ".join(
        f"{split}: {os.path.join(label, splits[split])}" for split in dict.fromkeys(SPLIT_OF_FOLDER.values()) if split in splits
    )
    message = f"its folders are splits, not classes: {', '.join(folders)}"
    raise DataError(
        Problem(message=message, place=label, hint=f"Name each under `data`: {keys} (ftkit init: --data, --validation, --test)")
    )


def _example(file: SourceFile) -> str:
    """What to give in place of a folder that is none of classes: a file of it, where one looks like rows."""
    found = sorted(name for name in os.listdir(file.path) if os.path.splitext(name)[1].lower() in ROWS_SUFFIXES)
    shown = (
        next((name for name in found if SPLIT_OF_FOLDER.get(os.path.splitext(name)[0].lower()) == "train"), *found[:1])
        if found
        else ""
    )
    return f"a file, as `{os.path.join(file.label, shown)}`" if shown else "a file or a glob such as `folder/*.jsonl`"


def read_image(file: SourceFile) -> Table:
    """One row, one column `image`: {"bytes": the file, "path": as messages name it}."""
    origin = Origin(label=file.label, unit="file", weight=file.weight, files=(file.label,))
    with TableBuilder(origin, file.columns, file.meter) as builder:
        _add(builder, {"image": [{"bytes": _content(file.path, file.label), "path": file.label}]}, [0])
        return builder.finish()


def is_image(name: str) -> bool:
    """Whether a file's ending is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _folder_origin(file: SourceFile, names: Sequence[str]) -> Origin:
    files = tuple(os.path.join(file.label, name) for name in names)
    return Origin(label=file.label, unit="file", weight=file.weight, files=files)


def _loose_images(folder: Path) -> list[str]:
    """Names of the files of a folder, sorted, if all are images; hidden ones aside."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith(".") and (folder / name).is_file())
    return names if all(map(is_image, names)) else []


def _class_folders(folder: Path) -> list[str]:
    """Names of folders inside a folder, sorted; hidden ones and Python's own aside."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__")))


def _files_below(top: Path, folder: str) -> list[str]:
    """Paths, relative to `top`, of the files in one of its folders, sorted; hidden ones aside."""
    found: list[str] = []
    for where, _, names in os.walk(top / folder):
        inside = os.path.relpath(where, top)
        found += [os.path.join(inside, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _read_files(file: SourceFile, builder: TableBuilder, names: list[str], column: str, *, labeled: bool = True) -> Table:
    with builder:
        encodings = known_encodings(file.encoding)
        values: list[Any] = []
        first = size = 0
        for index, name in enumerate(names):
            data = _content(file.path / name, os.path.join(file.label, name))
            if column == "image":
                values.append({"bytes": data, "path": name})
            else:
                values.append(decode(data, encodings, os.path.join(file.label, name)))
            size += len(data)
            if size >= CHUNK_BYTES or len(values) >= CHUNK_ROWS or index == len(names) - 1:
                labels = [name.split(os.sep, 1)[0] for name in names[first : index + 1]]
                _add(builder, {column: values, **({"label": labels} if labeled else {})}, range(first, index + 1))
                values, first, size = [], index + 1, 0
        return builder.finish()


def _content(path: Path, place: str) -> bytes:
    """The bytes of a file that is one row. place: what messages call it. Raises DataError if it cannot be read."""
    try:
        return read_plain(path)
    except (OSError, ValueError) as error:
        gone = path.is_symlink() and not path.exists()
        reason = getattr(error, "strerror", None) or error
        message = f"is a link to {os.readlink(path)!r}, which leads nowhere" if gone else f"cannot be read: {reason}"
        raise DataError(Problem(message=message, place=place, hint="Restore the file, or remove it.")) from error


def _add(builder: TableBuilder, columns: dict[str, list[Any]], positions: Sequence[int]) -> None:
    kept = builder.note_columns(list(columns))
    builder.add_columns({name: columns[name] for name in kept}, positions)


def _contents(folder: Path) -> str:
    names = sorted(os.listdir(folder))
    return f"it holds {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "it is empty"
