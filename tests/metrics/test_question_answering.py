from __future__ import annotations

import random
import re
import string
from collections import Counter
from typing import Any

import numpy as np
import pytest

from ftkit.metrics.catalog import compute_metric
from ftkit.metrics.interchange import as_evaluate_metric
from ftkit.metrics.question_answering import METRICS, RESAMPLED, as_array, best_threshold, by_kind, normalized

WORDS = [
    "The",
    "the",
    "cat",
    "Cat!",
    "an",
    "A",
    "sat",
    "on",
    "mat.",
    "(mat)",
    "1,000",
    "über",
    "Zoë's",
    "",
    "-",
    "  ",
    "theatre",
    "日本",
]


# --- the official script of SQuAD 2.0 (evaluate-v2.0.py), as published ------------------------------------------------------


def official_normalize(text: str) -> str:
    def remove_articles(text: str) -> str:
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(text.lower())))


def official_f1(gold: str, prediction: str) -> float:
    gold_toks, pred_toks = official_normalize(gold).split(), official_normalize(prediction).split()
    common = Counter(gold_toks) & Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = num_same / len(pred_toks), num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def official_scores(golds: list[str], prediction: str) -> tuple[float, float]:
    golds = [gold for gold in golds if official_normalize(gold)] or [""]
    exact = max(int(official_normalize(gold) == official_normalize(prediction)) for gold in golds)
    return exact, max(official_f1(gold, prediction) for gold in golds)


def official_best_f1(margins: list[float], answered: list[float], has_answer: list[bool], empty: list[bool]) -> float:
    """find_best_thresh, with the lowest margin in place of 0 for `nothing is answered`."""
    current = best = float(sum(not has for has in has_answer))
    for index in sorted(range(len(margins)), key=margins.__getitem__):
        if has_answer[index]:
            current += answered[index]
        elif not empty[index]:
            current -= 1
        best = max(best, current)
    return best / len(margins)


# --- tests -----------------------------------------------------------------------------------------------------------------


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = random.Random(seed)

    def text() -> str:
        return " ".join(generator.choices(WORDS, k=generator.randrange(0, 6)))

    references = [[text() for _ in range(generator.randrange(0, 4))] for _ in range(count)]
    predictions = [generator.choice([text(), *golds]) for golds in references]
    return as_array(references), np.array(predictions, dtype=object)


def value(name: str, references: Any, predictions: Any) -> float | None:
    return compute_metric(METRICS[name], {"references": references, "predictions": predictions})


def test_normalization_is_the_official_one() -> None:
    references, predictions = drawn(400)
    for text in [*predictions, *(gold for golds in references for gold in golds)]:
        assert normalized(text) == official_normalize(text)
    assert normalized("  The Cat's—a 'mat', an\nAn-other!  ") == official_normalize("  The Cat's—a 'mat', an\nAn-other!  ")


def test_values_are_those_of_the_official_script() -> None:
    references, predictions = drawn(400)
    expected = np.array([official_scores(golds, text) for golds, text in zip(references, predictions, strict=True)])
    has = np.array([len(golds) > 0 for golds in references])
    assert 0.1 < expected[:, 0].mean() < expected[:, 1].mean() < 0.9
    assert value("exact_match", references, predictions) == pytest.approx(expected[:, 0].mean(), abs=1e-12)
    assert value("f1", references, predictions) == pytest.approx(expected[:, 1].mean(), abs=1e-12)
    assert value("has_answer_exact_match", references, predictions) == pytest.approx(expected[has, 0].mean(), abs=1e-12)
    assert value("has_answer_f1", references, predictions) == pytest.approx(expected[has, 1].mean(), abs=1e-12)
    assert value("no_answer_accuracy", references, predictions) == pytest.approx(expected[~has, 0].mean(), abs=1e-12)


def test_golden_values_by_hand() -> None:
    references = as_array([["the cat", "a dog sat"], ["on the mat"], []])
    predictions = np.array(["dog sat!", "mat mat", ""], dtype=object)
    # 1; precision 1/2, recall 1/2; 1
    assert value("exact_match", references, predictions) == pytest.approx(2 / 3)
    assert value("f1", references, predictions) == pytest.approx((1 + 0.5 + 1) / 3)
    assert value("has_answer_f1", references, predictions) == pytest.approx(0.75)
    assert value("no_answer_accuracy", references, predictions) == 1.0


def test_an_answer_where_there_is_none_and_none_where_there_is_one_score_nothing() -> None:
    references, predictions = as_array([[], ["cat"]]), np.array(["cat", ""], dtype=object)
    assert [value(name, references, predictions) for name in METRICS] == [0.0] * 5


def test_an_answer_of_articles_alone_is_found() -> None:
    references, predictions = as_array([["The"]]), np.array(["The"], dtype=object)
    assert value("exact_match", references, predictions) == value("f1", references, predictions) == 1.0


@pytest.mark.parametrize("name", METRICS)
def test_nothing_is_defined_without_questions(name: str) -> None:
    assert value(name, as_array([]), np.array([], dtype=object)) is None


def test_metrics_of_a_kind_that_does_not_occur_are_none() -> None:
    text = np.array(["cat"], dtype=object)
    assert value("no_answer_accuracy", as_array([["cat"]]), text) is None
    assert value("has_answer_f1", as_array([[]]), text) is None


@pytest.mark.parametrize("name", RESAMPLED)
def test_resampled_values_are_those_of_the_drawn_questions(name: str) -> None:
    references, predictions = drawn(50)
    indices = np.random.default_rng(0).integers(0, 50, 50)
    assert RESAMPLED[name](references, predictions)(indices) == pytest.approx(
        value(name, references[indices], predictions[indices])
    )


def test_the_table_by_kind() -> None:
    references, predictions = as_array([["cat"], ["dog"], []]), np.array(["cat", "", ""], dtype=object)
    assert by_kind(references, predictions) == [
        {"questions": "with an answer", "support": 2, "exact_match": 0.5, "f1": 0.5, "predicted_no_answer": 1},
        {"questions": "without an answer", "support": 1, "exact_match": 1.0, "f1": 1.0, "predicted_no_answer": 1},
    ]
    assert by_kind(references[:1], predictions[:1])[1]["f1"] is None


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_reaches_the_best_f1_of_the_official_search(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 40))
    margins = generator.permutation(400)[:count] / 20 - 10
    has = generator.random(count) < 0.6
    with_answer = np.where(has, generator.choice([0, 0.3, 1], count), 0.0)
    threshold = best_threshold(margins, with_answer, (~has).astype(float))
    reached = np.where(margins > threshold, ~has, with_answer).mean()
    best = official_best_f1(margins.tolist(), with_answer.tolist(), has.tolist(), [False] * count)
    assert reached == pytest.approx(best, abs=1e-12)


def test_the_threshold_lies_between_margins_and_ties_stay_together() -> None:
    margins = np.array([-4.0, -2.0, 6.0, 8.0])
    assert best_threshold(margins, np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0, 1.0])) == 2.0
    # The three questions at 1.0 cannot be told apart: together they are better left without an answer.
    tied = np.array([1.0, 1.0, 1.0, -3.0])
    assert best_threshold(tied, np.array([1.0, 0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0, 0.0])) == -1.0
    assert best_threshold(margins, np.ones(4), np.zeros(4)) == 9.0
    assert best_threshold(margins, np.zeros(4), np.ones(4)) == -5.0
    # Nothing is gained anywhere: the place nearest to 0.
    assert best_threshold(margins, np.ones(4), np.ones(4)) == 2.0


@pytest.mark.parametrize("references", [[["cat", "dog"], []], [["cat"], ["dog"]]])
def test_they_are_metrics_of_evaluate_too(references: list[list[str]]) -> None:
    metric = as_evaluate_metric("f1", "question_answering")
    assert metric.compute(references=references, predictions=["cat", ""]) == {"f1": 0.5 if references[1] else 1.0}
