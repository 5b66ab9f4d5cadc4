"""Files that are something else than their name or format says, told by their first bytes."""

from __future__ import annotations

from ftkit.errors import Problem

LONGEST = 32
"""Bytes that are looked at."""

_BEGINNINGS: dict[bytes, tuple[str, str]] = {
    b"version https://git-lfs.github": ("a Git LFS pointer and not the data", "Fetch the data: `git lfs pull`."),
    b"\x1f\x8b": ("a gzip file", "Give its name the ending .gz."),
    b"BZh91AY&SY": ("a bzip2 file", "Unpack it, or compress it with gzip."),
    b"\xfd7zXZ\0": ("an xz file", "Unpack it, or compress it with gzip."),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "Unpack it, or compress it with gzip."),
    b"PK\x03\x04": ("a zip archive or an Excel file", "Unpack it, or save the sheet as csv."),
    b"\xd0\xcf\x11\xe0": ("an old Office file", "Save the sheet as csv."),
    b"PAR1\x15": ("a Parquet file", "Set `format: parquet` for this source."),
    b"ARROW1\0\0": ("an Arrow file", "Set `format: arrow` for this source."),
    b"SQLite format 3\0": ("an SQLite database", "Export the table as csv."),
    b"%PDF-": ("a PDF", "Extract its text first."),
    b"\x89PNG\r\n": ("a PNG image", "Set `format: image` for this source."),
    b"\xff\xd8\xff": ("a JPEG image", "Set `format: image` for this source."),
}


def disguised(beginning: bytes, label: str) -> Problem | None:
    """What is wrong with a text or data file that begins like one of another kind; None if it does not.

    beginning: its first bytes. label: how messages name it.
    """
    for start, (what, hint) in _BEGINNINGS.items():
        if beginning.startswith(start):
            return Problem(message=f"is {what}: it begins with {beginning[:12]!r}", place=label, hint=hint)
    return None
