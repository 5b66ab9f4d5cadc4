#!/usr/bin/env python3
"""Prints a constraints file of the oldest versions that pyproject.toml admits: what `scripts/test-oldest` installs.

scripts/lowest.py [EXTRA ...] > lowest.txt
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)\s*(?:>=|==)\s*(?P<version>[0-9][0-9A-Za-z.]*)")


def requirements(text: str, extras: Sequence[str] = ()) -> list[str]:
    """The requirements of a pyproject.toml and of some of its extras. Read without tomllib, which Python 3.10 lacks."""
    lists = {
        name: re.findall(r'"([^"]+)"', found)
        for name, found in re.findall(r"^([a-z]+) = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    }
    return [each for name in ("dependencies", *extras) for each in lists[name]]


def lowest(text: str, extras: Sequence[str] = ()) -> list[str]:
    """`name==version` of the lower end of each requirement. Raises ValueError for one without a lower end."""
    found = {}
    for requirement in requirements(text, extras):
        match = _REQUIREMENT.match(requirement)
        if match is None:
            raise ValueError(f"{requirement!r} has no lower end")
        # PyPI wants three numbers for some of these; `==2.13` means 2.13.0 to pip, too.
        found[match["name"]] = match["version"]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    print("\n".join(lowest((ROOT / "pyproject.toml").read_text(encoding="utf-8"), sys.argv[1:])))
