"""Texts that are nearly the same: MinHash and locality-sensitive hashing over word 3-grams.

Broder 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman & Ullman, "Mining of Massive Datasets", chapter 3.
The threshold is that of Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better". Written in numpy: a library with a
Python call for each row would take minutes for what takes seconds here, and be one more dependency.

Work and memory grow with the number of words and rows only: rows whose hashes meet are each compared with the first of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ftkit.data.digests import EqualRows
from ftkit.data.splits import Splits
from ftkit.data.table import Table
from ftkit.diagnostics.findings import Finding, Hits, Severity, about_rows, share
from ftkit.diagnostics.roles import text_of

SIMILAR = 0.8
"""Jaccard similarity of the word 3-grams from which two texts are nearly the same."""

BANDS, BAND_SIZE = 14, 5
"""Two texts meet if all hashes of a band agree: with a probability of 0.996 at a similarity of 0.8, 0.36 at 0.5, 0.03 at 0.3."""

MANY_SHARE = 0.05
"""Share of training rows from which near-duplicates are a warning."""

PAIRS_AT_A_TIME = 2048
LARGEST_VOCABULARY = 2**21
"""Words whose hashes are kept."""

# Scripts without blanks between words: each character is taken for a word.
_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+")
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
_DRAW = np.random.Generator(np.random.PCG64(0))
_FACTORS = _DRAW.integers(2**63, size=BANDS * BAND_SIZE, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _DRAW.integers(2**63, size=BANDS * BAND_SIZE, dtype=np.uint64)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows of all splits, numbered on from one split to the next, that are nearly the same. similarity: 0 to 1."""

    first: int
    second: int
    similarity: float


class Shingler:
    """Hashes of the word 3-grams of texts. Punctuation and case do not count."""

    def __init__(self) -> None:
        self._hashes: dict[str, int] = {}

    def shingles(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of all texts, uint64, and how many each has, int64 (texts,). A text of one or two words has one, of none none."""
        words: list[int] = []
        counts: list[int] = []
        for text in texts:
            found = [self._hash(word) for word in _WORD.findall(text.casefold())]
            found += [0] * (3 - len(found)) if found else []
            words += found
            counts.append(len(found))
        flat, sizes = np.array(words, dtype=np.uint64), np.array(counts, dtype=np.int64)
        if not len(flat):
            return flat, sizes
        text_of_word = np.repeat(np.arange(len(sizes)), sizes)
        grams = flat[:-2] * _MIX[0] + flat[1:-1] * _MIX[1] + flat[2:] * _MIX[2]
        return _scrambled(grams[text_of_word[:-2] == text_of_word[2:]]), np.maximum(sizes - 2, 0)

    def _hash(self, word: str) -> int:
        known = self._hashes.get(word)
        if known is None:
            if len(self._hashes) >= LARGEST_VOCABULARY:
                self._hashes.clear()
            known = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
            self._hashes[word] = known
        return known


def _scrambled(values: np.ndarray) -> np.ndarray:
    """Spreads each bit over all (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def band_keys(shingles: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A key for each band of each text, uint64 (texts with shingles, BANDS)."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])[counts > 0]
    keys = np.zeros((len(starts), BANDS), dtype=np.uint64)
    if not len(starts):
        return keys
    for number, (factor, offset) in enumerate(zip(_FACTORS, _OFFSETS, strict=True)):
        smallest = np.minimum.reduceat((shingles * factor + offset) >> np.uint64(32), starts)
        band = number // BAND_SIZE
        keys[:, band] = _scrambled(keys[:, band] + smallest + np.uint64(number + 1))
    return keys


def candidates(keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Pairs of rows that agree in a band, int64 (pairs, 2), each row with the first of those it agrees with.

    keys: uint64 (texts, BANDS). rows: the number of each text's row, int64 (texts,), ascending.
    """
    if not len(keys):
        return np.empty((0, 2), np.int64)
    found = []
    for band in range(keys.shape[1]):
        order = np.argsort(keys[:, band], kind="stable")
        ordered = keys[order, band]
        begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
        found.append(np.stack([rows[first[~begins]], rows[order[~begins]]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def near_duplicates(
    splits: Splits, columns: Sequence[str], inputs: Mapping[str, np.ndarray], answers: Sequence[str] = ()
) -> list[Pair]:
    """Pairs of rows all of whose texts are nearly the same and whose inputs are not equal.

    columns: those of the texts. inputs: digest of each row's input, by split. Of equal rows of a split only the first is looked at.
    answers: columns of texts to answer with, which must be nearly the same too: what differs in a word and has another answer
    (`a quarter past four`, 4:15) is another example.
    """
    tables = [table for _, table in splits.items()]
    equal = np.concatenate([inputs[name] for name, _ in splits.items()])
    distinct = np.concatenate([_distinct(inputs[name]) for name, _ in splits.items()])
    shingler = Shingler()
    pairs = [_candidates_of(tables, name, distinct, shingler) for name in columns]
    found = []
    for first, second in np.unique(np.concatenate(pairs), axis=0).tolist() if pairs else ():
        if (equal[first] != equal[second]).any():
            found.append((first, second))
    return list(_verified(found, tables, [*columns, *answers], shingler))


def _distinct(digests: np.ndarray) -> np.ndarray:
    """Whether each row is the first with its input, bool (rows,)."""
    equal = EqualRows(digests)
    first = np.zeros(len(digests), dtype=bool)
    first[equal.order[equal.starts[:-1]]] = True
    return first


def _candidates_of(tables: Sequence[Table], column: str, distinct: np.ndarray, shingler: Shingler) -> np.ndarray:
    keys, rows = [np.empty((0, BANDS), np.uint64)], [np.empty(0, np.int64)]
    start = 0
    for table in tables:
        for chunk in table.project({column: column}).chunks():
            numbers = np.arange(start, start + len(chunk[column]))
            start += len(numbers)
            wanted = distinct[numbers]
            texts = [text_of(value) for value, taken in zip(chunk[column], wanted, strict=True) if taken]
            shingles, counts = shingler.shingles(texts)
            keys.append(band_keys(shingles, counts))
            rows.append(numbers[wanted][counts > 0])
    return candidates(np.concatenate(keys), np.concatenate(rows))


def _verified(
    pairs: Sequence[tuple[int, int]], tables: Sequence[Table], columns: Sequence[str], shingler: Shingler
) -> Iterator[Pair]:
    """Those of the pairs that are similar enough in every column, counted exactly."""
    for start in range(0, len(pairs), PAIRS_AT_A_TIME):
        chunk = pairs[start : start + PAIRS_AT_A_TIME]
        sets = _shingle_sets(sorted({row for pair in chunk for row in pair}), tables, columns, shingler)
        for first, second in chunk:
            similarity = _similarity(sets[first], sets[second])
            if similarity >= SIMILAR:
                yield Pair(first=first, second=second, similarity=similarity)


def _shingle_sets(
    rows: Sequence[int], tables: Sequence[Table], columns: Sequence[str], shingler: Shingler
) -> dict[int, list[frozenset[int]]]:
    """The shingles of each column of some rows."""
    sets: dict[int, list[frozenset[int]]] = {}
    start = 0
    for table in tables:
        here = [row for row in rows if start <= row < start + len(table)]
        values = table.project({name: name for name in columns}).rows([row - start for row in here])
        for row, value in zip(here, values, strict=True):
            sets[row] = [frozenset(shingler.shingles([text_of(value[name])])[0].tolist()) for name in columns]
        start += len(table)
    return sets


def _similarity(first: Sequence[frozenset[int]], second: Sequence[frozenset[int]]) -> float:
    """The smallest Jaccard similarity of the columns; two empty ones are equal."""
    smallest = 1.0
    for one, other in zip(first, second, strict=True):
        if one or other:
            smallest = min(smallest, len(one & other) / len(one | other))
        if smallest < SIMILAR:
            break
    return smallest


def near_duplicate_findings(
    splits: Splits,
    columns: Sequence[str],
    inputs: Mapping[str, np.ndarray],
    answers: Sequence[str] = (),
    labels: Mapping[str, np.ndarray] | None = None,
) -> list[Finding]:
    """Near-duplicates within each split and between two of them.

    labels: digest of each row's label, by split; pairs with different ones are told apart. The rest: see `near_duplicates`.
    """
    starts: list[tuple[int, str, Table]] = []
    total = 0
    for name, table in splits.items():
        starts.append((total, name, table))
        total += len(table)
    met: dict[tuple[str, str, bool], dict[int, str]] = {}
    for pair in near_duplicates(splits, columns, inputs, answers):
        first, name, table = next(part for part in reversed(starts) if part[0] <= pair.second)
        other_first, other, other_table = next(part for part in reversed(starts) if part[0] <= pair.first)
        row, other_row = pair.second - first, pair.first - other_first
        agree = labels is None or bool((labels[name][row] == labels[other][other_row]).all())
        met.setdefault((name, other, agree), {}).setdefault(row, f"≈ {other_table.place(other_row)} ({pair.similarity:.2f})")
    tables = {name: table for _, name, table in starts}
    return [_finding(name, other, tables[name], rows, agree) for (name, other, agree), rows in met.items()]


def _finding(name: str, other: str, table: Table, rows: Mapping[int, str], agree: bool) -> Finding:
    hits = Hits()
    for row in sorted(rows):
        hits.add(row, rows[row])
    if not agree:
        known = "an earlier row" if name == other else f"{other} rows"
        message = f"{name}: {share(hits.count, len(table))} are nearly the same as {known} and have another label"
        return about_rows("near-contradictions", "note", message, table, hits, "Look whether both labels are right")
    if name != other:
        message = f"{name}: {share(hits.count, len(table))} are nearly the same as {other} rows"
        hint = f"Remove them from {other} if they come from one source: results on them flatter the model"
        return about_rows("near-leaks", "warning", message, table, hits, hint)
    severity: Severity = "warning" if name == "train" and hits.count >= MANY_SHARE * len(table) else "note"
    message = f"{name}: {share(hits.count, len(table))} are nearly the same as an earlier row"
    return about_rows("near-duplicates", severity, message, table, hits, "Remove them if they add nothing")
