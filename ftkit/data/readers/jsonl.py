"""JSON Lines: an object a line."""

from __future__ import annotations

import json
from typing import Any

from ftkit.data.problems import Problems, shorten
from ftkit.data.readers.source_file import CHUNK_BYTES, CHUNK_ROWS, SourceFile, text_lines
from ftkit.data.table import Table
from ftkit.errors import Problem


def read(file: SourceFile) -> Table:
    """Rows of a JSON Lines file; blank lines are skipped. Raises DataError with every broken line (20 at most)."""
    problems = Problems()
    rows: list[dict[str, Any]] = []
    positions: list[int] = []
    size = 0
    with file.builder("line") as builder:
        for number, line in text_lines(file):
            if not line.strip():
                continue
            row = _parsed(file, number, line, problems)
            if row is None:
                continue
            rows.append(row)
            positions.append(number)
            size += len(line)
            if len(rows) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                builder.add_rows(rows, positions)
                rows, positions, size = [], [], 0
        problems.raise_if_any()
        if rows:
            builder.add_rows(rows, positions)
        return builder.finish()


def _parsed(file: SourceFile, number: int, line: str, problems: Problems) -> dict[str, Any] | None:
    try:
        row = json.loads(line.rstrip("\r\n"))
    except (ValueError, RecursionError) as error:
        # Besides bad syntax, a ValueError is a whole number of thousands of digits.
        column = error.colno if isinstance(error, json.JSONDecodeError) else 1
        reason = getattr(error, "msg", "nested too deeply" if isinstance(error, RecursionError) else "a number is too long")
        problems.add(Problem(message=f"invalid JSON: {reason}", place=f"{file.label}:{number}:{column}", hint=_hint(line, number)))
        return None
    if isinstance(row, dict):
        return row
    message = f"{shorten(row)} is not an object; each line of a JSON Lines file is one"
    problems.add(Problem(message=message, place=f"{file.label}, line {number}", hint=_hint(line, number)))
    return None


def _hint(line: str, number: int) -> str:
    return "If the whole file is one JSON list, set `format: json`." if number == 1 and line.lstrip()[:1] in ("[", "{") else ""
