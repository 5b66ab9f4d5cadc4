"""Values are those of rouge-score and sacreBLEU, for any number of references, without any download."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ftkit.metrics import generated_text
from ftkit.metrics.catalog import compute_metric
from ftkit.metrics.generated_text import METRICS, RESAMPLED, as_arrays, sentences, signatures
from ftkit.metrics.interchange import as_evaluate_metric
from ftkit.metrics.intervals import bootstrap_interval, headline_intervals

REFERENCES = [
    ["The cat sat on the mat. It was warm and happy there."],
    ["A dog barks at night in the village.", "Dogs were barking all night long."],
    ["He didn't go to school today, because of the heavy rain.", "It rained.", "Rain kept him at home the whole day."],
    ["Nobody knows the trouble that I have seen here."],
]
PREDICTIONS = [
    "It was happy. The cat is sitting on the mat.",
    "Dogs barked the whole night in the village.",
    "Because of heavy rain, he stayed at home the whole day!",
    "Something quite different",
]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("nltk.download", refuse)


def _values(references: list[list[str]], predictions: list[str]) -> dict[str, Any]:
    arrays = as_arrays(references, predictions)
    return {name: compute_metric(spec, arrays) for name, spec in METRICS.items()}


def test_rouge_is_that_of_rouge_score() -> None:
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds, use_stemmer=True)

    def lines(text: str) -> str:
        return text.replace(". ", ".\n")

    found = _values(REFERENCES, PREDICTIONS)
    for kind in kinds:
        best = [
            scorer.score_multi(list(map(lines, texts)), lines(prediction))[kind].fmeasure
            for texts, prediction in zip(REFERENCES, PREDICTIONS, strict=True)
        ]
        assert found[kind] == pytest.approx(np.mean(best)), kind
    assert found["rougeLsum"] != pytest.approx(found["rougeL"])


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    streams = [[texts[index] if index < len(texts) else None for texts in REFERENCES] for index in range(3)]
    found = _values(REFERENCES, PREDICTIONS)
    assert 0 < found["bleu"] == pytest.approx(BLEU().corpus_score(PREDICTIONS, streams).score)
    assert 0 < found["chrf"] == pytest.approx(CHRF().corpus_score(PREDICTIONS, streams).score)


def test_known_values() -> None:
    # 3 of 6 predicted words are among the 4 of the reference, in order: F1 2 * (1/2 * 3/4) / (1/2 + 3/4); one of 5 and 3 pairs.
    found = _values([["the quick brown fox"]], ["the slow brown fox over there"])
    assert found["rouge1"] == pytest.approx(0.6)
    assert found["rougeL"] == pytest.approx(0.6)
    assert found["rouge2"] == pytest.approx(0.25)
    assert found["exact_match"] == 0.0


@pytest.mark.parametrize("choice", [0, -1])
def test_references_as_predictions_are_perfect(choice: int) -> None:
    found = _values(REFERENCES, [texts[choice] for texts in REFERENCES])
    assert found == {name: pytest.approx(100.0 if name in ("bleu", "chrf") else 1.0) for name in METRICS}


def test_what_nobody_could_score_does_not_count() -> None:
    texts = ["5", "Ja", "今日は雨です。"]
    found = _values([[text] for text in texts], texts)
    assert found == {
        "rouge1": 1.0,
        "rougeL": 1.0,
        "rougeLsum": 1.0,
        "rouge2": None,
        "bleu": None,
        "chrf": 100.0,
        "exact_match": 1.0,
    }


def test_exact_match_overlooks_white_space_alone() -> None:
    references = [["a b"], ["a b", "c\nd"], ["A b"], [""], ["x"]]
    assert _values(references, [" a  b\n", "c d", "a b", "", "y"])["exact_match"] == pytest.approx(3 / 5)


def test_empty_predictions_score_nothing_and_no_examples_have_no_score() -> None:
    found = _values(REFERENCES, [""] * 4)
    assert set(found.values()) == {0.0}
    assert set(_values([], []).values()) == {None}
    assert signatures(**as_arrays([], [])) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "no." Then left.', ['He said "no."', "Then left."]),
        ("about 3.5 m, i.e. little", ["about 3.5 m, i.e. little"]),
        ("first line\nsecond one\n\n third", ["first line", "second one", " third"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_resampled_versions_are_the_metric_of_those_examples() -> None:
    arrays = as_arrays(REFERENCES, PREDICTIONS)
    for name, spec in METRICS.items():
        fast = RESAMPLED[name](arrays["references"], arrays["predictions"])
        for indices in (np.arange(4), np.array([2, 2, 0, 1]), np.array([3])):
            expected = compute_metric(spec, {key: array[indices] for key, array in arrays.items()})
            assert fast(indices) == pytest.approx(expected), name


def test_intervals_hold_the_value() -> None:
    arrays = as_arrays(REFERENCES * 20, PREDICTIONS * 20)
    found = headline_intervals(list(METRICS.values()), arrays, RESAMPLED)
    assert set(found) == set(METRICS)
    for name, (low, high) in found.items():
        assert low <= compute_metric(METRICS[name], arrays) <= high
    assert found["bleu"][0] < found["bleu"][1]
    assert found["bleu"] == bootstrap_interval(RESAMPLED["bleu"](arrays["references"], arrays["predictions"]), 80)


def test_signatures_say_how() -> None:
    found = signatures(**as_arrays(REFERENCES, PREDICTIONS))
    assert found["bleu"].startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrf"].startswith("nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_they_work_as_metrics_of_evaluate() -> None:
    for references in (REFERENCES, [texts[:1] for texts in REFERENCES]):
        found = as_evaluate_metric("rougeL").compute(references=references, predictions=PREDICTIONS)
        assert found == {"rougeL": pytest.approx(_values(references, PREDICTIONS)["rougeL"])}


def test_words_are_stemmed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generated_text._tokenizer.cache_clear()
    generated_text._scorer.cache_clear()
    generated_text._rouge.cache_clear()
    stem = generated_text._tokenizer()._stemmer.stem
    _values([["running horses"]] * 5, ["running horses are running"] * 5)
    assert stem.cache_info().misses == 2
