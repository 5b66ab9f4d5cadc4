#!/usr/bin/env python3
"""Writes a software bill of materials of the environment it runs in, as CycloneDX 1.6 JSON.

.venv/bin/python scripts/sbom.py > sbom.json          ftkit and all that it depends on, as installed
.venv/bin/python scripts/sbom.py --everything         every package of the environment
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import Distribution, distributions
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

ROOT = "ftkit"


def canonical(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, Distribution]:
    """Every package of this environment, by canonical name; of several of one name that which is imported."""
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        if distribution.metadata["Name"]:
            found.setdefault(canonical(distribution.metadata["Name"]), distribution)
    return found


def needed_by(distribution: Distribution, extras: Iterable[str] = ()) -> Iterator[str]:
    """Canonical names of what a package asks for here."""
    wanted = ["", *extras]
    for text in distribution.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in wanted):
            yield canonical(requirement.name)


def closure(packages: Mapping[str, Distribution], root: str = ROOT) -> list[str]:
    """A package and all that it leads to, of what is installed, extras of the package itself included."""
    extras = packages[root].metadata.get_all("Provides-Extra") or ()
    found, waiting = {root: None}, list(needed_by(packages[root], extras))
    while waiting:
        name = waiting.pop()
        if name in packages and name not in found:
            found[name] = None
            waiting += needed_by(packages[name])
    return sorted(found)


def component(distribution: Distribution) -> dict[str, Any]:
    """What CycloneDX says of a package."""
    meta = distribution.metadata
    name = canonical(meta["Name"])
    license_name = meta.get("License-Expression") or meta.get("License") or ""
    # Some put the whole text of their license there.
    stated = license_name if license_name and "\n" not in license_name and len(license_name) < 100 else _classified(distribution)
    said: list[dict[str, Any]] = []
    if stated:
        said = [{"expression": stated}] if meta.get("License-Expression") else [{"license": {"name": stated}}]
    return {
        "type": "library",
        "bom-ref": purl(name, distribution.version),
        "name": name,
        "version": distribution.version,
        "purl": purl(name, distribution.version),
        **({"description": meta["Summary"]} if meta["Summary"] else {}),
        **({"licenses": said} if said else {}),
    }


def _classified(distribution: Distribution) -> str:
    classifiers = distribution.metadata.get_all("Classifier") or ()
    return next((text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")), "")


def purl(name: str, version: str) -> str:
    """A package's URL: pkg:pypi/torch@2.13.0%2Bcpu."""
    return f"pkg:pypi/{name}@{version.replace('+', '%2B')}"


def bill(*, everything: bool = False) -> dict[str, Any]:
    """The document. Its serial number follows from what is in it."""
    packages = installed()
    names = sorted(packages) if everything or ROOT not in packages else closure(packages)
    components = [component(packages[name]) for name in names if name != ROOT]
    dependencies = [
        {
            "ref": purl(name, packages[name].version),
            "dependsOn": sorted({purl(other, packages[other].version) for other in needed_by(packages[name]) if other in names}),
        }
        for name in names
    ]
    listed = json.dumps(components, sort_keys=True)
    root = {"component": {**component(packages[ROOT]), "type": "application"}} if ROOT in packages else {}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, listed)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "tools": {"components": [{"type": "application", "name": "ftkit scripts/sbom.py"}]},
            **root,
        },
        "components": components,
        "dependencies": dependencies,
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Writes a CycloneDX bill of materials of this environment.")
    parser.add_argument("--everything", action="store_true", help="also what ftkit does not depend on")
    given = parser.parse_args(arguments)
    print(json.dumps(bill(everything=given.everything), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
