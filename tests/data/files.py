"""Source files for tests, and what reading them gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftkit.data.sources import read_source
from ftkit.data.table import Table
from ftkit.errors import DataError
from ftkit.recipe.schema import SourceSpec

ROWS = [{"text": "one", "label": "a"}, {"text": "two, or so", "label": "b"}, {"text": "", "label": "a"}]


def read(path: str, columns: set[str] | None = None, base: Path | None = None, **options: Any) -> Table:
    spec = SourceSpec(path=path, **options)
    return read_source(spec, base=base or Path.cwd(), columns=columns)


def failure(path: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value)


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
