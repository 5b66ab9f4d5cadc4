"""The versions of packages below ftkit that it was tested with, and a line for those that it was not. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ftkit.run.machine import versions

TESTED: Mapping[str, tuple[str, str]] = {
    "torch": ("2.13.0", "2.13.0"),
    "transformers": ("5.23.0", "5.23.0"),
    "peft": ("0.21.0", "0.21.2"),
    "accelerate": ("1.10.0", "1.15.0"),
    "datasets": ("4.0.0", "5.2.0"),
    "evaluate": ("0.4.5", "0.4.6"),
    "safetensors": ("0.5.0", "0.8.0"),
    "bitsandbytes": ("0.48.0", "0.50.2"),
    "numpy": ("1.26.0", "2.4.6"),
    "pyarrow": ("17.0.0", "26.0.1"),
    "pydantic": ("2.10.0", "2.14.3"),
    "scikit-learn": ("1.5.0", "1.9.1"),
}
"""The lower ends of pyproject.toml, with which `scripts/test-oldest` tests, and constraints.txt, with which `scripts/test` does."""


def untested(found: Mapping[str, str | None] | None = None) -> Iterator[str]:
    """A line for each package that is older than any tested version, or of a later major version (of 0.x: a later minor one).

    found: versions by name, None for what is not installed (default: those of this environment).
    """
    for name, version in (versions() if found is None else found).items():
        if version is None or name not in TESTED:
            continue
        oldest, newest = TESTED[name]
        if _release(version) < _release(oldest):
            yield f'{name} {version} is older than any version that ftkit was tested with; pip install "{name}>={oldest}"'
        elif _major(version) > _major(newest):
            yield f'{name} {version} is a major version that ftkit was not tested with; if it fails: pip install "{name}=={newest}"'


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version: 2.13.0+cpu and 2.13.0rc1 are (2, 13, 0)."""
    numbers = []
    for part in version.partition("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return (*numbers, 0, 0, 0)[:3]


def _major(version: str) -> tuple[int, ...]:
    """What semantic versioning keeps the same for as long as nothing breaks."""
    first, second, _ = _release(version)
    return (first,) if first else (first, second)
