#!/usr/bin/env python3
"""Looks for known vulnerabilities in the packages of the environment it runs in.

    .venv/bin/python scripts/audit.py                         asks PyPI, through pip-audit (pip install pip-audit)
    .venv/bin/python scripts/audit.py --advisories FOLDER     offline: a folder of OSV files, such as the PyPI part of osv.dev unpacked

Ends with 0 if none is known, 1 with a list if some are, 2 if it could not be found out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

NO_ANSWER = 2
OFFLINE = (
    "To audit without a network, download https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip elsewhere, unpack it, "
    "and give the folder: scripts/audit.py --advisories FOLDER"
)


def installed() -> dict[str, str]:
    """Versions of the packages of this environment."""
    found: dict[str, str] = {}
    for distribution in distributions():
        if distribution.metadata["Name"]:
            found.setdefault(canonicalize_name(distribution.metadata["Name"]), distribution.version)
    return found


def affected(entry: Mapping[str, Any], version: Version) -> bool:
    """Whether a package of an OSV advisory has the flaw in a version: listed, or inside a range of versions."""
    if str(version) in entry.get("versions", ()) or version.public in entry.get("versions", ()):
        return True
    return any(inside(each.get("events", ()), version) for each in entry.get("ranges", ()) if each.get("type") == "ECOSYSTEM")


def inside(events: Sequence[Mapping[str, str]], version: Version) -> bool:
    """Whether a version lies in a range: from `introduced` (0: from the first one) up to, not including, `fixed`."""
    found = False
    for event in events:
        if "introduced" in event:
            found |= event["introduced"] == "0" or version >= Version(event["introduced"])
        if "fixed" in event and version >= Version(event["fixed"]):
            found = False
        if "last_affected" in event and version > Version(event["last_affected"]):
            found = False
    return found


def known(folder: Path, packages: Mapping[str, str]) -> Iterator[str]:
    """A line for each advisory of a folder that concerns one of the packages."""
    for path in sorted(folder.rglob("*.json")):
        advisory = json.loads(path.read_text(encoding="utf-8"))
        if advisory.get("withdrawn"):
            continue
        for entry in advisory.get("affected", ()):
            package = entry.get("package", {})
            name = canonicalize_name(package.get("name", ""))
            if package.get("ecosystem") != "PyPI" or name not in packages:
                continue
            try:
                hit = affected(entry, Version(packages[name]))
            except InvalidVersion:
                continue
            if hit:
                names = ", ".join([advisory["id"], *advisory.get("aliases", ())])
                yield f"{name} {packages[name]}: {names}: {advisory.get('summary') or advisory.get('details', '')[:120]}"
                break


def offline(folder: Path) -> int:
    """Audits by advisories on disk."""
    if not folder.is_dir() or not next(folder.rglob("*.json"), None):
        print(f"{folder} holds no advisories (JSON files). {OFFLINE}", file=sys.stderr)
        return NO_ANSWER
    packages = installed()
    lines = list(known(folder, packages))
    for line in lines:
        print(line)
    print(f"{len(packages)} packages, {len(lines)} known vulnerabilities in {folder}")
    return 1 if lines else 0


def online() -> int:
    """Audits through pip-audit."""
    if find_spec("pip_audit") is None:
        print(f"pip-audit is not installed here: {sys.executable} -m pip install pip-audit. {OFFLINE}", file=sys.stderr)
        return NO_ANSWER
    command = [sys.executable, "-m", "pip_audit", "--local", "--progress-spinner", "off", "--timeout", "15"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, end="")
    # It ends with 1 for both: flaws are listed on standard output, what kept it from finding out is not.
    if done.returncode and not done.stdout.strip():
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
        print(f"the advisories of PyPI cannot be asked for: {reason.strip()[:300]}\n{OFFLINE}", file=sys.stderr)
        return NO_ANSWER
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Looks for known vulnerabilities in the packages of this environment.")
    parser.add_argument("--advisories", type=Path, help="folder of OSV files to go by instead of asking PyPI")
    given = parser.parse_args(arguments)
    return online() if given.advisories is None else offline(given.advisories)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
