"""Labels that are probably wrong: a simple classifier, trained on the other rows, is sure of another one.

Confident learning in its plainest form (Northcutt et al. 2021, https://arxiv.org/abs/1911.00068), with TF-IDF and logistic regression.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftkit.data.digests import as_bytes
from ftkit.data.table import Table
from ftkit.diagnostics.findings import Finding, Hits, Severity, about_rows
from ftkit.diagnostics.roles import text_of

LARGEST_SAMPLE = 20_000
"""Rows that the classifier is given; more are drawn from."""

FEWEST_ROWS = 100
"""Rows below which the classifier is not asked."""

FEWEST_OF_LABEL = 8
"""Rows of a label below which the classifier cannot know it."""

FOLDS = 5
MOST_LABELS = 200
"""Labels beyond which the classifier would take minutes."""

LARGEST_MODEL, FEWEST_FEATURES, MOST_FEATURES = 400_000, 4_000, 20_000
"""Weights of the classifier, and the number of words and pairs of words that follow from it and the number of labels. With more of
them it finds hardly more flipped labels (BANKING77: 77 of 270 with 4,000 features in 5 s, 78 with 20,000 in 17 s)."""

SURE = 0.9
UNLIKELY = 0.05
"""The classifier gives another label more than SURE and the row's own less than UNLIKELY."""

BETTER_THAN_CHANCE = 3.0
"""Standard errors by which its accuracy must exceed the share of the largest label."""

SOME_SKILL, HIGH_SKILL = 0.4, 0.7
"""Shares of the errors of always saying the largest label that it must avoid, so that its opinion is worth a note and a warning. A
classifier that knows less errs more often than people do, even where it is sure."""


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What the classifier thinks of rows that it was not trained on.

    probabilities: float64 (rows, labels). labels: the rows' own, int64 (rows,). prior: share of each label, float64 (labels,).
    """

    probabilities: np.ndarray
    labels: np.ndarray
    prior: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of rows whose label is the most likely one."""
        return float(np.mean(self.probabilities.argmax(axis=1) == self.labels))

    @property
    def skill(self) -> float:
        """Share of the errors of always saying the largest label that it avoids; 0 if it may be by chance."""
        chance = float(self.prior.max())
        gain = self.accuracy - chance
        return gain / (1 - chance) if gain > BETTER_THAN_CHANCE * math.sqrt(chance * (1 - chance) / len(self.labels)) else 0.0

    def suspects(self) -> np.ndarray:
        """Rows (int64) with a label that is probably wrong, the surest first.

        It must look so both as the classes are distributed and if all were as frequent: else each row of a rare label would be
        suspicious among those of a frequent one, for its frequency alone.
        """
        even = self.probabilities / self.prior
        even /= even.sum(axis=1, keepdims=True)
        rows = np.arange(len(self.labels))
        wrong = np.ones(len(rows), dtype=bool)
        for table in (self.probabilities, even):
            wrong &= (table.max(axis=1) > SURE) & (table[rows, self.labels] < UNLIKELY)
        found = np.flatnonzero(wrong & (self.probabilities.argmax(axis=1) == even.argmax(axis=1)))
        return found[np.argsort(-self.probabilities[found].max(axis=1), kind="stable")]


def noise_findings(
    table: Table, texts: Sequence[str], label: str, inputs: np.ndarray, names_of: Callable[[Any], list[str]]
) -> list[Finding]:
    """Training rows that may have the wrong label, the surest first.

    texts, label: the columns. inputs: digest of each row's input; equal ones share a fold. Nothing for rows with several labels.
    """
    rows = _sample(len(table))
    chosen = table.select(rows)
    names = [names_of(value) for value in chosen.column(label)]
    if any(len(found) != 1 for found in names):
        return []
    columns = list(chosen.project({name: name for name in texts}).chunks())
    joined = [
        " \n ".join(map(text_of, values)) for chunk in columns for values in zip(*(chunk[name] for name in texts), strict=True)
    ]
    opinion, order = ask(joined, [found[0] for found in names], as_bytes(inputs[rows]))
    if opinion is None or opinion.skill < SOME_SKILL:
        return []
    hits, enough = Hits(), opinion.prior * len(rows) >= FEWEST_OF_LABEL
    for row in opinion.suspects().tolist():
        if not enough[opinion.labels[row]]:
            continue
        best = int(opinion.probabilities[row].argmax())
        detail = f"{order[int(opinion.labels[row])]!r}, rather {order[best]!r} ({opinion.probabilities[row, best]:.2f})"
        hits.add(int(rows[row]), detail)
    if not hits.count:
        return []
    message = (
        f"train: {hits.count:,} of {len(rows):,} rows looked at may have the wrong label: a simple classifier that is right on "
        f"{100 * opinion.accuracy:.0f} % of the rows it was not trained on is sure of another one"
    )
    severity: Severity = "warning" if opinion.skill >= HIGH_SKILL else "note"
    return [about_rows("label-noise", severity, message, table, hits, "Read them, and correct those that are wrong")]


def ask(texts: Sequence[str], labels: Sequence[str], inputs: Sequence[bytes]) -> tuple[Opinion | None, list[str]]:
    """What out-of-fold predictions say, and the labels in the order of their numbers. None where there is too little to learn from."""
    counts = Counter(labels)
    order = sorted(counts)
    numbers = {name: number for number, name in enumerate(order)}
    targets = np.array([numbers[label] for label in labels], dtype=np.int64)
    if len(texts) < FEWEST_ROWS or not 2 <= len(order) <= MOST_LABELS or not any(any(map(str.isalnum, text)) for text in texts):
        return None, order
    probabilities = np.zeros((len(texts), len(order)))
    parts = folds(targets, inputs)
    for fold in range(FOLDS):
        held_out = parts == fold
        known = np.unique(targets[~held_out])
        if len(known) > 1 and held_out.any():
            probabilities[np.ix_(held_out, known)] = _predictions(texts, targets, held_out)
    prior = np.array([counts[name] for name in order]) / len(texts)
    return Opinion(probabilities=probabilities, labels=targets, prior=prior), order


def folds(labels: np.ndarray, inputs: Sequence[bytes]) -> np.ndarray:
    """A fold for each row, int64 (rows,): labels evenly spread, equal inputs together, whatever the order of the rows."""
    first: dict[bytes, int] = {}
    for digest, label in zip(inputs, labels.tolist(), strict=True):
        first[digest] = min(label, first.get(digest, label))
    ranks = {digest: rank for rank, (_, digest) in enumerate(sorted((label, digest) for digest, label in first.items()))}
    return np.array([ranks[digest] % FOLDS for digest in inputs], dtype=np.int64)


def _predictions(texts: Sequence[str], targets: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Probabilities of the held-out rows, float64 (rows, labels of the others)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    features = min(MOST_FEATURES, max(FEWEST_FEATURES, LARGEST_MODEL // len(np.unique(targets))))
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, max_features=features, dtype=np.float32, token_pattern=r"(?u)\b\w+\b"
    )
    known = vectorizer.fit_transform([text for text, held in zip(texts, held_out, strict=True) if not held])
    unknown = vectorizer.transform([text for text, held in zip(texts, held_out, strict=True) if held])
    # Weak regularization: TF-IDF rows have length 1, and a stronger one would never be sure of anything.
    classifier = LogisticRegression(C=10.0, tol=1e-3, max_iter=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(known, targets[~held_out])
    return np.asarray(classifier.predict_proba(unknown), dtype=np.float64)


def _sample(rows: int) -> np.ndarray:
    if rows <= LARGEST_SAMPLE:
        return np.arange(rows, dtype=np.int64)
    return np.sort(np.random.Generator(np.random.PCG64(0)).choice(rows, LARGEST_SAMPLE, replace=False))
