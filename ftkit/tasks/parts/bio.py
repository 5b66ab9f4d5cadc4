"""Tags of words: which words form an entity, whether tags keep the rules of their scheme, and what their ids are.

    word     Anna   lives  in  New    York
    IOB2     B-PER  O      O   B-LOC  I-LOC     B begins every entity (Tjong Kim Sang & Veenstra 1999)
    IOB1     I-PER  O      O   I-LOC  I-LOC     B only between two adjacent entities of one type (Ramshaw & Marcus 1995)
    BIOES    S-PER  O      O   B-LOC  E-LOC     E ends an entity, S is one of a single word; also written L and U (BILOU)
    IO       PER    O      O   LOC    LOC       no beginnings; also written with I-
    none     PROPN  VERB   ADP PROPN  PROPN     plain tags: no entities

Whatever the data uses becomes IOB2.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ftkit.errors import DataError, Problem
from ftkit.tasks.base import Row, RowError
from ftkit.tasks.parts.labels import duplicates, listed, name_order, shown

IGNORED = -100
"""Label of a piece that is not supervised."""

OUTSIDE = "O"
PLAIN = "none"
PREFIXES = {"IOB1": "BI", "IOB2": "BI", "BIOES": "BIES", "IO": "I"}
_SAME = {"L": "E", "U": "S"}

Pairs = Mapping[tuple[str, str], int]
"""How often a tag (second) follows another one (first, `O` at the start of a sentence)."""


class Entity(NamedTuple):
    """An entity: words start to end, end excluded."""

    type: str
    start: int
    end: int


class Reading(NamedTuple):
    """A sequence as IOB2, and where it breaks the rules of its scheme: (word, what is wrong)."""

    tags: list[str]
    problems: list[tuple[int, str]]


def split_tag(tag: str, scheme: str) -> tuple[str, str] | None:
    """Prefix (`O` outside, L and U as E and S) and type of a tag; None if the scheme has no such tag. A bare `B` has the type ''."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, kind = tag[:1], tag[1:2], tag[2:]
    prefixed = prefix != "" and prefix in "BIESLU" and (tag == prefix or (dash == "-" and kind != ""))
    if not prefixed:
        return ("I", tag) if scheme == "IO" and tag else None
    prefix = _SAME.get(prefix, prefix) if scheme == "BIOES" else prefix
    return (prefix, kind) if prefix in PREFIXES[scheme] else None


def joined(prefix: str, kind: str) -> str:
    """The tag of a prefix and a type."""
    return f"{prefix}-{kind}" if kind else prefix


def read(tags: Sequence[str], scheme: str) -> Reading:
    """Reads a sequence leniently, as conlleval and seqeval do: an inside tag that continues nothing begins an entity.

    Tags must be those of the scheme. Raises ValueError otherwise.
    """
    found, problems = [], []
    before: tuple[str, str] = (OUTSIDE, "")
    for index, tag in enumerate(tags):
        now = split_tag(tag, scheme)
        if now is None:
            raise ValueError(f"{tag!r} is no tag of {scheme}")
        if scheme == "BIOES" and _unfinished(before, now):
            problems.append((index - 1, f"{tags[index - 1]} is not followed by its I- or E-"))
        starts = _starts(before, now)
        if _forbidden(before, now, scheme, starts):
            problems.append((index, f"{tag} follows {tags[index - 1] if index else 'nothing'}"))
        found.append(OUTSIDE if now[0] == OUTSIDE else joined("B" if starts else "I", now[1]))
        before = now
    if scheme == "BIOES" and _unfinished(before, (OUTSIDE, "")):
        problems.append((len(tags) - 1, f"{tags[-1]} is not followed by its I- or E-"))
    return Reading(found, problems)


def _starts(before: tuple[str, str], now: tuple[str, str]) -> bool:
    prefix, kind = now
    return prefix in "BS" or before[0] in "OES" or before[1] != kind


def _unfinished(before: tuple[str, str], now: tuple[str, str]) -> bool:
    return before[0] in "BI" and (now[0] not in "IE" or now[1] != before[1])


def _forbidden(before: tuple[str, str], now: tuple[str, str], scheme: str, starts: bool) -> bool:
    prefix, kind = now
    if scheme == "IOB1":
        return prefix == "B" and (before[0] == OUTSIDE or before[1] != kind)
    return scheme != "IO" and prefix in "IE" and starts


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of an IOB2 sequence; I- after O or after another type begins one."""
    found: list[Entity] = []
    for index, tag in enumerate(read(tags, "IOB2").tags):
        if tag.startswith("B"):
            found.append(Entity(tag[2:], index, index + 1))
        elif tag.startswith("I"):
            found[-1] = found[-1]._replace(end=index + 1)
    return found


def pairs_of(tags: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Each tag with the one before it."""
    return zip([OUTSIDE, *tags], tags, strict=False)


def detect(pairs: Pairs) -> str:
    """The scheme with prefixes whose rules these tags break least: BIOES by its prefixes, else IOB2 or IOB1."""
    prefixes = {parts[0] for _, tag in pairs if (parts := split_tag(tag, "BIOES"))}
    if prefixes & {"E", "S"}:
        return "BIOES"
    broken: Counter[str] = Counter({"IOB2": 0, "IOB1": 0})
    for scheme in broken:
        for pair, count in pairs.items():
            if all(split_tag(tag, scheme) for tag in pair) and any(at == 1 for at, _ in read(pair, scheme).problems):
                broken[scheme] += count
    return min(broken, key=lambda scheme: broken[scheme])


class Tags:
    """Reads the tags of rows and knows their ids.

    scheme: one of `PREFIXES`, `none`, or `auto` (learned). given: all tags as the data writes them, in the order of their ids.
    repair: whether sequences that break the rules are read leniently instead of refused.
    """

    def __init__(self, scheme: str, given: Sequence[str] | None = None, *, repair: bool = False) -> None:
        self.scheme, self.given, self.repair = scheme, list(given or []), repair
        self.names: list[str] = []
        self.ids: dict[str, int] = {}

    @property
    def plain(self) -> bool:
        """Whether there are no entities."""
        return self.scheme == PLAIN

    @property
    def kinds(self) -> list[str]:
        """What there is to find: entity types, or plain tags."""
        return self.names if self.plain else list(dict.fromkeys(name[2:] for name in self.names if name != OUTSIDE))

    def kinds_in(self, tags: Sequence[str]) -> list[str]:
        """The type of each entity of an IOB2 sequence, or its plain tags."""
        return list(tags) if self.plain else [entity.type for entity in entities(tags)]

    def is_valid(self, row: Row) -> bool:
        """Whether the row's tags keep the rules of the scheme."""
        return self.plain or not read(self.read(row), self.scheme).problems

    def problems(self) -> list[str]:
        """What is wrong with the options, each with the option's name."""
        found = [f"labels: {listed(repeated)} given more than once"] if (repeated := duplicates(self.given)) else []
        if self.plain and self.repair:
            found.append("on_invalid: plain tags (scheme none) have no rules to break")
        if self.plain and len(self.given) == 1:
            found.append("labels: there must be at least two")
        strange = [] if self.scheme in (PLAIN, "auto") else [tag for tag in self.given if split_tag(tag, self.scheme) is None]
        return [*found, f"labels: {listed(strange)} cannot be tags of {self.scheme}"] if strange else found

    def fix(self, names: Sequence[str], scheme: str) -> None:
        """Freezes the scheme and the names; their places are their ids."""
        self.names, self.scheme = list(names), scheme
        self.ids = {name: index for index, name in enumerate(self.names)}

    def read(self, row: Row) -> list[str]:
        """The row's tags as they stand. Raises RowError if they are missing or not text."""
        value = row.get("tags")
        if value is None:
            raise RowError("tags", "the tags are missing", "Fill them in, or remove the row")
        if isinstance(value, str):
            return _divided(value)
        if not isinstance(value, (list, tuple)):
            raise RowError("tags", f"tags {shown(value)} are neither a list nor text", "Give a list with a tag for each word")
        return [self._name(item, index) for index, item in enumerate(value)]

    def _name(self, item: Any, index: int) -> str:
        if isinstance(item, str) and item.strip():
            return item
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < len(self.given):
            return self.given[item]
        whole = isinstance(item, int) and not isinstance(item, bool)
        if whole and self.given:
            message = f"tag {index + 1} is {item}, expected one of the places 0 to {len(self.given) - 1} in task.labels"
            raise RowError("tags", message, "Name all tags in task.labels, or correct the row")
        hint = "Numbers are places in task.labels: name all tags there" if whole else "Correct the row"
        what = "empty" if item == "" or (isinstance(item, str) and not item.strip()) else f"{shown(item)}, which is not text"
        raise RowError("tags", f"tag {index + 1} is {what}", hint)

    def convert(self, row: Row, words: Sequence[str]) -> list[str]:
        """The row's tags as IOB2 (plain tags as they are).

        Raises RowError for a tag that the scheme or the training rows do not have, and for sequences that break the scheme's rules.
        """
        tags = self.read(row)
        if not self.plain:
            self._check_scheme(tags, words)
            reading = read(tags, self.scheme)
            if reading.problems and not self.repair:
                at, message = reading.problems[0]
                more = f" (and {len(reading.problems) - 1} more)" if len(reading.problems) > 1 else ""
                hint = "Correct the tags, name another task.scheme, or set task.on_invalid to repair"
                raise RowError("tags", f"{_word(at, words)}: {message}, which {self.scheme} does not allow{more}", hint)
            tags = reading.tags
        for index, tag in enumerate(tags):
            if tag not in self.ids:
                raise self._unknown(tag, index, words)
        return tags

    def piece_labels(self, tag: str, pieces: int, labeling: str) -> list[int]:
        """Labels of a word's pieces. labeling: `first` or `last` piece as tagged and the others IGNORED, or `all`: the others inside."""
        if labeling == "all":
            inside = tag if self.plain or not tag.startswith("B") else joined("I", tag[2:])
            return [self.ids[tag], *[self.ids[inside]] * (pieces - 1)]
        others = [IGNORED] * (pieces - 1)
        return [*others, self.ids[tag]] if labeling == "last" else [self.ids[tag], *others]

    def _check_scheme(self, tags: Sequence[str], words: Sequence[str]) -> None:
        for index, tag in enumerate(tags):
            if split_tag(tag, self.scheme) is None:
                forms = ", ".join(f"{prefix}-<type>" for prefix in PREFIXES[self.scheme])
                hint = "Correct the tag, or say which task.scheme the tags follow (`none` for plain tags)"
                raise RowError("tags", f"{_word(index, words)}: {tag!r} is no tag of {self.scheme} (O, {forms})", hint)

    def _unknown(self, tag: str, index: int, words: Sequence[str]) -> RowError:
        what, known = "tag" if self.plain else "type", self.kinds
        name = tag if self.plain else tag[2:]
        if self.given:
            message = f"{_word(index, words)}: {what} {name!r} is not in task.labels, which has {listed(known)}"
            return RowError("tags", message, "Add it, or correct the row")
        message = f"{_word(index, words)}: {what} {name!r} does not occur in the training rows, which have {listed(known)}"
        return RowError("tags", message, "Correct the row, or name all tags in task.labels")

    def learn(self, pairs: Pairs) -> None:
        """Freezes the scheme and the names from the tags of the training rows. Raises DataError if there is nothing to learn."""
        seen = {tag for _, tag in pairs}
        scheme = detect(pairs) if self.scheme == "auto" else self.scheme
        if scheme == PLAIN:
            if len(seen) < 2:
                raise _nothing(f"only the tag {next(iter(seen))!r}" if seen else "no tag")
            self.fix(self.given or sorted(seen, key=name_order(seen)), scheme)
            return
        types = {parts[1] for tag in seen if (parts := split_tag(tag, scheme)) and parts[0] != OUTSIDE}
        if not types:
            others = sorted(seen - {OUTSIDE})
            raise _no_scheme(scheme, others) if others else _nothing(f"only the tag {OUTSIDE!r}")
        self.fix(self._ordered(scheme) if self.given else _complete([OUTSIDE], sorted(types)), scheme)

    def _ordered(self, scheme: str) -> list[str]:
        """The given tags in their order, as IOB2; what is lacking for IOB2 follows."""
        kept = [tag for tag in self.given if split_tag(tag, "IOB2")] if scheme in ("IOB1", "IOB2") else [OUTSIDE]
        parts = [split for tag in self.given if (split := split_tag(tag, scheme)) and split[0] != OUTSIDE]
        return _complete(kept, dict.fromkeys(kind for _, kind in parts))


def _divided(text: str) -> list[str]:
    if re.fullmatch(r"\s*\[.*['\",].*\]\s*", text, re.DOTALL):
        hint = "Write tags with spaces between them (`B-PER O`), or the rows as jsonl or parquet"
        raise RowError("tags", f"the tags are {shown(text)}, a list that was written as text", hint)
    return text.split()


def _complete(names: Sequence[str], types: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*names, OUTSIDE, *(joined(prefix, kind) for kind in types for prefix in "BI")]))


def _word(index: int, words: Sequence[str]) -> str:
    return f"word {index + 1} ({shown(words[index])})"


def _nothing(what: str) -> DataError:
    hint = "There is nothing to tell apart; is `tags` mapped to the right column under data.columns?"
    return DataError(Problem(message=f"the training rows have {what}", key="tags", hint=hint))


def _no_scheme(scheme: str, tags: Sequence[str]) -> DataError:
    hint = "Set task.scheme: `none` for plain tags such as parts of speech, `IO` for entity types without a prefix."
    return DataError(Problem(message=f"the training rows have no tag of {scheme}, but {listed(tags)}", key="tags", hint=hint))
