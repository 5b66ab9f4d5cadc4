"""JSON Lines: an object a line."""

from __future__ import annotations

import json
from typing import Any

from ftkit.data.problems import Problems, shorten
from ftkit.data.readers import json_syntax
from ftkit.data.readers.source_file import CHUNK_BYTES, CHUNK_ROWS, SourceFile, row_lines
from ftkit.data.table import Table
from ftkit.errors import Problem


def read(file: SourceFile) -> Table:
    """Rows of a JSON Lines file; blank lines are skipped. Raises DataError with every broken line (20 at most)."""
    problems = Problems()
    rows: list[dict[str, Any]] = []
    positions: list[int] = []
    size = 0
    with file.builder("line") as builder:
        for number, line in row_lines(file):
            if not line.strip():
                continue
            row = parse_line(file.label, number, line, problems)
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


def parse_line(label: str, number: int, line: str, problems: Problems) -> dict[str, Any] | None:
    """The row of a line, None if it is none; why is then among the problems. label: what messages call the source."""
    text = line.rstrip("\r\n")
    try:
        row = json_syntax.DECODER.decode(text)
        json_syntax.check_depth(row, text)
    except json_syntax.DuplicateKeyError as error:
        problems.add(Problem(message=error.message, place=f"{label}, line {number}", key=error.key, hint=error.hint))
        return None
    except json.JSONDecodeError as error:
        hint = _hint(line, number) or json_syntax.way_out(text, error)
        place = f"{label}:{number}:{error.colno}"
        problems.add(Problem(message=json_syntax.reason(text, error), place=place, hint=hint))
        return None
    except (ValueError, RecursionError) as error:
        # Besides bad syntax, a ValueError is a whole number of thousands of digits.
        what = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        hint = _hint(line, number) or "Correct or remove the line."
        problems.add(Problem(message=f"invalid JSON: {what}", place=f"{label}:{number}:1", hint=hint))
        return None
    if isinstance(row, dict):
        return row
    message = f"{shorten(row)} is not an object; each line of a JSON Lines file is one"
    hint = _hint(line, number) or 'Write it as {"column": value, ...}.'
    problems.add(Problem(message=message, place=f"{label}, line {number}", hint=hint))
    return None


def _hint(line: str, number: int) -> str:
    return "If the whole file is one JSON list, set `format: json`." if number == 1 and line.lstrip()[:1] in ("[", "{") else ""
