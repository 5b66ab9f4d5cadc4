"""Plain text: a row a line (column `text`), or class folders (columns `text` or `image`, and `label`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftkit.data.building import TableBuilder
from ftkit.data.readers.source_file import CHUNK_BYTES, CHUNK_ROWS, SourceFile, decode, known_encoding, text_lines
from ftkit.data.table import Origin, Table
from ftkit.errors import DataError, Problem

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def read(file: SourceFile) -> Table:
    """A row for each line that is not blank, without its line end."""
    builder = file.builder("line")
    lines: list[str] = []
    positions: list[int] = []
    size = 0
    for number, line in text_lines(file):
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


def read_folder(file: SourceFile) -> Table:
    """A row for each file of a folder of class folders, sorted by path; the class folder's name is the label.

    Image files give a column `image`: {"bytes": the file, "path": its path below the folder}.
    """
    files = [path for folder in class_folders(file.path) for path in _files(folder)]
    if not files:
        raise DataError(
            Problem(
                message=f"a folder without class folders ({_contents(file.path)})",
                place=file.label,
                hint="Give a file or a glob such as `folder/*.jsonl`, or one folder of text files for each class.",
            )
        )
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if images and len(images) < len(files):
        other = next(path for path in files if path not in set(images))
        message = "class folders with images and other files"
        raise DataError(Problem(message=f"{message}: {images[0].name}, {other.name}", place=file.label, hint="Keep one kind."))
    labels = tuple(str(Path(file.label) / path.relative_to(file.path)) for path in files)
    origin = Origin(label=file.label, unit="file", weight=file.weight, files=labels)
    return _read_files(file, TableBuilder(origin, file.columns), files, "image" if images else "text")


def class_folders(folder: Path) -> list[Path]:
    """Folders inside a folder, sorted by name; hidden ones and Python's own aside."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _read_files(file: SourceFile, builder: TableBuilder, files: list[Path], column: str) -> Table:
    encoding = known_encoding(file.encoding)
    values: list[Any] = []
    first = size = 0
    for index, path in enumerate(files):
        data = path.read_bytes()
        name = path.relative_to(file.path)
        if column == "image":
            values.append({"bytes": data, "path": name.as_posix()})
        else:
            values.append(decode(file, data, encoding, str(Path(file.label) / name)))
        size += len(data)
        if size >= CHUNK_BYTES or len(values) >= CHUNK_ROWS or index == len(files) - 1:
            labels = [path.relative_to(file.path).parts[0] for path in files[first : index + 1]]
            _add(builder, {column: values, "label": labels}, range(first, index + 1))
            values, first, size = [], index + 1, 0
    return builder.finish()


def _add(builder: TableBuilder, columns: dict[str, list[Any]], positions: Any) -> None:
    kept = builder.note_columns(list(columns))
    builder.add_columns({name: columns[name] for name in kept}, positions)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f"it holds {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "it is empty"
