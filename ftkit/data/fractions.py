"""Divides training rows into train, validation and test: seeded, stratified or grouped, without leaks.

Where a row goes depends on the seed, on the row and on what else is in the data, never on the order of the rows.
Rows that must stay together are a unit; units are numbered, and what is known of them are arrays.
Source: stratified sampling by largest remainder (Hamilton's apportionment).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from ftkit.data.digests import Codes, EqualRows, from_bytes, group_starts, index_type

TRAIN = "train"
UNITS_AT_A_TIME = 100_000


def divide(
    inputs: np.ndarray,
    shares: Mapping[str, float],
    *,
    seed: int,
    strata: Codes | None = None,
    groups: Codes | None = None,
) -> dict[str, np.ndarray]:
    """Row indices (int64, ascending) of each held-back split and of `train`.

    inputs: digest of each row's input, uint64 (rows, 2); rows with equal digests stay together.
    shares: {split: share of all rows, 0 to 1}. strata: a value of each row whose proportions are kept.
    groups: a value of each row; rows with equal values stay together, None ties nothing.
    Every stratum keeps at least one unit (row or set of rows that stay together) in `train`.
    """
    order, starts = _units(inputs, groups)
    pool = _Pool(
        sizes=np.diff(starts),
        strata=_strata_of_units(order, starts, strata),
        names=["" if strata is None else repr(value) for value in (strata.values if strata else [None])],
        ranks=lambda units: _ranks(inputs, order[starts[:-1][units]], seed),
    )
    split_of_unit = np.zeros(len(starts) - 1, dtype=np.int8)
    for number, share in enumerate(shares.values(), start=1):
        split_of_unit[pool.draw(share)] = number
    split_of_row = np.empty(len(order), dtype=np.int8)
    split_of_row[order] = np.repeat(split_of_unit, np.diff(starts))
    return {name: np.flatnonzero(split_of_row == number) for number, name in enumerate((TRAIN, *shares))}


class _Pool:
    """Units that may still be drawn.

    sizes: rows of each unit. strata: number of its stratum. names: what tells strata apart, by number. ranks: gives the seeded ranks
    of units, uint64 (units, 2), which decide in which order they are drawn. The first unit of each stratum is never drawn.
    """

    def __init__(
        self, *, sizes: np.ndarray, strata: np.ndarray, names: list[str], ranks: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        self._sizes, self._strata, self._names, self._ranks = sizes, strata, names, ranks
        kind = index_type(len(sizes))
        self._sequence = self._ranked(np.arange(len(sizes), dtype=kind))
        self._bounds = np.searchsorted(strata[self._sequence], np.arange(len(names) + 1))
        self._rows = np.zeros(len(names), dtype=np.int64)
        np.add.at(self._rows, strata, sizes)
        self._free = np.ones(len(sizes), dtype=bool)
        self._free[self._sequence[self._bounds[:-1][np.diff(self._bounds) > 0]]] = False

    def draw(self, share: float) -> np.ndarray:
        """Takes units out of the pool: as close to each stratum's quota as they allow, then as close to the total."""
        chosen = [np.empty(0, self._sequence.dtype)]
        if share:
            for stratum, quota in self._quotas(share).items():
                members = self._sequence[self._bounds[stratum] : self._bounds[stratum + 1]]
                chosen.append(self._fill(members[self._free[members]], quota))
            lacking = round(int(self._rows.sum()) * share) - sum(int(self._sizes[units].sum()) for units in chosen)
            if lacking > 0:
                chosen += self._fill_up(lacking)
        return np.concatenate(chosen)

    def _quotas(self, share: float) -> dict[int, int]:
        """Rows to take from each stratum that is to give any."""
        # A stratum that cannot give anything must not take a place that another could fill.
        able = np.unique(self._strata[self._free]).tolist()
        exact = {stratum: int(self._rows[stratum]) * share for stratum in able}
        quotas = {stratum: int(value) for stratum, value in exact.items()}
        missing = round(int(self._rows.sum()) * share) - sum(quotas.values())
        # Larger strata first among equal remainders; the name breaks what ties are left without looking at row order.
        order = sorted(able, key=lambda stratum: (quotas[stratum] - exact[stratum], -self._rows[stratum], self._names[stratum]))
        for stratum in order[:missing]:
            quotas[stratum] += 1
        return {stratum: quota for stratum, quota in quotas.items() if quota}

    def _fill_up(self, lacking: int) -> list[np.ndarray]:
        """Takes free units of any stratum for so many rows."""
        free = self._ranked(np.flatnonzero(self._free).astype(self._sequence.dtype), by_stratum=False)
        more = self._fill(free, lacking)
        lacking -= int(self._sizes[more].sum())
        free = free[self._free[free]]
        if not len(free):
            return [more]
        # One unit more than fits, if that comes closer to the share than stopping short of it.
        over = free[np.argmin(self._sizes[free])]
        if self._sizes[over] >= 2 * lacking:
            return [more]
        self._free[over] = False
        return [more, np.array([over])]

    def _ranked(self, units: np.ndarray, *, by_stratum: bool = True) -> np.ndarray:
        """Units by rank, within their stratum or all together."""
        strata = self._strata[units] if by_stratum else np.zeros(len(units), dtype=np.int8)
        high = self._halves(units, 0)
        order = np.lexsort((high, strata)).astype(units.dtype)
        ordered = high[order]
        if (ordered[1:] == ordered[:-1]).any():
            # Half a rank in common is all but impossible, and so the other half is not kept.
            order = np.lexsort((self._halves(units, 1), high, strata))
        return units[order]

    def _halves(self, units: np.ndarray, half: int) -> np.ndarray:
        """The first or second half of the units' ranks, uint64 (units,)."""
        found = np.empty(len(units), dtype=np.uint64)
        for start in range(0, len(units), UNITS_AT_A_TIME):
            part = units[start : start + UNITS_AT_A_TIME]
            found[start : start + len(part)] = self._ranks(part)[:, half]
        return found

    def _fill(self, units: np.ndarray, quota: int) -> np.ndarray:
        """Takes units in their order, each that still fits into the quota of rows."""
        taken = [units[:0]]
        while quota > 0:
            units = units[self._sizes[units] <= quota]
            if not len(units):
                break
            rows = np.cumsum(self._sizes[units], dtype=np.int64)
            count = int(np.searchsorted(rows, quota, side="right"))
            taken.append(units[:count])
            units, quota = units[count:], quota - int(rows[count - 1])
        found = np.concatenate(taken)
        self._free[found] = False
        return found


def _units(inputs: np.ndarray, groups: Codes | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows ordered by unit, within a unit by digest (rows,), and where each unit begins, and the end (units + 1,)."""
    equal = EqualRows(inputs)
    if groups is None:
        return equal.order, equal.starts
    units = _joined(equal, groups)
    order = np.lexsort((inputs[:, 1], inputs[:, 0], units)).astype(equal.order.dtype)
    return order, group_starts((units,), order)


def _joined(equal: EqualRows, groups: Codes) -> np.ndarray:
    """For each row a number of the unit that equal inputs and groups together make up (rows,)."""
    inputs = equal.group_of_row()
    tied = groups.numbers != groups.values.index(None) if None in groups.values else np.ones(len(inputs), dtype=bool)
    first = np.zeros(len(groups.values), dtype=np.int64)
    rows = np.flatnonzero(tied)[::-1]
    # The last assignment counts: that of the first row.
    first[groups.numbers[rows]] = inputs[rows]
    others = first[groups.numbers]
    apart = np.flatnonzero(tied & (others != inputs))
    parent = array("q", range(len(equal.starts) - 1))
    for start in range(0, len(apart), UNITS_AT_A_TIME):
        chunk = apart[start : start + UNITS_AT_A_TIME]
        for one, other in zip(inputs[chunk].tolist(), others[chunk].tolist(), strict=True):
            one, other = _root(parent, one), _root(parent, other)
            parent[max(one, other)] = min(one, other)
    roots = np.frombuffer(parent, dtype=np.int64)
    while not np.array_equal(further := roots[roots], roots):
        roots = further
    return roots[inputs]


def _root(parent: array[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def _strata_of_units(order: np.ndarray, starts: np.ndarray, strata: Codes | None) -> np.ndarray:
    """The stratum that most rows of each unit have (units,)."""
    if strata is None or not len(order):
        return np.zeros(len(starts) - 1, dtype=np.int32)
    ordered = strata.numbers[order]
    found = ordered[starts[:-1]]
    mixed = np.minimum.reduceat(ordered, starts[:-1]) != np.maximum.reduceat(ordered, starts[:-1])
    for unit in np.flatnonzero(mixed).tolist():
        counts = Counter(ordered[starts[unit] : starts[unit + 1]].tolist())
        found[unit] = min(counts, key=lambda number: (-counts[number], repr(strata.values[number])))
    return found


def _ranks(inputs: np.ndarray, firsts: np.ndarray, seed: int) -> np.ndarray:
    """The seeded digest of each unit's smallest digest, uint64 (units, 2). firsts: the row that has it."""
    seeded, data, found = hashlib.blake2b(digest_size=16, key=str(seed).encode()), inputs[firsts].astype(">u8").tobytes(), []
    for start in range(0, len(data), 16):
        digest = seeded.copy()
        digest.update(data[start : start + 16])
        found.append(digest.digest())
    return from_bytes(b"".join(found))
