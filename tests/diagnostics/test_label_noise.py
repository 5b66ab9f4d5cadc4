from __future__ import annotations

import random

import numpy as np
import pytest

from ftkit.diagnostics import label_noise
from ftkit.diagnostics.duplicates import digests
from ftkit.diagnostics.findings import Finding
from ftkit.diagnostics.label_noise import FOLDS, Opinion, folds, noise_findings
from ftkit.diagnostics.labels import label_reader
from tests.diagnostics.rows import Row, clean_rows, make_task, table


def plain_rows(count: int) -> list[Row]:
    """Rows whose label shows in most of their few different words."""
    draw = random.Random(0)
    words = {label: [f"{label}{number}" for number in range(12)] for label in ("cold", "warm", "wet")}
    return [{"text": " ".join(draw.choices(words[label], k=8)), "label": label} for _ in range(count // 3) for label in words]


def noise(rows: list[Row]) -> list[Finding]:
    found = table(rows)
    return noise_findings(found, ["text"], "label", digests(found, ["text"]), label_reader(make_task().options))


def test_flipped_labels_are_found() -> None:
    rows = plain_rows(600)
    flipped = [20, 201, 400]
    for row in flipped:
        rows[row]["label"] = "wet" if rows[row]["label"] == "cold" else "cold"
    (finding,) = noise(rows)
    assert (finding.check, finding.severity) == ("label-noise", "warning")
    assert sorted(finding.places) == sorted(f"train.jsonl, row {row + 1}" for row in flipped)
    told = dict(zip(finding.places, finding.details, strict=True))
    assert told["train.jsonl, row 202"].startswith("'wet', rather 'cold' (0.9")
    sureness = [float(detail[-5:-1]) for detail in finding.details]
    assert sureness == sorted(sureness, reverse=True)
    assert "of 600 rows looked at" in finding.message


def test_sound_labels_are_not_suspected() -> None:
    assert noise(clean_rows(600)) == []
    assert noise(plain_rows(600)) == []


def test_labels_that_nothing_tells_are_left_alone() -> None:
    draw = random.Random(0)
    rows = [{**row, "label": draw.choice(["a", "b"])} for row in clean_rows(600)]
    assert noise(rows) == []


def test_few_rows_and_several_labels_are_left_alone() -> None:
    rows = clean_rows(label_noise.FEWEST_ROWS - 1)
    rows[0]["label"] = "wet"
    assert noise(rows) == []
    several = [{**row, "label": [row["label"], "more"]} for row in clean_rows(300)]
    assert noise(several) == []


def test_rare_labels_are_not_suspected() -> None:
    rows = plain_rows(600)
    for row in rows[:7]:
        row["label"] = "rare"
    assert noise(rows) == []


def opinion(probabilities: list[list[float]], labels: list[int], prior: list[float]) -> Opinion:
    return Opinion(probabilities=np.array(probabilities), labels=np.array(labels), prior=np.array(prior))


def test_thresholds() -> None:
    found = opinion([[0.97, 0.03], [0.89, 0.11], [0.03, 0.97], [0.94, 0.06]], [1, 1, 1, 1], [0.5, 0.5])
    assert found.suspects().tolist() == [0]


def test_the_frequency_of_a_label_alone_does_not_make_suspects() -> None:
    # A classifier that knows nothing gives each row the prior.
    assert opinion([[0.97, 0.03]], [1], [0.97, 0.03]).suspects().tolist() == []
    # Evidence for the rare label that the prior drowns.
    assert opinion([[0.96, 0.04]], [1], [0.99, 0.01]).suspects().tolist() == []
    assert opinion([[0.999, 0.001]], [1], [0.9, 0.1]).suspects().tolist() == [0]


@pytest.mark.parametrize(("right", "skill"), [(500, 0.0), (540, 0.0), (560, 0.12), (750, 0.5), (1000, 1.0)])
def test_its_skill_is_that_beyond_chance(right: int, skill: float) -> None:
    # Three standard errors of a share of 0.5 in 1000 rows are 0.047.
    table_of = [[0.9, 0.1] if number < right else [0.1, 0.9] for number in range(1000)]
    assert opinion(table_of, [0] * 1000, [0.5, 0.5]).skill == pytest.approx(skill)


@pytest.mark.parametrize(("noisy", "severity"), [(0.0, "warning"), (0.4, "note"), (0.8, None)])
def test_a_classifier_that_knows_little_says_little(noisy: float, severity: str | None) -> None:
    rows, draw = plain_rows(900), random.Random(0)
    for number, row in enumerate(rows):
        if number < 5 or draw.random() < noisy:
            # Of another vocabulary, with labels that nothing tells.
            row["text"] = row["text"] if number < 5 else " ".join(f"z{draw.randrange(12)}" for _ in range(8))
            row["label"] = draw.choice([name for name in ("cold", "warm", "wet") if name != row["label"]])
    assert [finding.severity for finding in noise(rows)] == ([severity] if severity else [])


def test_folds_keep_equal_inputs_together_and_labels_spread() -> None:
    inputs = [bytes([number // 2 % 256, number // 512]) for number in range(600)]
    labels = np.array([number // 2 % 3 for number in range(600)])
    found = folds(labels, inputs)
    assert all(len({found[a] for a in (2 * number, 2 * number + 1)}) == 1 for number in range(300))
    for label in range(3):
        sizes = np.bincount(found[labels == label], minlength=FOLDS)
        assert sizes.max() - sizes.min() <= 2
    order = list(range(600))
    random.Random(0).shuffle(order)
    shuffled = folds(labels[order], [inputs[row] for row in order])
    assert shuffled.tolist() == found[order].tolist()


def test_only_a_sample_of_many_rows_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_noise, "LARGEST_SAMPLE", 400)
    rows = plain_rows(600)
    for row in rows[:60]:
        row["label"] = {"cold": "warm", "warm": "wet", "wet": "cold"}[row["label"]]
    (finding,) = noise(rows)
    assert "of 400 rows looked at" in finding.message
    assert {int(place.split()[-1]) for place in finding.places} <= set(range(1, 61))
