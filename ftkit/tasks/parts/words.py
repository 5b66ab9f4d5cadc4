"""Sentences as words with places in a text, their pieces as a tokenizer makes them, and windows for those that are too long."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any

from ftkit.tasks.base import Prediction, Row, RowError
from ftkit.tasks.parts.labels import shown
from ftkit.tasks.parts.tokens import around, gives_offsets, plain_ids

Span = tuple[int, int]
"""Start and end, end excluded."""


@dataclass(frozen=True)
class Sentence:
    """A text and the characters of it that each word is."""

    text: str
    spans: list[Span]

    @property
    def words(self) -> list[str]:
        """The words as they stand in the text."""
        return [self.text[start:end] for start, end in self.spans]


def of_words(words: Sequence[str]) -> Sentence:
    """The words with one space between them."""
    ends = list(accumulate((len(word) + 1 for word in words), initial=0))
    return Sentence(" ".join(words), [(start, start + len(word)) for start, word in zip(ends, words, strict=False)])


def at_spaces(text: str) -> Sentence:
    """The text, divided at white space."""
    return Sentence(text, [match.span() for match in re.finditer(r"\S+", text)])


def at_word_breaks(text: str) -> Sentence:
    """The text, divided into runs of letters and digits (3.14 and 2,000 are whole) and single other characters, in any script.

    Control and zero-width characters between words are no words.
    """
    spans = [match.span() for match in _word_pattern().finditer(text) if match.lastgroup]
    return Sentence(text, spans) if spans else at_spaces(text)


@cache
def _word_pattern() -> Any:
    # Unlike `re`, this library has categories of characters: combining vowel signs belong to words.
    import regex

    number = r"\p{N}+(?:[.,:]\p{N}+)+(?![\p{L}\p{M}_])"
    word = r"[\p{L}\p{N}_][\p{L}\p{M}\p{N}_\u00ad\u200c\u200d]*"
    return regex.compile(rf"[\s\p{{C}}]+|(?P<word>{number}|{word}|\X)")


def check_words(row: Row) -> None:
    """Raises RowError unless `tokens` is a text with something in it or a list of at least one text."""
    value = row.get("tokens")
    if not isinstance(value, (str, list, tuple)):
        found = "missing" if value is None else f"{shown(value)}, which is neither a list nor text"
        raise RowError("tokens", f"the words are {found}", "Correct the row, or map another column under data.columns")
    if not value or (isinstance(value, str) and not value.strip()):
        raise RowError("tokens", "the sentence has no words", "Fill it in, or remove the row")
    for index, word in enumerate(value if not isinstance(value, str) else ()):
        if not isinstance(word, str):
            raise RowError("tokens", f"word {index + 1} is {shown(word)}, which is not text", "Correct the row")


@dataclass
class Unit:
    """The pieces of one word. first, last: the pieces that hold characters of it; what stands around them may only hold a space."""

    ids: list[int]
    first: int
    last: int


@dataclass
class Pieces:
    """A whole sentence in pieces: special tokens before, a unit for each word, special tokens after.

    types: token types of these three parts, where the model has them.
    """

    before: list[int]
    units: list[Unit]
    after: list[int]
    types: tuple[list[int], int, list[int]] | None = None


@dataclass
class Window:
    """A part of a sentence as the model takes it.

    words: the words that are read in this window. spans: for each, the places of its pieces in `ids`.
    cut: whether a word of the window lost pieces.
    """

    ids: list[int]
    types: list[int] | None
    cut: bool
    words: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


def tokenize_sentences(sentences: Sequence[Sentence], processor: Any, max_length: int, overlap: int) -> Iterator[list[Window]]:
    """The windows of each sentence (see `windows_of`).

    Tokenizers that do not say which characters a piece is are given one word at a time, with the space before it if there is one.
    """
    ids = (processor.unk_token_id, processor.mask_token_id, processor.eos_token_id, processor.pad_token_id)
    unknown = next((token for token in ids if token is not None), 0)
    found = _located if gives_offsets(processor) else _word_by_word
    for pieces in found(sentences, processor, unknown):
        yield windows_of(pieces, max_length, overlap)


def _located(sentences: Sequence[Sentence], processor: Any, unknown: int) -> Iterator[Pieces]:
    encoded = processor([sentence.text for sentence in sentences], truncation=False, padding=False, verbose=False)
    typed = "token_type_ids" in processor.model_input_names and "token_type_ids" in encoded
    for index, sentence in enumerate(sentences):
        types = encoded["token_type_ids"][index] if typed else None
        yield pieces_of(sentence, encoded.encodings[index], types, unknown)


def _word_by_word(sentences: Sequence[Sentence], processor: Any, unknown: int) -> Iterator[Pieces]:
    before, after = around(processor)
    typed = "token_type_ids" in processor.model_input_names
    written = [
        [(sentence.text[start - 1 : start].isspace(), word) for word, (start, _) in _with_spans(sentence)] for sentence in sentences
    ]
    ids = _ids_of({f" {word}" if spaced else word for words in written for spaced, word in words}, processor)
    bare = _ids_of({word for words in written for _, word in words}, processor)
    for words in written:
        units = [_unit(ids[f" {word}" if spaced else word], bare[word], unknown) for spaced, word in words]
        body = [piece for unit in units for piece in unit.ids]
        parts = None
        if typed:
            types = processor.create_token_type_ids_from_sequences(body)
            parts = (types[: len(before)], types[len(before)], types[len(before) + len(body) :])
        yield Pieces(before, units, after, parts)


def _with_spans(sentence: Sentence) -> Iterator[tuple[str, Span]]:
    return zip(sentence.words, sentence.spans, strict=True)


def _ids_of(words: Collection[str], processor: Any) -> dict[str, list[int]]:
    ordered = sorted(words)
    return dict(zip(ordered, plain_ids(processor, ordered), strict=True))


def _unit(ids: list[int], bare: list[int], unknown: int) -> Unit:
    """ids: pieces of a word, perhaps with a space before it. bare: those of the word alone."""
    if not bare:
        return Unit([unknown], 0, 0)
    space = len(ids) - len(bare)
    first = space if space > 0 and ids[space:] == bare else 0
    return Unit(list(ids), first, len(ids) - 1)


def pieces_of(sentence: Sentence, encoding: Any, types: Sequence[int] | None, unknown: int) -> Pieces:
    """Which pieces are which word's, by their characters.

    encoding: what a fast tokenizer made of the sentence's text, special tokens included. types: its token types.
    unknown: stands for a word that the tokenizer drops (a zero-width character), so that every word has a place.
    """
    inside = [index for index, text in enumerate(encoding.sequence_ids) if text is not None]
    start, end = (inside[0], inside[-1] + 1) if inside else (len(encoding.ids), len(encoding.ids))
    units = _units(sentence.spans, encoding.ids[start:end], encoding.offsets[start:end], unknown)
    parts = None
    if types is not None:
        parts = (list(types[:start]), types[start] if inside else 0, list(types[end:]))
    return Pieces(encoding.ids[:start], units, encoding.ids[end:], parts)


def _units(spans: Sequence[Span], ids: Sequence[int], offsets: Sequence[Span], unknown: int) -> list[Unit]:
    units = [Unit([], -1, -1) for _ in spans]
    loose: list[int] = []
    word = latest = 0
    for piece, (start, end) in zip(ids, offsets, strict=True):
        while word < len(spans) - 1 and spans[word][1] <= start:
            word += 1
        if start < spans[word][1] and end > spans[word][0]:
            unit = units[word]
            unit.ids += [*loose, piece]
            loose, latest = [], word
            unit.first = len(unit.ids) - 1 if unit.first < 0 else unit.first
            unit.last = len(unit.ids) - 1
        else:
            loose.append(piece)
    units[latest].ids += loose
    for unit in units:
        if unit.first < 0:
            unit.ids, unit.first, unit.last = [*unit.ids, unknown], len(unit.ids), len(unit.ids)
    return units


def windows_of(pieces: Pieces, max_length: int, overlap: int) -> list[Window]:
    """The sentence in windows of at most `max_length` tokens that share about `overlap`; each word is read in exactly one of them.

    Words are never divided; the pieces of one that takes more than half a window are cut. Raises ValueError if nothing fits.
    """
    room = max_length - len(pieces.before) - len(pieces.after)
    if room < 2:
        raise ValueError(f"max_length {max_length} leaves no room beside {max_length - room} special tokens")
    units, cut = pieces.units, [False] * len(pieces.units)
    if sum(len(unit.ids) for unit in units) > room:
        units = [_shortened(unit, room // 2) for unit in units]
        cut = [len(new.ids) < len(old.ids) for new, old in zip(units, pieces.units, strict=True)]
    sizes = [len(unit.ids) for unit in units]
    ranges = window_ranges(sizes, room, overlap)
    owners = best_windows(sizes, ranges)
    return [
        _window(pieces, units, (start, end), [word for word in range(start, end) if owners[word] == number], any(cut[start:end]))
        for number, (start, end) in enumerate(ranges)
        if number in set(owners[start:end])
    ]


def _shortened(unit: Unit, limit: int) -> Unit:
    if len(unit.ids) <= limit:
        return unit
    ids = unit.ids[unit.first : unit.first + limit]
    return Unit(ids, 0, min(unit.last - unit.first, limit - 1))


def window_ranges(sizes: Sequence[int], room: int, overlap: int) -> list[Span]:
    """Words (start, end) of each window. sizes: pieces of each word, at most half of `room` unless all fit into one window."""
    found: list[Span] = []
    start, count = 0, len(sizes)
    while True:
        end, free = start, room
        while end < count and sizes[end] <= free:
            free -= sizes[end]
            end += 1
        if end == count:
            # The last window is filled up to the left: it costs little and gives its words more context.
            while start > 0 and sizes[start - 1] <= free:
                start -= 1
                free -= sizes[start]
            return [*found, (start, end)]
        found.append((start, end))
        shared = min(overlap, room - sizes[end])
        start = end
        while start > 0 and sizes[start - 1] <= shared:
            start -= 1
            shared -= sizes[start]


def best_windows(sizes: Sequence[int], ranges: Sequence[Span]) -> list[int]:
    """For each word the window in which its shorter context is longest; a side that reaches the end of the sentence is not short."""
    places = list(accumulate(sizes, initial=0))
    best, owners = [-1.0] * len(sizes), [0] * len(sizes)
    for number, (start, end) in enumerate(ranges):
        for word in range(start, end):
            left = float("inf") if start == 0 else places[word] - places[start]
            right = float("inf") if end == len(sizes) else places[end] - places[word + 1]
            if min(left, right) > best[word]:
                best[word], owners[word] = min(left, right), number
    return owners


def _window(pieces: Pieces, units: Sequence[Unit], span: Span, read: Sequence[int], cut: bool) -> Window:
    ids, spans, wanted = list(pieces.before), [], set(read)
    for word in range(*span):
        unit = units[word]
        if word in wanted:
            spans.append((len(ids) + unit.first, len(ids) + unit.last + 1))
        ids += unit.ids
    types = None
    if pieces.types is not None:
        before, body, after = pieces.types
        types = [*before, *[body] * (len(ids) - len(before)), *after]
    return Window([*ids, *pieces.after], types, cut, list(read), spans)


def whole_sentence(parts: Sequence[Prediction]) -> Prediction:
    """`example`, `labels` (int64 (words,)) and `scores` (float32 (words,)) of a sentence out of those of its windows.

    Each part says its `words` and the `word_count` of the sentence. Raises RuntimeError unless every word is there once.
    """
    import numpy as np

    example, count = parts[0]["example"], parts[0]["word_count"]
    order = np.concatenate([part["words"] for part in parts])
    if sorted(order.tolist()) != list(range(count)):
        raise RuntimeError(f"example {example}: {len(order)} words were predicted, it has {count}")
    labels, scores = np.empty(count, np.int64), np.empty(count, np.float32)
    labels[order] = np.concatenate([part["labels"] for part in parts])
    scores[order] = np.concatenate([part["scores"] for part in parts])
    return {"example": example, "labels": labels, "scores": scores}
