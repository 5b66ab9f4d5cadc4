from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from ftkit.tasks.parts.imbalance import label_weights, several_labels_loss, single_label_loss, tuned_thresholds

NAMES = ["a", "b", "c"]


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = ["a"] * 6 + ["b"] * 3 + ["c"]
    counts = {name: labels.count(name) for name in NAMES}
    expected = compute_class_weight("balanced", classes=np.array(NAMES), y=np.array(labels))
    assert label_weights("balanced", NAMES, counts, 10, several=False) == pytest.approx(expected.tolist())


def test_given_weights_have_mean_one_over_the_rows() -> None:
    weights = label_weights({"a": 1, "c": 8}, NAMES, {"a": 6, "b": 3, "c": 1}, 10, several=False)
    assert weights[2] / weights[0] == pytest.approx(8)
    assert weights[1] == weights[0]
    assert 6 * weights[0] + 3 * weights[1] + weights[2] == pytest.approx(10)


def test_weights_of_several_labels_balance_each_label_by_itself() -> None:
    assert label_weights("balanced", NAMES, {"a": 5, "b": 2}, 10, several=True) == [1.0, 4.0, 1.0]
    assert label_weights({"b": 3.0}, NAMES, {"a": 5}, 10, several=True) == [1.0, 3.0, 1.0]


@pytest.mark.parametrize(("gamma", "smoothing"), product([0.0, 2.0], [0.0, 0.1]))
def test_single_label_loss_is_the_formula(gamma: float, smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0]), torch.tensor([0.5, 1.0, 3.0])
    expected = torch.zeros(())
    for row, label in zip(logits, labels, strict=True):
        nll = functional.cross_entropy(row[None], label[None], label_smoothing=smoothing)
        expected = expected + weights[label] * (1 - row.softmax(0)[label]) ** gamma * nll
    assert single_label_loss(logits, labels, weights, gamma, smoothing).item() == pytest.approx(expected.item(), rel=1e-5)
    plain = functional.cross_entropy(logits, labels, reduction="sum")
    assert single_label_loss(logits, labels, None, 0.0, 0.0).item() == pytest.approx(plain.item())


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_several_labels_loss_is_the_formula(gamma: float) -> None:
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(4, 3), torch.randint(0, 2, (4, 3)).float(), torch.tensor([0.5, 1.0, 3.0])
    expected = 0.0
    for row, column in product(range(4), range(3)):
        positive = labels[row, column] == 1
        right = logits[row, column].sigmoid() if positive else 1 - logits[row, column].sigmoid()
        expected += float((weights[column] if positive else 1.0) * (1 - right) ** gamma * -right.log()) / 3
    assert several_labels_loss(logits, labels, weights, gamma).item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_has_finite_gradients_at_certainty() -> None:
    logits = torch.tensor([[80.0, -80.0], [-80.0, 80.0]], requires_grad=True)
    single_label_loss(logits, torch.tensor([0, 0]), None, 0.5, 0.0).backward()
    assert torch.isfinite(logits.grad).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_no_threshold_gives_a_better_f1(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 12, (40, 2)) / 12
    references = (generator.random((40, 2)) < 0.4).astype(int)
    found = tuned_thresholds(scores, references)
    for label in range(2):
        if references[:, label].sum() < 10:
            continue
        reached = f1_score(references[:, label], scores[:, label] >= found[label])
        tries = [f1_score(references[:, label], scores[:, label] >= threshold / 24) for threshold in range(1, 24)]
        assert reached >= max(tries) - 1e-9


def test_rare_labels_share_a_threshold() -> None:
    generator = np.random.default_rng(0)
    references = np.zeros((200, 3), int)
    references[:60, 0], references[:3, 1], references[100:102, 2] = 1, 1, 1
    scores = np.clip(generator.random((200, 3)) * 0.3 + references * 0.2, 0, 1)
    first, second, third = tuned_thresholds(scores, references)
    assert second == third != first


def test_without_positives_the_threshold_is_one_half() -> None:
    assert tuned_thresholds(np.full((4, 2), 0.3), np.zeros((4, 2), int)) == [0.5, 0.5]
