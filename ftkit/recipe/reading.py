"""Reads recipe text into plain values and remembers where each came from.

The grammar is YAML 1.2's core schema on PyYAML's parser: `1e-4` is a number, `yes` and `on` are strings, a key may not
repeat, and there are no tags, no merge keys and no references out of the file. Size, depth and node count are bounded, so a
hostile file costs nothing.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ftkit.errors import Problem, RecipeError

MAX_BYTES = 1_000_000
MAX_NODES = 20_000
MAX_DEPTH = 32
MAX_DIGITS = 40
"""A longer whole number is no setting of anything; it stays text and fails its type check."""

_OPEN = (Path("/dev/fd"), Path("/proc/self/fd"))
"""Where a system shows the files that a process was given open."""

KeyPath = tuple[str | int, ...]

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_TRUE = re.compile(r"^(?:true|True|TRUE)$")
_FALSE = re.compile(r"^(?:false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_OCTAL = re.compile(r"^0o[0-7]+$")
_HEX = re.compile(r"^0x[0-9a-fA-F]+$")
_FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
_SPECIAL_FLOAT = re.compile(r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")

_PLAIN_TAGS = {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value"}
"""What PyYAML's resolver calls values without a tag. Their text is read by `scalar`, whatever it calls them."""


@dataclass
class Document:
    """A recipe as plain values, with the place of each key and value.

    places: `file:line:column` of the key (for mapping entries) or the item (for lists), by path from the root.
    """

    value: Any
    name: str
    text: str = ""
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """The place of the deepest known part of `path`; of what only an override made, the override's."""
        for end in range(len(path), 0, -1):
            if (found := self.places.get(path[:end])) is not None:
                return found
            if made := next((place for known, place in self.places.items() if path and known[:end] == path[:end]), ""):
                return made
        return self.places.get((), self.name)


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) scalar by YAML 1.2's core schema."""
    if _NULL.match(text):
        return None
    if _TRUE.match(text):
        return True
    if _FALSE.match(text):
        return False
    if _INT.match(text):
        return int(text) if len(text) <= MAX_DIGITS else text
    if _OCTAL.match(text) or _HEX.match(text):
        return int(text, 0) if len(text) <= MAX_DIGITS else text
    if _FLOAT.match(text):
        return float(text)
    if _SPECIAL_FLOAT.match(text):
        return float(text.replace(".", "").lower())
    return text


def read_text(text: str, name: str) -> Document:
    """Parses recipe text. `name` is what messages call the file. Raises RecipeError."""
    loader = None
    try:
        loader = _Composer(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise RecipeError(_syntax_problem(error, name)) from None
    except RecursionError:
        raise RecipeError(Problem(message=f"nested too deeply (more than {MAX_DEPTH} levels)", place=name)) from None
    except yaml.YAMLError as error:
        raise RecipeError(Problem(message=f"not readable as YAML: {error}", place=name)) from None
    finally:
        if loader is not None:
            loader.dispose()
    document = Document(value=None, name=name, text=text)
    converter = _Converter(document)
    if root is not None:
        document.places[()] = _place(name, root)
        document.value = converter.convert(root, ())
    if converter.problems:
        raise RecipeError(converter.problems)
    return document


def read_file(path: Path, kind: str = "recipe") -> Document:
    """Reads a recipe, or another file of settings. Raises RecipeError if it is missing, no file, too large, not UTF-8 or not YAML.

    kind: what messages call it.
    """
    try:
        _refuse_waiting(path, kind)
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise RecipeError(Problem(message=f"is a folder, not a {kind} file", place=str(path))) from None
    except OSError as error:
        hint = "List the shipped recipes with: ftkit recipes list" if kind == "recipe" else ""
        raise RecipeError(Problem(message=f"cannot be read ({error.strerror})", place=str(path), hint=hint)) from None
    if len(data) > MAX_BYTES:
        raise RecipeError(Problem(message=f"larger than {MAX_BYTES:,} bytes; not a {kind}", place=str(path)))
    try:
        return read_text(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(Problem(message=f"byte {data[error.start]:#04x} is not UTF-8", place=f"{path}:{line}")) from None


def _refuse_waiting(path: Path, kind: str) -> None:
    """Raises RecipeError for named pipes and devices, which may never give anything; what the caller opened (`<(...)`) is read."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or path.parent in _OPEN or path == Path("/dev/stdin"):
        return
    hint = f"Write the {kind} to a file, or give it by `<(command)` or /dev/stdin"
    raise RecipeError(Problem(message=f"is a pipe, a socket or a device, not a {kind} file", place=str(path), hint=hint))


def read_value(text: str, place: str) -> Any:
    """The value of a command line override: one YAML scalar, list or mapping in flow style."""
    stripped = text.strip()
    if stripped[:1] in ("[", "{", '"', "'"):
        return read_text(stripped, place).value
    return scalar(stripped)


class _Composer(yaml.SafeLoader):
    """Composes nodes only; never constructs objects. Scalars keep their text. Gives up where there are too many of them."""

    _count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._count += 1
        if self._count > 2 * MAX_NODES:  # a key is a node, too
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_NODES:,} values; not a recipe", problem_mark=mark)
        return super().compose_node(parent, index)


def _place(name: str, node: yaml.Node) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _syntax_problem(error: yaml.MarkedYAMLError, name: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    what = " ".join(part for part in (error.context, error.problem) if part)
    hint = "Check indentation (spaces, not tabs) and quote text that holds ': ' or starts with a special character"
    return Problem(message=f"not valid YAML: {what}", place=place, hint=hint)


class _Converter:
    """Turns composed nodes into plain values, collecting problems instead of stopping at the first."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.count = 0

    def convert(self, node: yaml.Node, path: KeyPath) -> Any:
        self.count += 1
        if self.count > MAX_NODES or len(path) > MAX_DEPTH:
            limit = f"{MAX_NODES:,} values" if self.count > MAX_NODES else f"{MAX_DEPTH} levels"
            raise RecipeError(Problem(message=f"more than {limit}; not a recipe", place=_place(self.document.name, node)))
        if not self._tag_allowed(node):
            self._complain(node, path, f"the tag {node.tag!r} is not allowed", "Recipes hold plain values only; remove the tag")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.document.places[(*path, index)] = _place(self.document.name, item)
            return [self.convert(item, (*path, index)) for index, item in enumerate(node.value)]
        return scalar(node.value) if node.style is None else node.value  # type: ignore[attr-defined]

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._complain(key_node, path, "a key must be plain text", "Write `key: value`")
                continue
            key, where = key_node.value, _place(self.document.name, key_node)
            if key in result:
                self._complain(
                    key_node,
                    (*path, key),
                    f"the key {key!r} stands twice",
                    f"The first is at {self.document.places[(*path, key)]}; remove one",
                )
                continue
            self.document.places[(*path, key)] = where
            result[key] = self.convert(value_node, (*path, key))
        return result

    def _tag_allowed(self, node: yaml.Node) -> bool:
        prefix, _, kind = node.tag.rpartition(":")
        return prefix == "tag:yaml.org,2002" and kind in _PLAIN_TAGS

    def _complain(self, node: yaml.Node, path: KeyPath, message: str, hint: str) -> None:
        self.problems.append(Problem(message=message, place=_place(self.document.name, node), key=dotted(path), hint=hint))


def dotted(path: KeyPath) -> str:
    """`("data", "train", 0, "path")` as `data.train[0].path`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
