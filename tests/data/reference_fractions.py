"""The division of rows as it reads best: one Python object for each unit. What `ftkit.data.fractions` computes on arrays must be this.

Source: stratified sampling by largest remainder (Hamilton's apportionment).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TRAIN = "train"


@dataclass(frozen=True)
class Unit:
    """Rows that must stay together."""

    rows: tuple[int, ...]
    stratum: Hashable
    rank: bytes

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.rows)


def divide(
    inputs: Sequence[bytes],
    shares: Mapping[str, float],
    *,
    seed: int,
    strata: Sequence[Hashable] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, np.ndarray]:
    """Row indices (int64, ascending) of each held-back split and of `train`.

    inputs: digest of each row's input; rows with equal digests stay together.
    shares: {split: share of all rows, 0 to 1}. strata: a value of each row whose proportions are kept.
    groups: a value of each row; rows with equal values stay together, None ties nothing.
    Every stratum keeps at least one unit (row or set of rows that stay together) in `train`.
    """
    units = _units(inputs, strata, groups, seed)
    by_stratum: dict[Hashable, list[Unit]] = defaultdict(list)
    for unit in sorted(units, key=lambda unit: unit.rank):
        by_stratum[unit.stratum].append(unit)
    free = {stratum: members[1:] for stratum, members in by_stratum.items()}
    sizes = {stratum: sum(unit.size for unit in members) for stratum, members in by_stratum.items()}
    result: dict[str, np.ndarray] = {}
    for split, share in shares.items():
        chosen = _draw(free, sizes, share) if share else []
        result[split] = np.sort(np.array([row for unit in chosen for row in unit.rows], dtype=np.int64))
    held_back = np.concatenate([np.empty(0, np.int64), *result.values()])
    return {TRAIN: np.setdiff1d(np.arange(len(inputs), dtype=np.int64), held_back), **result}


def _draw(free: dict[Hashable, list[Unit]], sizes: Mapping[Hashable, int], share: float) -> list[Unit]:
    """Takes units out of `free`: as close to each stratum's quota as they allow, then as close to the total."""
    chosen: list[Unit] = []
    for stratum, quota in _quotas(free, sizes, share).items():
        taken = _fill(free[stratum], quota)
        chosen += taken
        free[stratum] = _without(free[stratum], taken)
    lacking = round(sum(sizes.values()) * share) - sum(unit.size for unit in chosen)
    rest = sorted((unit for members in free.values() for unit in members), key=lambda unit: unit.rank)
    more = _fill(rest, lacking)
    lacking -= sum(unit.size for unit in more)
    # One unit more than fits, if that comes closer to the share than stopping short of it.
    over = min(_without(rest, more), key=lambda unit: unit.size, default=None)
    if over is not None and over.size < 2 * lacking:
        more.append(over)
    for unit in more:
        free[unit.stratum] = _without(free[unit.stratum], [unit])
    return chosen + more


def _quotas(free: Mapping[Hashable, list[Unit]], sizes: Mapping[Hashable, int], share: float) -> dict[Hashable, int]:
    # A stratum that cannot give anything must not take a place that another could fill.
    exact = {stratum: sizes[stratum] * share for stratum in free if free[stratum]}
    quotas = {stratum: int(value) for stratum, value in exact.items()}
    missing = round(sum(sizes.values()) * share) - sum(quotas.values())
    # Larger strata first among equal remainders; the representation breaks what ties are left without looking at row order.
    order = sorted(exact, key=lambda stratum: (quotas[stratum] - exact[stratum], -sizes[stratum], repr(stratum)))
    for stratum in order[:missing]:
        quotas[stratum] += 1
    return quotas


def _fill(units: Sequence[Unit], quota: int) -> list[Unit]:
    taken: list[Unit] = []
    for unit in units:
        if quota <= 0:
            break
        if unit.size <= quota:
            taken.append(unit)
            quota -= unit.size
    return taken


def _without(units: Sequence[Unit], taken: Sequence[Unit]) -> list[Unit]:
    ranks = {unit.rank for unit in taken}
    return [unit for unit in units if unit.rank not in ranks]


def _units(inputs: Sequence[bytes], strata: Sequence[Hashable] | None, groups: Sequence[Hashable] | None, seed: int) -> list[Unit]:
    members: dict[int, list[int]] = defaultdict(list)
    for row, root in enumerate(_roots(inputs, groups)):
        members[root].append(row)
    key = str(seed).encode()
    units = []
    for rows in members.values():
        first = inputs[rows[0]] if len(rows) == 1 else min(inputs[row] for row in rows)
        rank = hashlib.blake2b(first, digest_size=16, key=key).digest()
        stratum = None if strata is None else _most_common([strata[row] for row in rows])
        units.append(Unit(tuple(rows), stratum, rank))
    return units


def _most_common(values: Sequence[Hashable]) -> Hashable:
    if len(values) == 1:
        return values[0]
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], repr(value)))


def _roots(inputs: Sequence[bytes], groups: Sequence[Hashable] | None) -> list[int]:
    """For each row the first row of the set it must stay with."""
    first: dict[bytes, int] = {}
    roots = [first.setdefault(digest, row) for row, digest in enumerate(inputs)]
    if groups is None:
        return roots

    def find(row: int) -> int:
        while roots[row] != row:
            roots[row] = roots[roots[row]]
            row = roots[row]
        return row

    first_of_group: dict[Hashable, int] = {}
    for row, group in enumerate(groups):
        if group is not None:
            one, other = find(row), find(first_of_group.setdefault(group, row))
            roots[max(one, other)] = min(one, other)
    return [find(row) for row in range(len(roots))]
