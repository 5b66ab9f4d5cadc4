"""Writes values as YAML that `ftkit.recipe.reading` reads back as the same values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ftkit.recipe.reading import scalar

LONGEST_SIMPLE_KEY = 120
"""Characters of a key that needs no `?` in front; PyYAML looks no further than 1,024 for the colon."""

_PLAIN = re.compile(r"[\w./+-](?:[\w./@+ -]|:(?=[\w./@+-]))*")
_WRITTEN_OUT = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""What YAML takes for no printable character or for a line break, and the backslash escapes of JSON."""


def block_lines(values: Mapping[str, Any], notes: Mapping[str, str], key: str = "", indent: str = "") -> list[str]:
    """Lines in YAML's block style. notes: comments by dotted key."""
    lines: list[str] = []
    for name, item in values.items():
        inner = f"{key}.{name}" if key else name
        note = f"  # {notes[inner]}" if inner in notes else ""
        if _fits_block(item):
            lines.append(f"{indent}{_key(name)}:")
            lines += block_lines(item, notes, inner, indent + "  ")
        elif isinstance(item, list) and item and all(map(_fits_block, item)):
            lines.append(f"{indent}{_key(name)}:")
            for entry in item:
                block = block_lines(entry, notes, inner, indent + "    ")
                block[0] = f"{indent}  - {block[0].lstrip()}"
                lines += block
        else:
            lines.append(f"{indent}{_key(name)}: {flow(item)}{note}")
    return lines


def _fits_block(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(len(_text(key)) <= LONGEST_SIMPLE_KEY for key in value)


def flow(value: Any) -> str:
    """A value in YAML's flow style, on one line. A `${` in text is kept from being read as a reference."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow, value)) + "]"
    return _text(value.replace("${", "$${")) if isinstance(value, str) else json.dumps(value)


def _key(name: str) -> str:
    """Keys are no place of references. Explicit (`?`) if long, which only flow style has on one line."""
    written = _text(name)
    return written if len(written) <= LONGEST_SIMPLE_KEY else f"? {written} "


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and not text.endswith(" ") and not text.startswith("-") and scalar(text) == text:
        return text
    return '"' + _WRITTEN_OUT.sub(_escape, text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
