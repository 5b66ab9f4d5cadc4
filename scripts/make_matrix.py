#!/usr/bin/env python3
"""Writes docs/matrix.md (and docs/matrix.json, from which it is made): which method works with which task on which architecture.

    scripts/make_matrix.py                 runs every cell: a fraction of a second each
    scripts/make_matrix.py lora bitfit     runs the cells of these methods and keeps the others as published
    scripts/make_matrix.py --check         runs every cell and writes nothing; exits with 1 if something differs

A cell that neither works nor is refused is printed with what happened; its method's rows stay as they were, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from ftkit.registry import METHODS  # noqa: E402
from ftkit.run.machine import versions  # noqa: E402
from tests.matrix.cell import Cell, outcome  # noqa: E402
from tests.matrix.grid import PUBLISHED, Outcomes, find, published, to_json  # noqa: E402
from tests.matrix.page import page  # noqa: E402

LIBRARIES = ("torch", "transformers", "peft")


def watched(folder: Path, failed: list[Cell]) -> Callable[[Cell], str]:
    """`outcome`, shown on the terminal; what a cell raises is printed and the cell added to `failed`."""

    def run(cell: Cell) -> str:
        try:
            text = outcome(cell, folder)
        except Exception:
            traceback.print_exc()
            failed.append(cell)
            text = "failed"
        print(f"{cell}: {text}", flush=True)
        return text

    return run


def found_now(methods: Sequence[str]) -> tuple[Outcomes, list[Cell]]:
    """Outcomes of all cells of these methods, and the cells that failed."""
    import torch

    torch.set_num_threads(1)
    failed: list[Cell] = []
    with TemporaryDirectory(prefix="ftkit-matrix-") as name:
        os.environ["FTKIT_CACHE"] = str(Path(name) / "cache")
        os.chdir(name)
        found = find(methods, watched(Path(name), failed))
        os.chdir(ROOT)
    return found, failed


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Write docs/matrix.md.")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="only these; default: all")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something differs")
    given = parser.parse_args(arguments)
    if unknown := set(given.methods) - set(METHODS.names()):
        parser.error(f"no such method: {', '.join(sorted(unknown))}")
    methods = given.methods or METHODS.names()
    found, failed = found_now(methods)
    before = published() if PUBLISHED.is_file() else {}
    if given.check:
        asked = {cell: text for cell, text in before.items() if cell.method in methods or not given.methods}
        changed = [cell for cell in {**asked, **found} if asked.get(cell) != found.get(cell)]
        print("\n".join(f"differs: {cell}: published {asked.get(cell)!r}, found {found.get(cell)!r}" for cell in changed))
        return 1 if changed else 0
    sound = set(methods) - {cell.method for cell in failed}
    kept = {cell: text for cell, text in before.items() if cell.method not in sound and cell.method in METHODS.names()}
    write({**kept, **{cell: text for cell, text in found.items() if cell.method in sound}})
    if failed:
        print(f"\n{len(failed)} cells neither work nor are refused: {'; '.join(map(str, failed))}")
    return 1 if failed else 0


def write(found: Outcomes) -> None:
    """Writes both files."""
    used = {name: str(version) for name, version in versions().items() if name in LIBRARIES}
    PUBLISHED.write_text(json.dumps({"versions": used, "outcomes": to_json(found)}, indent=1) + "\n", encoding="utf-8")
    PUBLISHED.with_suffix(".md").write_text(page(found, used), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
