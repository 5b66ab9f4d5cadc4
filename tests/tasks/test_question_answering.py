from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import ftkit
from ftkit.errors import DataError
from ftkit.models.facts import ModelFacts
from ftkit.registry import TASKS
from ftkit.tasks.base import Batch, Features, Prediction, Row, RowError
from ftkit.tasks.question_answering import Options, QuestionAnswering
from tests.tiny import DECODERS, ENCODER_DECODERS, ENCODERS, save_tiny, tiny_config, tiny_tokenizer

GENERATOR = random.Random(5)
LONG = " ".join(f"w{GENERATOR.randrange(41)}" for _ in range(200))
WORD_STARTS = [0, *(index + 1 for index, character in enumerate(LONG) if character == " ")]


def asked(first: int, count: int, question: str = "w1 w2 w3") -> Row:
    """A question about the 200 words whose answer is `count` words from word `first` on (0 words: none)."""
    text = " ".join(LONG.split()[first : first + count])
    answers = {"text": [text], "answer_start": [WORD_STARTS[first]]} if count else {"text": [], "answer_start": []}
    return {"question": question, "context": LONG, "answers": answers}


SEAMS = [asked(first, count) for count in (1, 5, 9) for first in range(0, 201 - count)]
NONE = [asked(0, 0, f"w{number}") for number in range(5)]
SHORT = {"question": "w1", "context": "w2 w3 w4", "answers": [{"text": "w3 w4", "answer_start": 3}]}


def make(rows: Sequence[Row] = (), **options: Any) -> QuestionAnswering:
    task = QuestionAnswering(Options(**{"max_length": 32, "stride": 8, **options}))
    if rows:
        for row in rows:
            task.check_row(row)
        task.learn(rows)
    return task


def facts(max_positions: int | None) -> ModelFacts:
    return ModelFacts(
        kind="encoder", model_type="bert", hidden_size=16, block_count=2, max_positions=max_positions, vocab_size=64, path=None
    )


def numbered(features: list[Features]) -> list[Features]:
    return [{**item, "example": item["row"]} for item in features]


def gold_outputs(batch: Batch, size: float = 10.0) -> Any:
    count = batch["input_ids"].shape[1]
    return SimpleNamespace(
        start_logits=size * torch.nn.functional.one_hot(batch["starts"], count),
        end_logits=size * torch.nn.functional.one_hot(batch["ends"], count),
    )


def predicted(
    task: QuestionAnswering, rows: Sequence[Row], tokenizer: Any, batch_size: int, outputs: Any = gold_outputs
) -> list[Prediction]:
    features = numbered(task.encode(rows, tokenizer))
    random.Random(batch_size).shuffle(features)
    parts: dict[int, list[Prediction]] = {}
    for start in range(0, len(features), batch_size):
        batch = task.collate(features[start : start + batch_size], tokenizer)
        for part in task.predictions(outputs(batch), batch):
            parts.setdefault(part["example"], []).append(part)
    assert sorted(parts) == list(range(len(rows)))
    return [task.combine(parts[example]) for example in sorted(parts)]


def model_for(family: str, task: QuestionAnswering) -> Any:
    import transformers

    head = task.head()
    torch.manual_seed(0)
    return getattr(transformers, head.auto_class).from_config(tiny_config(family, **head.config)).eval()


# --- options, columns, defaults ------------------------------------------------------------------------------------


def test_it_is_found_by_name() -> None:
    assert TASKS.get("question-answering") is QuestionAnswering


def test_columns_say_what_is_needed() -> None:
    assert [(name, column.required, column.target) for name, column in make().columns().items()] == [
        ("question", True, False),
        ("context", True, False),
        ("answers", True, True),
        ("answer_start", False, True),
        ("is_impossible", False, True),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 17}, "stride: 17 is more than half of max_length, 32"),
        ({"no_answer": False, "no_answer_threshold": 1.0}, "no_answer_threshold: under `no_answer: false`"),
        ({"no_answer": False, "metrics": ["no_answer_accuracy"]}, "metrics: no_answer_accuracy needs questions without"),
        ({"metrics": ["exact"]}, "metrics: there is no metric 'exact' here; did you mean 'exact_match'?"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    assert message in make(**options).check_options()


@pytest.mark.parametrize("options", [{}, {"stride": 16}, {"no_answer": False}, {"no_answer": True, "no_answer_threshold": -3}])
def test_good_options(options: dict[str, Any]) -> None:
    assert make(**options).check_options() == ""


@pytest.mark.parametrize(
    "options",
    [{"max_length": 8}, {"stride": -1}, {"max_answer_length": 0}, {"n_best": 0}, {"no_answer": "maybe"}, {"metrics": []}],
)
def test_options_that_are_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**options)


def test_defaults_come_with_their_source() -> None:
    auto = make(max_length="auto", stride="auto")
    found = {positions: auto.defaults(facts(positions)) for positions in (128, 512, None)}
    assert [(d["task.max_length"].value, d["task.stride"].value) for d in found.values()] == [(128, 42), (384, 128), (384, 128)]
    assert make(max_length=512, stride="auto").defaults(facts(512))["task.stride"].value == 128
    assert found[128]["task.metrics"].value == [spec.name for spec in auto.metrics()][:-1]
    assert make(no_answer=False).defaults(facts(128))["task.metrics"].value == ["f1", "exact_match"]


def test_a_length_that_the_model_cannot_take_is_refused() -> None:
    assert "max_length is 384, but bert takes at most 128 tokens" in make(max_length=384).refusal(facts(128))
    assert make(max_length=384).refusal(facts(None)) == make(max_length="auto").refusal(facts(128)) == ""


def test_metrics_before_anything_is_learned() -> None:
    specs = make().metrics()
    assert [spec.name for spec in specs][:2] == ["f1", "exact_match"]
    assert {spec.name for spec in specs if spec.headline} == {"f1", "exact_match"}
    assert [spec.name for spec in make(metrics=["exact_match"]).metrics()] == ["exact_match", "loss"]


# --- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "row", "column", "message"),
    [
        ({}, {**SHORT, "question": " "}, "question", "the text is empty"),
        ({}, {**SHORT, "context": None}, "context", "the text is missing"),
        ({}, {**SHORT, "answers": None}, "answers", "the answers are missing"),
        ({}, {**SHORT, "answers": "w4", "answer_start": 3}, "answers", "the context has 'w3' at 3, but the answer is 'w4'"),
        ({"no_answer": False}, {**SHORT, "answers": []}, "answers", "the question has no answer, but `no_answer: false`"),
    ],
)
def test_rows_that_do_not_fit(options: dict[str, Any], row: Row, column: str, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        make(**options).check_row(row)
    assert caught.value.column == column


def test_whether_there_may_be_no_answer_is_learned() -> None:
    task = make([SHORT])
    assert task.state() == {"no_answer": False}
    with pytest.raises(RowError, match="the question has no answer, but every training row has one") as caught:
        task.check_learned(NONE[0])
    assert "task.no_answer" in caught.value.hint
    task.check_learned({"question": "w1", "context": "w2"})
    for task in (make([SHORT, NONE[0]]), make([SHORT], no_answer=True)):
        assert task.state() == {"no_answer": True}
        task.check_learned(NONE[0])


def test_training_rows_without_any_answer_are_refused() -> None:
    with pytest.raises(DataError, match="no training row has an answer"):
        make(NONE)


def test_state_survives_json() -> None:
    learned, restored = make([SHORT, *NONE]), make()
    restored.restore(json.loads(json.dumps(learned.state())))
    assert restored.state() == learned.state()
    assert restored.head() == learned.head()


def test_descriptions() -> None:
    assert make().describe(iter([SHORT, *NONE])) == {
        "rows": 6,
        "contexts": 2,
        "rows_without_answer": 5,
        "question_characters": {"min": 2, "median": 2.0, "mean": 2.0, "max": 2},
        "context_characters": {"min": 8, "median": len(LONG), "mean": (8 + 5 * len(LONG)) / 6, "max": len(LONG)},
        "answer_characters": {"min": 5, "median": 5, "mean": 5.0, "max": 5},
    }
    assert make().describe([{"question": "w1", "context": "w2"}])["rows_without_answer"] == 0


# --- features ------------------------------------------------------------------------------------------------------


def test_a_window_knows_the_characters_of_its_tokens() -> None:
    feature = make().encode([SHORT], tiny_tokenizer())[0]
    assert feature == {
        "input_ids": [2, 8, 3, 9, 10, 11, 3],
        "context_at": 3,
        "char_starts": [0, 3, 6],
        "char_ends": [2, 5, 8],
        "null_at": 0,
        "window": 0,
        "windows": 1,
        "start": 4,
        "end": 5,
        "length": 7,
        "truncated": False,
        "row": 0,
    }


def test_token_types_tell_question_from_context() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    features = make().encode([SHORT, asked(3, 2)], tokenizer)
    assert features[0]["token_type_ids"] == [0, 0, 0, 1, 1, 1, 1]
    for item in features:
        assert item["token_type_ids"] == [0] * item["context_at"] + [1] * (item["length"] - item["context_at"])


def test_windows_without_the_answer_point_at_the_null_token() -> None:
    features = make().encode([asked(30, 2)], tiny_tokenizer())
    assert [item["window"] for item in features] == list(range(features[0]["windows"]))
    holding = [item for item in features if item["start"] != item["null_at"]]
    assert 1 <= len(holding) < len(features)
    for item in holding:
        first, last = (item[key] - item["context_at"] for key in ("start", "end"))
        assert LONG[item["char_starts"][first] : item["char_ends"][last]] == " ".join(LONG.split()[30:32])
    assert all((item["start"], item["end"]) == (0, 0) for item in features if item not in holding)


def test_training_leaves_out_answers_that_no_window_holds() -> None:
    task, tokenizer = make(), tiny_tokenizer()
    rows = [asked(0, 3), asked(10, 40), NONE[0], SHORT]
    assert {item["row"] for item in task.encode(rows, tokenizer, training=True)} == {0, 2, 3}
    evaluated = task.encode(rows, tokenizer)
    assert {item["row"] for item in evaluated} == {0, 1, 2, 3}
    assert all(item["start"] == item["end"] == item["null_at"] for item in evaluated if item["row"] in (1, 2))
    assert "no window holds the whole answer" in task.left_out


def test_more_rows_than_one_call_takes() -> None:
    rows = [{**SHORT, "question": f"w{number % 40}"} for number in range(2100)]
    features = make().encode(rows, tiny_tokenizer())
    assert [item["row"] for item in features] == list(range(2100))
    assert all(item["input_ids"][1] == 7 + number % 40 for number, item in enumerate(features))


def test_an_unfilled_length_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="max_length or stride is still `auto`"):
        make(max_length="auto").encode([SHORT], tiny_tokenizer())


def test_inspection_shows_what_is_asked_for() -> None:
    task, tokenizer = make([SHORT]), tiny_tokenizer()
    assert task.inspect(task.encode([SHORT], tokenizer)[0], tokenizer) == [
        ("<cls>", "special token"),
        ("w1", ""),
        ("<sep>", "special token"),
        ("w2", ""),
        ("w3", "answer"),
        ("w4", "answer"),
        ("<sep>", "special token"),
    ]
    long = task.encode([{**asked(199, 1), "question": "w1 " * 30}], tokenizer)
    shown = task.inspect(long[0], tokenizer)
    assert shown[0] == ("<cls>", "no answer here")
    assert [note for token, note in shown if not token] == ["the end of the question was cut", f"window 1 of {len(long)}"]


# --- gold in, perfect score out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_gold_logits_score_one_on_every_seam(family: str, batch_size: int) -> None:
    rows = [*SEAMS[:: 7 if batch_size == 1 else 1], *NONE, SHORT, {**asked(90, 3), "question": "w5 " * 40}]
    task = make(rows)
    predictions = predicted(task, rows, tiny_tokenizer(family), batch_size)
    scores = task.score(predictions, rows)
    assert scores == dict.fromkeys(scores, 1.0)
    assert len(scores) == 5
    for prediction, row in zip(predictions, rows, strict=True):
        shown = task.present(prediction, row)
        if row in NONE:
            assert (shown["answer"], shown["start"], shown["end"]) == ("", None, None)
        else:
            assert row["context"][shown["start"] : shown["end"]] == shown["answer"]
            expected = row["answers"]["answer_start"][0] if isinstance(row["answers"], dict) else 3
            assert shown["start"] == expected


# --- from logits to answers ----------------------------------------------------------------------------------------


def window_outputs(values: dict[str, float]) -> Any:
    """Logits by token text (both of start and end) of tiny tokenizer words, 0 elsewhere; `<null>`: the null token."""
    ids = {tiny_tokenizer().convert_tokens_to_ids(word): value for word, value in values.items() if word != "<null>"}

    def outputs(batch: Batch) -> Any:
        logits = torch.zeros(batch["input_ids"].shape)
        for token, value in ids.items():
            logits[batch["input_ids"] == token] = value
        logits[torch.arange(len(logits)), batch["null_at"]] = values.get("<null>", 0.0)
        return SimpleNamespace(start_logits=logits, end_logits=logits)

    return outputs


def test_neither_question_nor_special_tokens_nor_padding_are_answers() -> None:
    rows = [SHORT, asked(0, 1)]
    task = make(rows, alternatives=20)
    found = predicted(task, rows, tiny_tokenizer(), 7, window_outputs({"w1": 99.0, "<sep>": 99.0, "<pad>": 99.0, "<null>": 99.0}))
    shown = task.present(found[0], SHORT)
    assert all(entry["answer"] in SHORT["context"] and entry["answer"] for entry in shown["n_best"])


def test_the_longest_answer_is_counted_in_tokens() -> None:
    values = {"w2": 5.0, "w4": 5.0}
    answers = {}
    for longest in (1, 2, 3):
        task = make([SHORT], max_answer_length=longest)
        answers[longest] = task.present(predicted(task, [SHORT], tiny_tokenizer(), 1, window_outputs(values))[0], SHORT)["answer"]
    assert answers[3] in ("w2", "w4", "w2 w3 w4")
    assert {answers[1], answers[2]} <= {"w2", "w4"}
    spans = make([SHORT], max_answer_length=2, alternatives=20)
    texts = [entry["answer"] for entry in spans.present(predicted(spans, [SHORT], tiny_tokenizer(), 1)[0], SHORT)["n_best"]]
    assert sorted(texts) == ["w2", "w2 w3", "w3", "w3 w4", "w4"]


def test_no_answer_scores_as_in_the_window_where_it_scores_least() -> None:
    task = make([SHORT, *NONE])
    row = asked(100, 2)

    def outputs(batch: Batch) -> Any:
        gold = gold_outputs(batch)
        # Windows without the answer are even surer of that than the right one is of its answer.
        nothing = batch["starts"] == batch["null_at"]
        return SimpleNamespace(
            start_logits=torch.where(nothing[:, None], gold.start_logits * 3, gold.start_logits), end_logits=gold.end_logits
        )

    prediction = predicted(task, [row], tiny_tokenizer(), 7, outputs)[0]
    assert prediction["null"] == 0.0
    assert task.present(prediction, row)["answer"] == row["answers"]["text"][0]


def test_present_shows_shares_of_one_probability() -> None:
    task = make([SHORT, *NONE], n_best=3, alternatives=4)
    prediction = predicted(task, [SHORT], tiny_tokenizer(), 1, window_outputs({"w3": 1.0, "<null>": 0.5}))[0]
    shown = task.present(prediction, SHORT)
    assert shown["answer"] == "w3"
    assert len(shown["n_best"]) == 4
    assert sum(entry["score"] for entry in shown["n_best"]) == pytest.approx(1.0)
    assert shown["score"] == shown["n_best"][0]["score"] == max(entry["score"] for entry in shown["n_best"])
    assert {"answer": "", "start": None, "end": None} in [
        {key: value for key, value in entry.items() if key != "score"} for entry in shown["n_best"]
    ]
    json.dumps(shown)
    assert len(make([SHORT, *NONE], n_best=3, alternatives=2).present(prediction, SHORT)["n_best"]) == 2
    assert make([SHORT, *NONE], n_best=3).present(prediction, SHORT) == {
        key: shown[key] for key in ("answer", "start", "end", "score")
    }


def test_metrics_that_repeat_others_are_left_out_where_every_question_has_an_answer() -> None:
    """SQuAD 1.1; the plan names the usual metrics whatever the rows are."""
    usual = ["f1", "exact_match", "has_answer_f1", "has_answer_exact_match", "no_answer_accuracy"]
    for rows, options, expected in (
        ([SHORT], {"metrics": usual}, ["f1", "exact_match"]),
        ([SHORT], {}, ["f1", "exact_match"]),
        ([SHORT, *NONE], {"metrics": usual}, usual),
        ([SHORT], {"metrics": ["has_answer_f1"]}, ["has_answer_f1"]),
    ):
        task = make(rows, **options)
        assert list(task.score(predicted(task, [SHORT], tiny_tokenizer(), 1), [SHORT])) == expected
    task = make([SHORT], metrics=usual)
    assert list(task.score(predicted(task, [SHORT], tiny_tokenizer(), 1), [SHORT], ["has_answer_f1"])) == ["has_answer_f1"]


def test_metrics_that_the_recipe_counts_on_are_always_there() -> None:
    """`expect` and `train.best_metric` are read off the results, which would lack them on SQuAD 1.1."""
    usual = ["f1", "exact_match", "has_answer_f1", "has_answer_exact_match", "no_answer_accuracy"]
    task = make(metrics=usual)
    task.counted_on = {"has_answer_f1": "expect.has_answer_f1"}
    task.learn([SHORT])
    found = task.score(predicted(task, [SHORT], tiny_tokenizer(), 1), [SHORT])
    assert found == {"f1": 1.0, "exact_match": 1.0, "has_answer_f1": 1.0}
    task.counted_on = {"no_answer_accuracy": "expect.no_answer_accuracy"}
    with pytest.raises(DataError, match=r"expect\.no_answer_accuracy: no_answer_accuracy is over questions without an answer"):
        task.learn([SHORT])
    task.learn([SHORT, *NONE])


def test_a_context_without_tokens_gets_no_answer() -> None:
    row = {"question": "w1", "context": "\u200b"}
    task, tokenizer = make([SHORT]), tiny_tokenizer()
    task.check_row(row)
    feature = {**task.encode([row], tokenizer)[0], "char_starts": [], "char_ends": [], "example": 0}
    batch = task.collate([feature], tokenizer)
    outputs = SimpleNamespace(start_logits=torch.zeros(batch["input_ids"].shape), end_logits=torch.zeros(batch["input_ids"].shape))
    prediction = task.combine(task.predictions(outputs, batch))
    assert task.present(prediction, row)["answer"] == ""
    assert task.score([prediction], [SHORT])["f1"] == 0.0


def test_a_missing_window_is_noticed() -> None:
    task, tokenizer = make([SHORT]), tiny_tokenizer()
    features = numbered(task.encode([asked(0, 1)], tokenizer))[:-1]
    batch = task.collate(features, tokenizer)
    with pytest.raises(RuntimeError, match=r"example 0: \d+ windows were predicted, it has \d+"):
        task.combine(task.predictions(gold_outputs(batch), batch))


def test_several_acceptable_answers_all_count_and_the_first_is_learned() -> None:
    row = {**SHORT, "answers": {"text": ["w3", "w4"], "answer_start": [3, 6]}}
    task, tokenizer = make([row]), tiny_tokenizer()
    feature = task.encode([row], tokenizer)[0]
    assert (feature["start"], feature["end"]) == (4, 4)
    for word, score in {"w2": 0.0, "w3": 1.0, "w4": 1.0}.items():
        predictions = predicted(task, [row], tokenizer, 1, window_outputs({word: 9.0}))
        assert task.score(predictions, [row], ["exact_match"]) == {"exact_match": score}


def test_numbers_that_are_not_finite_score_nothing() -> None:
    rows = [SHORT, *NONE]
    task = make(rows)
    for values in ({"w3": float("nan")}, {"<null>": float("nan")}):
        predictions = predicted(task, rows, tiny_tokenizer(), 3, window_outputs(values))
        assert set(task.score(predictions, rows).values()) == {None}
        assert task.score(predictions, rows, ["f1", "loss"]) == {"f1": None}
        assert task.intervals(predictions, rows) == task.details(predictions, rows) == task.calibrate(predictions, rows) == {}


# --- the threshold -------------------------------------------------------------------------------------------------


def leaning_outputs(batch: Batch) -> Any:
    """Right about everything but too fond of no answer, by 8 in both logits together."""
    gold = gold_outputs(batch, 3.0)
    rows = torch.arange(len(batch["null_at"]))
    for logits in (gold.start_logits, gold.end_logits):
        logits[rows, batch["null_at"]] += 4.0
    return gold


def test_the_threshold_is_tuned_on_validation_rows_and_then_in_force() -> None:
    rows = [*SEAMS[::40], *NONE]
    task = make(rows)
    predictions = predicted(task, rows, tiny_tokenizer(), 7, leaning_outputs)
    before = task.score(predictions, rows)
    assert (before["no_answer_accuracy"], before["has_answer_f1"]) == (1.0, 0.0)
    task.calibration = json.loads(json.dumps(task.calibrate(predictions, rows)))
    # Answered: 8 - 6; without an answer: 14 - 0.
    assert task.calibration == {"no_answer_threshold": pytest.approx(8.0)}
    after = task.score(predictions, rows)
    assert after == dict.fromkeys(after, 1.0)
    assert task.present(predictions[0], rows[0])["answer"] == rows[0]["answers"]["text"][0]
    assert task.present(predictions[-1], rows[-1])["answer"] == ""
    table = task.details(predictions, rows)["questions"]
    assert [(entry["support"], entry["f1"], entry["predicted_no_answer"]) for entry in table] == [
        (len(rows) - 5, 1.0, 0),
        (5, 1.0, 5),
    ]


def test_a_given_threshold_is_not_tuned() -> None:
    rows = [*SEAMS[::40], *NONE]
    task = make(rows, no_answer_threshold=5)
    predictions = predicted(task, rows, tiny_tokenizer(), 7, leaning_outputs)
    assert task.calibrate(predictions, rows) == {}
    assert task.score(predictions, rows, ["f1"]) == {"f1": 1.0}


def test_nothing_is_tuned_where_questions_are_of_one_kind() -> None:
    rows = SEAMS[::40]
    for task in (make(rows), make(rows, no_answer=True)):
        predictions = predicted(task, rows, tiny_tokenizer(), 7, leaning_outputs)
        assert task.calibrate(predictions, rows) == {}
        assert bool(task.details(predictions, rows)) == (task.options.no_answer is True)


# --- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS, *ENCODER_DECODERS])
def test_every_kind_of_model_learns_and_predicts(family: str) -> None:
    task, tokenizer = make([SHORT, *NONE]), tiny_tokenizer(family)
    model = model_for(family, task)
    features = numbered(task.encode([SHORT, asked(0, 2), NONE[0]], tokenizer, training=True))
    batch = task.collate(features, tokenizer, training=True)
    outputs = task.forward(model, batch)
    loss = task.loss(outputs, batch)
    assert task.target_count(batch) == len(features)
    loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "qa_outputs" in name)
    assert len(task.predictions(outputs, batch)) == len(features)


def test_the_loss_is_that_of_transformers_without_padding() -> None:
    task, tokenizer = make([SHORT]), tiny_tokenizer()
    model = model_for("bert", task)
    features = numbered(task.encode([asked(0, 2), asked(60, 3)], tokenizer))
    features = [item for item in features if item["length"] == 32]
    batch = task.collate(features, tokenizer)
    inputs = {name: batch[name] for name in task.model_inputs if name in batch}
    with torch.no_grad():
        expected = model(**inputs, start_positions=batch["starts"], end_positions=batch["ends"]).loss
        outputs = task.forward(model, batch)
    assert float(task.loss(outputs, batch)) / task.target_count(batch) == pytest.approx(float(expected), rel=1e-6)
    smoothed = [
        torch.nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1)
        for logits, targets in ((outputs.start_logits, batch["starts"]), (outputs.end_logits, batch["ends"]))
    ]
    assert float(task.loss(outputs, batch, label_smoothing=0.1)) == pytest.approx(float(sum(smoothed)) / 2, rel=1e-6)


def test_results_do_not_depend_on_the_batch() -> None:
    rows = [asked(5, 2), SHORT, asked(150, 1), NONE[1]]
    task, tokenizer = make([SHORT, *NONE]), tiny_tokenizer()
    model = model_for("bert", task)

    def outputs(batch: Batch) -> Any:
        with torch.no_grad():
            return task.forward(model, batch)

    one, seven = (predicted(task, rows, tokenizer, size, outputs) for size in (1, 7))
    for left, right in zip(one, seven, strict=True):
        assert left["null"] == pytest.approx(right["null"], abs=1e-5)
        np.testing.assert_allclose(left["scores"], right["scores"], atol=1e-5)
    features = numbered(task.encode(rows, tokenizer))
    losses = []
    for size in (1, 7):
        batches = [task.collate(features[at : at + size], tokenizer) for at in range(0, len(features), size)]
        losses.append(sum(float(task.loss(outputs(batch), batch)) for batch in batches))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_virtual_tokens_in_front_do_not_shift_answers() -> None:
    task, tokenizer = make([SHORT, *NONE]), tiny_tokenizer()
    batch = task.collate(numbered(task.encode([SHORT, NONE[0]], tokenizer)), tokenizer)
    plain = gold_outputs(batch)
    shifted = SimpleNamespace(
        start_logits=torch.nn.functional.pad(plain.start_logits, (6, 0), value=50),
        end_logits=torch.nn.functional.pad(plain.end_logits, (6, 0), value=50),
    )
    assert float(task.loss(shifted, batch)) == float(task.loss(plain, batch))
    assert [part["starts"].tolist() for part in task.predictions(shifted, batch)] == [
        part["starts"].tolist() for part in task.predictions(plain, batch)
    ]


def test_rows_to_predict_have_no_targets() -> None:
    task, tokenizer = make([SHORT]), tiny_tokenizer()
    row = {"question": "w1", "context": "w2 w3"}
    task.check_row(row)
    feature = task.encode([row], tokenizer)[0]
    assert "start" not in feature
    assert task.target_count(task.collate([{**feature, "example": 0}], tokenizer)) == 0


# --- a whole run ---------------------------------------------------------------------------------------------------


def squad_file(path: Path, count: int, seed: int) -> None:
    """The answer is the word after the word of the question, if the context has it."""
    generator = random.Random(seed)
    paragraphs = []
    for number in range(count):
        words = generator.sample([f"w{index}" for index in range(20)], 8)
        context, at = " ".join(words), generator.randrange(7)
        none = number % 4 == 0
        question = next(f"w{index}" for index in range(20) if f"w{index}" not in words) if none else words[at]
        answers = [] if none else [{"text": words[at + 1], "answer_start": len(" ".join(words[: at + 1])) + 1}]
        qas = [{"id": f"{seed}-{number}", "question": question, "answers": answers, "is_impossible": none}]
        paragraphs.append({"context": context, "qas": qas})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "words", "paragraphs": paragraphs}]}), encoding="utf-8")


def test_a_run_from_squad_files_to_predictions(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "bert", "bert", "AutoModelForQuestionAnswering", num_labels=2)
    for seed, (name, count) in enumerate({"train": 60, "validation": 21, "test": 17}.items()):
        squad_file(tmp_path / f"{name}.json", count, seed)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {model}\ntask: {{name: question-answering, max_length: 16, stride: 4}}\n"
        "data: {train: train.json, validation: validation.json, test: test.json}\nmethod: full\n"
        "train: {epochs: 2, batch_size: 8, learning_rate: 1e-3}\nexport: [merged]\n",
        encoding="utf-8",
    )
    result = ftkit.train(ftkit.load_recipe(recipe), output=tmp_path / "run")
    assert result.exit_code == 0
    assert set(result.results["calibration"]) == {"no_answer_threshold"}
    metrics = result.results["splits"]["test"]["metrics"]
    assert set(metrics) == {"f1", "exact_match", "has_answer_f1", "has_answer_exact_match", "no_answer_accuracy", "loss"}
    predictor = ftkit.load(tmp_path / "run")
    assert predictor.evaluate("test")["metrics"] == pytest.approx(metrics)
    rows = [{"question": "w1", "context": "w1 w2 w3 " * 9}, {"question": "w7", "context": "w8"}]
    for row, found in zip(rows, predictor.predict(rows), strict=True):
        assert found["answer"] == ("" if found["start"] is None else row["context"][found["start"] : found["end"]])
