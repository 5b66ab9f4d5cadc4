"""The references of the benchmark: they score as ftkit scores, right answers score one, and what they cannot do they refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ftkit.errors import RecipeError
from ftkit.run.wiring import make_accelerator
from ftkit.training.evaluation import evaluate
from tests.benchmarks.test_parity import train_ours
from tests.benchmarks.tiny_tasks import ROWS, SQUAD2, TASKS, Tiny

EVERY = [*((name, None) for name in TASKS), ("question-answering", SQUAD2)]


def reference_for(sides: Any, request: dict[str, Any]) -> Any:
    measure = sides("measure")
    return measure.make_reference(measure.planned(request))


def in_bounds(name: str, value: float) -> bool:
    return value > 0 if name in ("loss", "perplexity") else 0 <= value <= 1


# --- both sides of one checkpoint ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "tiny"), EVERY)
def test_both_ways_to_evaluate_a_checkpoint_agree(
    sides: Any, request_for: Any, tmp_path: Path, task: str, tiny: Tiny | None
) -> None:
    reference = reference_for(sides, request_for(task, tiny=tiny, epochs=12.0))
    prepared = reference.prepared
    model, _ = train_ours(prepared)
    model.save_pretrained(tmp_path / "trained")
    ours = evaluate(
        model,
        prepared.task,
        prepared.stores["test"],
        prepared.splits.test,
        prepared.tokenizer,
        batch_size=3,
        max_tokens=None,
        accelerator=make_accelerator("fp32", trackers=[], folder=None),
    ).metrics

    def theirs(checkpoint: str) -> dict[str, float]:
        trainer = reference.trainer(reference.load(tmp_path / checkpoint), [], str(tmp_path / "trainer"))
        return sides("measure").test_scores(reference, trainer)

    found = theirs("trained")
    assert found == pytest.approx({name: ours[name] for name in reference.metrics}, abs=1e-6)
    assert found != pytest.approx(theirs("model"), abs=1e-3), "training changed what is measured"


@pytest.mark.parametrize("task", TASKS)
def test_both_sides_do_the_same_work(sides: Any, request_for: Any, task: str) -> None:
    request, kinds = request_for(task, "{name: lora, rank: 4}", epochs=1.0), sides("measure").KINDS
    start, ours, theirs = (kinds[kind](request) for kind in ("start", "ftkit", "trainer"))
    for name in ("loss", "gradient_norm"):
        assert start["ftkit"][name] == pytest.approx(start["trainer"][name], rel=1e-5)
    assert start["ftkit"]["trainable"] == start["trainer"]["trainable"] == ours["trainable"] == theirs["trainable"]
    assert start["ftkit"]["steps"] == start["trainer"]["steps"] == ours["steps"] == theirs["steps"]
    train = start["examples"]["train"]
    assert train["rows"] == ROWS["train"]
    assert train["ftkit"] == train["trainer"] == train["same"]
    assert set(start["metrics"]) == set(ours["metrics"]) == set(theirs["metrics"])
    assert all(in_bounds(name, value) for side in (ours, theirs) for name, value in side["metrics"].items())


# --- right answers score one -----------------------------------------------------------------------------------------


def one_hot(places: np.ndarray, width: int) -> np.ndarray:
    """Logits that are 30 at a place: (..., width)."""
    return 30.0 * np.eye(width)[places]


def test_gold_tags_score_one_and_a_wrong_end_is_a_wrong_entity(sides: Any, request_for: Any) -> None:
    reference = reference_for(sides, request_for("token-classification"))
    rows = reference.prepared.rows("test")
    batch = reference.collator()(
        [{**example, "labels": list(example["labels"])} for example in reference.examples(rows, training=False)]
    )
    labels, names = batch["labels"].numpy(), reference.prepared.task.head().config["id2label"]
    gold = SimpleNamespace(predictions=one_hot(np.maximum(labels, 0), len(names)), label_ids=labels)
    assert reference.score(gold, [], rows) == {"f1": 1.0, "precision": 1.0, "recall": 1.0}

    names = {0: "O", 1: "B-LOC", 2: "I-LOC"}
    true, predicted = np.array([[-100, 1, -100, 2, 0, 1]]), np.array([[1, 1, 0, 0, 0, 1]])
    found = sides("token_classification").entity_scores(one_hot(predicted, 3), true, names)
    assert found == {"f1": 0.5, "precision": 0.5, "recall": 0.5}


@pytest.mark.parametrize("tiny", [TASKS["question-answering"], SQUAD2])
def test_gold_spans_score_one_through_windows(sides: Any, request_for: Any, tiny: Tiny) -> None:
    reference = reference_for(sides, request_for("question-answering", tiny=tiny))
    rows = reference.prepared.rows("test")
    examples = reference.examples(rows, training=True)
    assert len(examples) > len(rows), "some contexts take two windows"
    logits = [
        one_hot(np.array([example[name] for example in examples]), len(examples[0]["input_ids"]))
        for name in ("start_positions", "end_positions")
    ]
    gold = SimpleNamespace(predictions=tuple(logits))
    assert reference.score(gold, examples, rows) == {"exact_match": 1.0, "f1": 1.0}
    assert reference.score(SimpleNamespace(predictions=(logits[0], logits[0])), examples, rows)["exact_match"] < 1


def test_certain_tokens_have_a_perplexity_of_one(sides: Any, request_for: Any) -> None:
    reference = reference_for(sides, request_for("language-modeling"))
    rows = reference.prepared.rows("test")
    batch = reference.collator()(reference.examples(rows, training=False))
    following = torch.roll(batch["input_ids"], -1, dims=1).numpy()
    loss, count = sides("language_modeling").summed_loss(torch.tensor(one_hot(following, 64)), batch["labels"])
    tokens = sum(len(row["text"].split()) + 1 for row in rows)
    blocks = sum(-(-(len(row["text"].split()) + 1) // 16) for row in rows)
    assert count == tokens - blocks, "all words and end tokens but the first token of each block"
    assert reference.score((loss, count), [], rows) == pytest.approx({"perplexity": 1.0, "loss": 0.0}, abs=1e-6)


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "f1"),
    [
        ("The cat!", ["cat"], 1.0, 1.0),
        ("a black cat", ["cat", "black dog"], 0.0, 2 / 3),
        ("cat cat", ["cat"], 0.0, 2 / 3),
        ("", [], 1.0, 1.0),
        ("cat", [], 0.0, 0.0),
        ("", ["cat"], 0.0, 0.0),
        ("dog", ["the", "dog"], 1.0, 1.0),
    ],
)
def test_answers_score_by_the_formulas_of_squad(sides: Any, answer: str, golds: list[str], exact: float, f1: float) -> None:
    found = sides("question_answering").squad_scores([answer], [golds])
    assert found == pytest.approx({"exact_match": exact, "f1": f1})


def test_best_answer_weighs_windows_and_no_answer(sides: Any) -> None:
    best_answer = sides("question_answering").best_answer
    offsets = [None, (0, 3), (4, 7), None]
    weak = (np.array([0.0, 1.0, 0.0, 9.0]), np.array([0.0, 0.0, 1.0, 9.0]), offsets)
    strong = (np.array([5.0, 0.0, 4.0, 0.0, 9.0]), np.array([5.0, 3.0, 2.0, 0.0, 9.0]), offsets)
    rule = {"count": 5, "longest": 2, "threshold": None}
    assert best_answer("abc def", [weak, strong], **rule) == "def", "4 + 2 in the second window; its padding is no choice"
    assert best_answer("abc def", [weak], **rule) == "abc def"
    assert best_answer("abc def", [weak], **{**rule, "longest": 1}) == "abc"
    assert best_answer("abc def", [strong], **{**rule, "threshold": 0.0}) == "", "10 for no answer against 6"
    assert best_answer("abc def", [strong], **{**rule, "threshold": 4.5}) == "def"
    assert best_answer("abc def", [weak, strong], **{**rule, "threshold": 0.0}) == "def", "no answer scores 0 in the first window"
    assert best_answer("abc def", [(np.zeros(4), np.zeros(4), [None] * 4)], **rule) == "empty"


def test_an_answer_in_the_last_token_of_a_window(sides: Any) -> None:
    answer_tokens = sides("question_answering").answer_tokens
    window = [None, None, (0, 3), (4, 7), (7, 9), None]
    assert answer_tokens(window, [("ef", 7)]) == (4, 4)
    assert answer_tokens(window, [("abc", 0), ("ef", 7)]) == (2, 2), "the first answer is learned"
    assert answer_tokens(window, [("g", 10)]) is None
    assert answer_tokens(window, []) is None


def test_blocks_keep_documents_apart(sides: Any) -> None:
    blocks = sides("language_modeling").blocks
    first, second = blocks([[11, 12, 13], [14, 15, 16]], 4)
    assert first == {"input_ids": [11, 12, 13, 14], "labels": [-100, 12, 13, -100], "position_ids": [0, 1, 2, 0]}
    assert second == {"input_ids": [15, 16], "labels": [-100, 16], "position_ids": [0, 1]}
    (alone,) = blocks([[11, 12, 13]], 4)
    assert alone == {"input_ids": [11, 12, 13], "labels": [-100, 12, 13], "attention_mask": [1, 1, 1]}


def test_packed_documents_do_not_see_each_other(sides: Any, request_for: Any) -> None:
    reference = reference_for(sides, request_for("language-modeling"))
    model = reference.model().eval()
    packed, alone = (
        reference.collator()(list(sides("language_modeling").blocks(documents, 8)))
        for documents in ([[11, 12, 13], [14, 15, 16]], [[14, 15, 16]])
    )
    with torch.no_grad():
        logits = [model(**batch).logits[0] for batch in (packed, alone)]
    torch.testing.assert_close(logits[0][3:6], logits[1])


# --- finding and refusing --------------------------------------------------------------------------------------------

ADDED = """
from sides.language_modeling import LanguageModeling


class Added(LanguageModeling):
    task = "added"
"""


def test_a_file_is_enough_to_add_a_reference(sides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides("common")
    package = sys.modules["sides"]
    assert set(package.references()) == set(TASKS)
    (tmp_path / "added.py").write_text(ADDED, encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert set(package.references()) == {*TASKS, "added"}
    del sys.modules["sides.added"]


@pytest.mark.parametrize(
    ("task", "options", "train", "key"),
    [
        ("text-classification", {"long_texts": "windows"}, {}, "task.long_texts"),
        ("text-classification", {"focal_gamma": 2.0}, {}, "task.focal_gamma"),
        ("text-classification", {"class_weights": "balanced"}, {}, "task.class_weights"),
        ("token-classification", {"labeling": "all"}, {}, "task.labeling"),
        ("token-classification", {"on_invalid": "repair"}, {}, "task.on_invalid"),
        ("token-classification", {"scheme": "none", "metrics": ["accuracy"]}, {}, "task.metrics"),
        ("question-answering", {}, {"label_smoothing": 0.1}, "train.label_smoothing"),
        ("language-modeling", {"stride": 8}, {}, "task.stride"),
        ("language-modeling", {}, {"max_tokens": 64}, "train.max_tokens"),
    ],
)
def test_what_the_example_scripts_cannot_do_is_refused(
    sides: Any, request_for: Any, task: str, options: dict[str, Any], train: dict[str, Any], key: str
) -> None:
    request = request_for(task, options=options, **train)
    with pytest.raises(RecipeError, match=key):
        reference_for(sides, request)


def test_a_threshold_that_validation_rows_decide_is_refused(sides: Any, request_for: Any) -> None:
    request = {**request_for("question-answering", tiny=SQUAD2), "overrides": ["data.split.validation=0.3"]}
    with pytest.raises(RecipeError, match=r"task\.no_answer_threshold"):
        reference_for(sides, request)
    request["overrides"].append("task.no_answer_threshold=0.5")
    assert reference_for(sides, request).prepared.splits.validation is not None


def test_validation_files_are_not_read(sides: Any, request_for: Any) -> None:
    request = {**request_for("language-modeling"), "overrides": ["data.validation=missing.jsonl"]}
    assert reference_for(sides, request).prepared.splits.validation is None


def test_a_task_without_reference_is_refused(sides: Any, request_for: Any) -> None:
    request = request_for("language-modeling", options={"name": "instruction-tuning", "packing": False})
    with pytest.raises(RecipeError, match=r"no equal of the task instruction-tuning"):
        reference_for(sides, {**request, "overrides": ["task={name: instruction-tuning}"]})


def test_windows_that_differ_are_not_compared(sides: Any, request_for: Any) -> None:
    """ftkit fills the last window up to the left, run_qa.py leaves it short."""
    reference = reference_for(sides, request_for("question-answering", options={"stride": 5}))
    examples = reference.examples(reference.prepared.rows("train"), training=True)
    same = sides("measure").same_examples(reference, examples)
    long = sum(len(row["context"].split()) > 18 for row in reference.prepared.rows("train"))
    assert len(examples) == len(reference.prepared.stores["train"]) == ROWS["train"] + long
    assert len(same) == len(examples) - long
    assert all(len(examples[theirs]["input_ids"]) == 24 for _, theirs in same)
