from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import f1_score

from ftkit.errors import DataError
from ftkit.models.facts import ModelFacts
from ftkit.registry import TASKS
from ftkit.tasks.base import Features, Row, RowError
from ftkit.tasks.text_classification import Options, TextClassification
from tests.tiny import DECODERS, ENCODER_DECODERS, ENCODERS, tiny_config, tiny_tokenizer

SINGLE = [
    {"text": "w1 w2 w3", "label": "sports"},
    {"text": "w4 w5 w6 w7 w8 w9", "label": "news"},
    {"text": "w3", "label": "arts"},
    {"text": "w9 w10 w11 w12", "label": "news"},
]
SEVERAL = [{"text": "w1 w2", "label": ["a", "c"]}, {"text": "w3 w4 w5", "label": []}, {"text": "w6", "label": ["b"]}]
NUMBERS = [{"text": "w1 w2", "label": 1.5}, {"text": "w3 w4 w5", "label": "-2"}, {"text": "w6", "label": 3}]
EXAMPLES = {"single_label": SINGLE, "multi_label": SEVERAL, "regression": NUMBERS}


def make(rows: Sequence[Row] = (), **options: Any) -> TextClassification:
    task = TextClassification(Options(**{"max_length": 32, **options}))
    if rows:
        for row in rows:
            task.check_row(row)
        task.learn(rows)
    return task


def numbered(features: list[Features]) -> list[Features]:
    return [{**item, "example": number} for number, item in enumerate(features)]


def facts(max_positions: int | None) -> ModelFacts:
    return ModelFacts(
        kind="encoder",
        model_type="bert",
        hidden_size=16,
        block_count=2,
        max_positions=max_positions,
        vocab_size=64,
        path=None,
    )


def model_for(family: str, task: TextClassification) -> Any:
    import transformers

    head = task.head()
    torch.manual_seed(0)
    return getattr(transformers, head.auto_class).from_config(tiny_config(family, **head.config)).eval()


# --- options, columns, defaults ------------------------------------------------------------------------------------


def test_it_is_found_by_name() -> None:
    assert TASKS.get("text-classification") is TextClassification
    assert "parts" not in TASKS.names()


def test_columns_say_what_is_needed() -> None:
    columns = make().columns()
    assert [(name, column.required, column.target) for name, column in columns.items()] == [
        ("text", True, False),
        ("text_pair", False, False),
        ("label", True, True),
    ]
    assert "score" in make(problem_type="regression").columns()["label"].names
    assert "score" not in columns["label"].names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a", "b", "a"]}, "labels: 'a' given more than once"),
        ({"labels": ["a"]}, "labels: there must be at least two"),
        ({"labels": ["a", "b"], "problem_type": "regression"}, "labels: a regression has none"),
        ({"threshold": 0.4}, "threshold: only for problem_type multi_label"),
        ({"label_separator": "|", "problem_type": "regression"}, "label_separator: only for problem_type multi_label"),
        ({"metrics": ["acuracy"]}, "metrics: there is no metric 'acuracy' here; did you mean 'accuracy'?"),
        ({"metrics": ["auroc"], "problem_type": "multi_label"}, "did you mean 'auroc_macro'?"),
        ({"metrics": ["zzz"], "problem_type": "regression"}, "known: mse, pearson, spearman, mae, r2, loss"),
        ({"metrics": ["accuracy", "accuracy"]}, "metrics: 'accuracy' given more than once"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    assert message in make(**options).check_options()


@pytest.mark.parametrize(
    "options", [{}, {"labels": ["b", "a"]}, {"problem_type": "multi_label", "threshold": 0.3, "labels": ["a"]}]
)
def test_good_options(options: dict[str, Any]) -> None:
    assert make(**options).check_options() == ""


@pytest.mark.parametrize("options", [{"max_length": 4}, {"threshold": 1.0}, {"labels": []}, {"metrics": []}, {"truncation": True}])
def test_options_that_do_not_exist_or_are_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**options)


def test_auto_may_be_written_out() -> None:
    assert Options(max_length="auto", metrics="auto") == Options()


@pytest.mark.parametrize(
    ("rows", "options", "bias"),
    [
        (SINGLE, {}, []),
        (SEVERAL, {}, [math.log(1.5 / 2.5)] * 3),
        (SEVERAL, {"class_weights": {"b": 2.0}}, [math.log(weight * 1.5 / 2.5) for weight in (1, 2, 1)]),
        (NUMBERS, {}, [2.5 / 3]),
    ],
)
def test_a_new_head_begins_where_the_rows_are_on_average(rows: list[Row], options: dict[str, Any], bias: list[float]) -> None:
    kind = next(name for name, examples in EXAMPLES.items() if examples is rows)
    task = make(rows, problem_type=kind, **options)
    again = make(problem_type=kind, **options)
    again.restore(task.state())
    assert [*task.head().bias] == [*again.head().bias] == pytest.approx(bias)


def test_defaults_come_with_their_source() -> None:
    short, long, endless = (make().defaults(facts(positions))["task.max_length"] for positions in (128, 8192, None))
    assert (short.value, long.value, endless.value) == (128, 512, 512)
    assert "128 tokens" in short.source
    metrics = make(problem_type="regression").defaults(facts(128))["task.metrics"]
    assert metrics.value == [spec.name for spec in make(problem_type="regression").metrics()][:-1]


def test_a_length_that_the_model_cannot_take_is_refused() -> None:
    assert "max_length is 512, but bert takes at most 128 tokens" in make(max_length=512).refusal(facts(128))
    assert make(max_length=128).refusal(facts(128)) == ""
    assert make(max_length=512).refusal(facts(None)) == ""
    assert make(max_length="auto").refusal(facts(128)) == ""


def test_only_single_labels_are_stratified_and_smoothed() -> None:
    tasks = [make(problem_type=problem) for problem in EXAMPLES]
    assert [task.stratify_column() for task in tasks] == ["label", None, None]
    assert [task.supports_label_smoothing for task in tasks] == [True, False, False]


@pytest.mark.parametrize(
    ("problem", "first", "headline"),
    [
        ("single_label", "accuracy", {"accuracy", "f1_macro"}),
        ("multi_label", "f1_micro", {"f1_micro", "f1_macro"}),
        ("regression", "mse", {"mse", "pearson", "spearman"}),
    ],
)
def test_metrics_before_anything_is_learned(problem: str, first: str, headline: set[str]) -> None:
    specs = make(problem_type=problem).metrics()
    assert (specs[0].name, specs[-1].name) == (first, "loss")
    assert {spec.name for spec in specs if spec.headline} == headline


def test_chosen_metrics_keep_their_order() -> None:
    assert [spec.name for spec in make(metrics=["loss", "f1_macro"]).metrics()] == ["loss", "f1_macro"]
    assert [spec.name for spec in make(metrics=["f1_macro", "auroc"]).metrics()] == ["f1_macro", "auroc", "loss"]


# --- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "row", "column", "message"),
    [
        ({}, {"text": "", "label": "a"}, "text", "the text is empty"),
        ({}, {"text": " \n", "label": "a"}, "text", "the text is empty"),
        ({}, {"text": None, "label": "a"}, "text", "the text is missing"),
        ({}, {"label": "a"}, "text", "the text is missing"),
        ({}, {"text": 17, "label": "a"}, "text", "the text is 17, which is not text"),
        ({}, {"text": ["x"] * 99, "label": "a"}, "text", r"the text is \['x', .*\.\.\., which is not text"),
        ({}, {"text": "x", "text_pair": "", "label": "a"}, "text_pair", "the text is empty"),
        ({}, {"text": "x", "label": None}, "label", "the label is missing"),
        ({}, {"text": "x", "label": " "}, "label", "the label is empty"),
        ({}, {"text": "x", "label": 0.5}, "label", "label 0.5 is a number with a point"),
        ({}, {"text": "x", "label": ["a"]}, "label", r"label \['a'\] is not text, a whole number or true/false"),
        ({"labels": ["a", "b"]}, {"text": "x", "label": "c"}, "label", "label 'c' is not in task.labels: 'a', 'b'"),
        ({"problem_type": "regression"}, {"text": "x", "label": "high"}, "label", "label 'high' is not a finite number"),
        ({"problem_type": "regression"}, {"text": "x", "label": "nan"}, "label", "label 'nan' is not a finite number"),
        ({"problem_type": "regression"}, {"text": "x", "label": float("inf")}, "label", "label inf is not a finite number"),
        ({"problem_type": "regression"}, {"text": "x", "label": 10**400}, "label", "is not a finite number"),
        ({"problem_type": "regression"}, {"text": "x", "label": True}, "label", "label True is not a finite number"),
        ({"problem_type": "regression"}, {"text": "x", "label": [1.0]}, "label", r"label \[1.0\] is not a finite number"),
        ({"problem_type": "multi_label"}, {"text": "x", "label": "a|b"}, "label", r"label 'a\|b' is not a list of labels"),
        ({"problem_type": "multi_label"}, {"text": "x", "label": 3}, "label", "label 3 is not a list of labels"),
        ({"problem_type": "multi_label"}, {"text": "x", "label": ["a", "a"]}, "label", r"label 'a' occurs twice in \['a', 'a'\]"),
        ({"problem_type": "multi_label"}, {"text": "x", "label": [["a"]]}, "label", "is not text, a whole number or true/false"),
        ({"problem_type": "multi_label", "labels": ["a", "b"]}, {"text": "x", "label": ["a", "c"]}, "label", "label 'c' is not in"),
        (
            {"problem_type": "multi_label", "labels": ["a", "b"]},
            {"text": "x", "label": [0, 1, 1]},
            "label",
            "label '1' occurs twice",
        ),
    ],
)
def test_rows_that_do_not_fit(options: dict[str, Any], row: Row, column: str, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        make(**options).check_row(row)
    assert caught.value.column == column


def test_hints_name_the_way_out() -> None:
    def hint(row: Row, **options: Any) -> str:
        with pytest.raises(RowError) as caught:
            make(**options).check_row(row)
        return caught.value.hint

    assert "task.problem_type to regression" in hint({"text": "x", "label": 0.5})
    assert "task.problem_type to multi_label" in hint({"text": "x", "label": ["a"]})
    assert "task.label_separator" in hint({"text": "x", "label": "a|b"}, problem_type="multi_label")
    assert "task.problem_type to single_label" in hint({"text": "x", "label": "a"}, problem_type="regression")
    assert "data.columns" in hint({"text": 17, "label": "a"})


def test_rows_without_a_label_can_be_predicted() -> None:
    task = make(SINGLE)
    row = {"text": "w1"}
    task.check_row(row)
    task.check_learned(row)
    assert "label" not in task.encode([row], tiny_tokenizer())[0]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["b", "a", "c"], ["a", "b", "c"]),
        ([10, 9, -1], ["-1", "9", "10"]),
        (["10", "9", 1], ["1", "9", "10"]),
        ([True, False], ["False", "True"]),
        (["10", "9", "x"], ["10", "9", "x"]),
    ],
)
def test_labels_are_sorted_as_numbers_or_as_text(values: list[Any], names: list[str]) -> None:
    assert make([{"text": "x", "label": value} for value in values]).state()["labels"] == names


def test_label_order_does_not_depend_on_row_order() -> None:
    rows = [{"text": "x", "label": name} for name in "zebra"]
    expected = make(rows).state()
    for seed in range(5):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert make(shuffled).state() == expected


def test_label_order_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import json; from ftkit.tasks.text_classification import *; task = TextClassification(Options());"
        "task.learn([{'text': 'x', 'label': name} for name in ('pear', 'fig', 'apple', 'kiwi')]); print(json.dumps(task.state()))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert [json.loads(output)["labels"] for output in outputs] == [["apple", "fig", "kiwi", "pear"]]


def test_given_labels_keep_their_order_and_need_not_all_occur() -> None:
    task = make(SINGLE, labels=["sports", "unused", "news", "arts"])
    assert task.head().config["label2id"] == {"sports": 0, "unused": 1, "news": 2, "arts": 3}


def test_unseen_labels_are_named_with_the_known_ones() -> None:
    with pytest.raises(RowError, match="label 'weather' does not occur in the training rows, which have 'arts', 'news', 'sports'"):
        make(SINGLE).check_learned({"text": "x", "label": "weather"})


def test_many_known_labels_are_shortened() -> None:
    task = make([{"text": "x", "label": f"l{number}"} for number in range(77)])
    with pytest.raises(RowError, match="and 57 more"):
        task.check_learned({"text": "x", "label": "new"})


@pytest.mark.parametrize("options", [{}, {"labels": ["a", "b"]}])
def test_one_label_in_training_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"the training rows have only the label 'a'\. single_label needs at least 2"):
        make([{"text": "x", "label": "a"}] * 3, **options)


def test_no_label_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="the training rows have no label"):
        make([{"text": "x", "label": []}], problem_type="multi_label")


def test_numbers_under_single_label_get_a_hint() -> None:
    rows = [{"text": "x", "label": f"{number / 4}"} for number in range(60)]
    with pytest.raises(DataError, match=r"60 labels and all are numbers, such as .*Set task\.problem_type to regression"):
        make(rows)
    whole = [{"text": "x", "label": number} for number in range(60)]
    assert len(make(whole).state()["labels"]) == 60


def test_pairs_and_single_texts_do_not_mix() -> None:
    pairs = [{**row, "text_pair": "w1"} for row in SINGLE]
    task = make(pairs)
    assert task.state()["pair"] is True
    with pytest.raises(RowError, match="the second text is missing"):
        task.check_learned({"text": "x", "text_pair": None, "label": "news"})
    with pytest.raises(RowError, match="has a second text, but the training rows have none"):
        make(SINGLE).check_learned(pairs[0])
    with pytest.raises(RowError, match="the second text is missing"):
        make([*pairs, SINGLE[0]]).encode(SINGLE, tiny_tokenizer())


@pytest.mark.parametrize(
    ("options", "value", "expected"),
    [
        ({}, ["c", "a"], [1.0, 0.0, 1.0]),
        ({}, [], [0.0, 0.0, 0.0]),
        ({"label_separator": "|"}, "c| a", [1.0, 0.0, 1.0]),
        ({"label_separator": "|"}, "", [0.0, 0.0, 0.0]),
        ({"labels": ["c", "b", "a"]}, [1, 0, 0], [1.0, 0.0, 0.0]),
        ({"labels": ["c", "b", "a"]}, [True, False, True], [1.0, 0.0, 1.0]),
        ({"labels": ["c", "b", "a"]}, ["0", "1", "0"], [0.0, 1.0, 0.0]),
        ({"labels": ["c", "b", "a"]}, [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]),
        ({"labels": ["1", "0", "a"]}, ["0", 1, "a"], [1.0, 1.0, 1.0]),
    ],
)
def test_ways_to_write_several_labels(options: dict[str, Any], value: Any, expected: list[float]) -> None:
    if "labels" in options:
        rows = [{"text": "w1", "label": options["labels"]}]
    else:
        rows = [{"text": "w1", "label": "a|b|c" if "label_separator" in options else ["a", "b", "c"]}]
    task = make(rows, problem_type="multi_label", **options)
    row = {"text": "w1", "label": value}
    task.check_row(row)
    task.check_learned(row)
    assert task.encode([row], tiny_tokenizer())[0]["label"] == expected


@pytest.mark.parametrize("problem", EXAMPLES)
def test_state_survives_json(problem: str) -> None:
    rows = EXAMPLES[problem]
    learned, restored = make(rows, problem_type=problem), make(problem_type=problem)
    restored.restore(json.loads(json.dumps(learned.state())))
    assert restored.state() == learned.state()
    assert restored.head() == learned.head()
    assert restored.encode(rows, tiny_tokenizer()) == learned.encode(rows, tiny_tokenizer())


def test_descriptions() -> None:
    task = make(SINGLE, labels=["sports", "unused", "news", "arts"])
    assert task.describe(iter(SINGLE)) == {
        "rows": 4,
        "characters": {"min": 2, "median": 11.0, "mean": 10.25, "max": 17},
        "labels": {"sports": 1, "unused": 0, "news": 2, "arts": 1},
    }
    several = make(SEVERAL, problem_type="multi_label").describe(SEVERAL)
    assert (several["labels"], several["rows_without_label"]) == ({"a": 1, "b": 1, "c": 1}, 1)
    numbers = make(NUMBERS, problem_type="regression").describe(NUMBERS)
    assert numbers["values"] == {"min": -2.0, "median": 1.5, "mean": pytest.approx(2.5 / 3), "max": 3.0}
    assert task.describe([]) == {"rows": 0, "characters": {}, "labels": {"sports": 0, "unused": 0, "news": 0, "arts": 0}}


def test_heads_name_every_output() -> None:
    head = make(SINGLE).head()
    assert (head.auto_class, head.peft_task_type) == ("AutoModelForSequenceClassification", "SEQ_CLS")
    assert head.config == {
        "num_labels": 3,
        "id2label": {0: "arts", 1: "news", 2: "sports"},
        "label2id": {"arts": 0, "news": 1, "sports": 2},
        "problem_type": "single_label_classification",
    }
    assert make(SEVERAL, problem_type="multi_label").head().config["problem_type"] == "multi_label_classification"
    number = make(NUMBERS, problem_type="regression").head().config
    assert (number["num_labels"], number["problem_type"]) == (1, "regression")


# --- tokens --------------------------------------------------------------------------------------------------------


def test_features_keep_the_order_and_know_their_cut() -> None:
    rows = [{"text": " ".join(["w1"] * count), "label": "news"} for count in (3, 6, 7, 40)]
    features = make(SINGLE, max_length=8).encode(rows, tiny_tokenizer("bert"))
    assert [item["length"] for item in features] == [5, 8, 8, 8]
    assert [item["truncated"] for item in features] == [False, False, True, True]
    assert [item["row"] for item in features] == [0, 1, 2, 3]
    assert features[0] == {"input_ids": [2, 8, 8, 8, 3], "length": 5, "truncated": False, "label": 1, "row": 0}


def test_more_rows_than_one_call_takes() -> None:
    rows = [{"text": f"w{number % 40}", "label": "news"} for number in range(2100)]
    features = make(SINGLE).encode(rows, tiny_tokenizer())
    assert [item["row"] for item in features] == list(range(2100))
    assert all(item["input_ids"][1] == 7 + number % 40 for number, item in enumerate(features))


def test_an_unfilled_length_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="max_length is still `auto`"):
        make(SINGLE, max_length="auto").encode(SINGLE, tiny_tokenizer())


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "t5"])
@pytest.mark.parametrize(("first", "second"), [(30, None), (3, None), (30, 2), (2, 30), (30, 31), (9, 9), (3, 2)])
def test_the_cut_is_the_tokenizers_own(family: str, first: int, second: int | None) -> None:
    tokenizer = tiny_tokenizer(family)
    row: dict[str, Any] = {"text": " ".join(f"w{number}" for number in range(first)), "label": "a"}
    if second is not None:
        row["text_pair"] = " ".join(f"w{number}" for number in range(second))
    task = make([row, {**row, "label": "b"}], max_length=12)
    encoded = task.encode([row], tokenizer)[0]
    texts = [row[key] for key in ("text", "text_pair") if key in row]
    assert encoded["input_ids"] == tokenizer(*texts, truncation=True, max_length=12)["input_ids"]
    assert encoded["truncated"] == (len(tokenizer(*texts)["input_ids"]) > 12)


def test_two_long_texts_do_not_exhaust_the_memory() -> None:
    row = {"text": "w1 " * 20000, "text_pair": "w2 " * 20000, "label": "a"}
    encoded = make([row, {**row, "label": "b"}], max_length=8).encode([row], tiny_tokenizer())[0]
    assert encoded["input_ids"] == [2, 8, 8, 3, 9, 9, 9, 3]


def test_segments_where_the_tokenizer_has_them() -> None:
    tokenizer = tiny_tokenizer("bert")
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    rows = [{"text": "w1 w2", "text_pair": "w3", "label": "a"}, {"text": "w1 " * 9, "text_pair": "w3 " * 9, "label": "b"}]
    task = make(rows, max_length=10)
    features = task.encode(rows, tokenizer)
    assert features[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert features[1]["token_type_ids"] == [0] * 5 + [1] * 5
    batch = task.collate(numbered(features), tokenizer)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0, 0, 0], [0] * 5 + [1] * 5]
    assert "token_type_ids" not in task.encode(rows, tiny_tokenizer("roberta"))[0]


def test_tokenizers_written_in_python(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    rows = [{"text": "abc", "label": "a"}, {"text": "abcdefghijklmnop", "label": "b"}]
    features = make(rows, max_length=8).encode(rows, tokenizer)
    assert [(item["length"], item["truncated"]) for item in features] == [(4, False), (8, True)]
    assert [item["input_ids"][-1] for item in features] == [tokenizer.eos_token_id] * 2


def test_batches_are_padded_and_masked_by_length() -> None:
    tokenizer = tiny_tokenizer("bert")
    tokenizer.pad_token = "w1"  # a token that texts contain
    task = make(SINGLE)
    batch = task.collate(
        numbered(task.encode([{"text": "w1 w2", "label": "news"}, {"text": "w1", "label": "arts"}], tokenizer)), tokenizer
    )
    assert batch["input_ids"].tolist() == [[2, 8, 9, 3], [2, 8, 3, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["example"].tolist() == [0, 1]
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert task.target_count(batch) == 2
    assert "labels" not in task.model_inputs


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_other_labels_are_float32(problem: str) -> None:
    task = make(EXAMPLES[problem], problem_type=problem)
    batch = task.collate(numbered(task.encode(EXAMPLES[problem], tiny_tokenizer())), tiny_tokenizer())
    assert batch["labels"].dtype == torch.float32
    expected = [[1, 0, 1], [0, 0, 0], [0, 1, 0]] if problem == "multi_label" else [1.5, -2, 3]
    assert batch["labels"].tolist() == expected


def test_batches_without_labels_count_nothing() -> None:
    task = make(SINGLE)
    batch = task.collate(numbered(task.encode([{"text": "w1"}], tiny_tokenizer())), tiny_tokenizer())
    assert task.target_count(batch) == 0
    assert "labels" not in batch


def test_inspection_shows_tokens_the_cut_and_the_label() -> None:
    tokenizer = tiny_tokenizer("bert")
    task = make(SINGLE, max_length=8)
    shown = task.inspect(task.encode([{"text": "w1 " * 9, "label": "news"}], tokenizer)[0], tokenizer)
    assert shown[:2] == [("<cls>", "special token"), ("w1", "")]
    assert shown[-2:] == [("", "cut at 8 tokens"), ("", "label: news")]
    several = make(SEVERAL, problem_type="multi_label")
    labels = [several.inspect(item, tokenizer)[-1][1] for item in several.encode(SEVERAL, tokenizer)]
    assert labels == ["label: a, c", "label: (none)", "label: b"]
    number = make(NUMBERS, problem_type="regression")
    assert number.inspect(number.encode(NUMBERS, tokenizer)[0], tokenizer)[-1] == ("", "label: 1.5")
    assert number.inspect(number.encode([{"text": "w1"}], tokenizer)[0], tokenizer)[-1][0] == "<sep>"


# --- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", EXAMPLES)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_loss_is_that_of_transformers(problem: str, family: str) -> None:
    rows = EXAMPLES[problem]
    task = make(rows, problem_type=problem)
    model, tokenizer = model_for(family, task), tiny_tokenizer(family)
    batch = task.collate(numbered(task.encode(rows, tokenizer)), tokenizer)
    inputs = {name: batch[name] for name in task.model_inputs if name in batch}
    outputs = model(**inputs, labels=batch["labels"])
    loss = task.loss(outputs, batch)
    assert loss.dtype == torch.float32
    assert (loss / task.target_count(batch)).item() == pytest.approx(outputs.loss.item(), rel=1e-6)


def test_half_precision_logits_give_a_float32_loss() -> None:
    task = make(SINGLE)
    logits = torch.randn(4, 3).bfloat16()
    loss = task.loss(type("Outputs", (), {"logits": logits}), {"labels": torch.tensor([0, 1, 2, 0])})
    assert loss.dtype == torch.float32


def test_label_smoothing_only_where_asked_for() -> None:
    task = make(SINGLE)
    outputs, batch = type("Outputs", (), {"logits": torch.tensor([[3.0, 0.0, 0.0]])}), {"labels": torch.tensor([0])}
    log_p = torch.log_softmax(outputs.logits, -1)[0]
    assert task.loss(outputs, batch).item() == pytest.approx(-log_p[0].item())
    smoothed = 0.9 * -log_p[0] + 0.1 * -log_p.mean()
    assert task.loss(outputs, batch, label_smoothing=0.1).item() == pytest.approx(smoothed.item())


@pytest.mark.parametrize("family", ENCODERS + DECODERS + ENCODER_DECODERS)
def test_predictions_do_not_depend_on_the_batch(family: str) -> None:
    task = make(SINGLE)
    model, tokenizer = model_for(family, task), tiny_tokenizer(family)
    features = numbered(task.encode(SINGLE, tokenizer))

    def predict(items: list[Features]) -> Iterator[np.ndarray]:
        batch = task.collate(items, tokenizer)
        with torch.no_grad():
            outputs = model(**{name: batch[name] for name in task.model_inputs if name in batch})
        found = task.predictions(outputs, batch)
        assert [item["example"] for item in found] == [item["example"] for item in items]
        yield from (item["probabilities"] for item in found)

    together = np.stack(list(predict(features)))
    alone = np.stack([row for item in features for row in predict([item])])
    assert together == pytest.approx(alone, abs=1e-6)
    assert together.dtype == np.float32
    assert together.sum(axis=1) == pytest.approx(np.ones(4), abs=1e-6)


def test_several_labels_have_independent_probabilities_and_numbers_are_floats() -> None:
    outputs = type("Outputs", (), {"logits": torch.tensor([[0.0, 100.0, -100.0]])})
    several = make(SEVERAL, problem_type="multi_label").predictions(outputs, {"example": torch.tensor([7])})
    assert several[0]["example"] == 7
    assert several[0]["probabilities"].tolist() == [0.5, 1.0, 0.0]
    outputs = type("Outputs", (), {"logits": torch.tensor([[1.5], [2.0]])})
    numbers = make(problem_type="regression").predictions(outputs, {"example": torch.tensor([0, 1])})
    assert numbers == [{"example": 0, "value": 1.5}, {"example": 1, "value": 2.0}]


# --- results -------------------------------------------------------------------------------------------------------


def perfect(problem: str) -> tuple[TextClassification, list[dict[str, Any]], list[dict[str, Any]]]:
    rows = EXAMPLES[problem]
    task = make(rows, problem_type=problem)
    labels = [item["label"] for item in task.encode(rows, tiny_tokenizer())]
    if problem == "regression":
        return task, [{"example": number, "value": float(label)} for number, label in enumerate(labels)], rows
    array = np.eye(3, dtype=np.float32)[labels] if problem == "single_label" else np.array(labels, np.float32)
    return task, [{"example": number, "probabilities": row * 0.9} for number, row in enumerate(array)], rows


def test_scores_by_name_and_of_rows_that_can_only_be_iterated() -> None:
    task, predictions, rows = perfect("single_label")
    predictions[0]["probabilities"] = np.array([0.9, 0.05, 0.05], np.float32)
    expected = f1_score([2, 1, 0, 1], [0, 1, 0, 1], average="macro")
    assert task.score(predictions, iter(rows), ["f1_macro"]) == {"f1_macro": pytest.approx(expected)}  # type: ignore[arg-type]
    assert task.score(predictions, rows, []) == {}


@pytest.mark.parametrize("problem", EXAMPLES)
def test_scores_of_numbers_that_are_not_finite_are_none(problem: str) -> None:
    task, predictions, rows = perfect(problem)
    if problem == "regression":
        predictions[1]["value"] = float("nan")
    else:
        predictions[1]["probabilities"] = np.full(3, np.nan, np.float32)
    assert set(task.score(predictions, rows).values()) == {None}
    assert task.intervals(predictions, rows) == {}


@pytest.mark.parametrize("problem", EXAMPLES)
def test_an_empty_split_has_no_scores(problem: str) -> None:
    task = perfect(problem)[0]
    assert set(task.score([], []).values()) == {None}
    assert task.intervals([], []) == {}


def test_scoring_rows_without_labels_is_an_error() -> None:
    task, predictions, rows = perfect("single_label")
    with pytest.raises(RowError, match="the label is missing"):
        task.score(predictions, [{"text": row["text"]} for row in rows])


@pytest.mark.parametrize("problem", EXAMPLES)
def test_intervals_of_headline_metrics_hold_the_value(problem: str) -> None:
    task, predictions, rows = perfect(problem)
    predictions, rows = predictions * 20, rows * 20
    for number in range(0, len(predictions), 7):
        key = "value" if problem == "regression" else "probabilities"
        predictions[number] = {"example": number, key: 1.0 - predictions[number][key]}
    scores, intervals = task.score(predictions, rows), task.intervals(predictions, rows)
    assert set(intervals) == {spec.name for spec in task.metrics() if spec.headline}
    for name, (low, high) in intervals.items():
        assert low <= scores[name] <= high
        assert low < high


def test_details_are_tables_by_label() -> None:
    task, predictions, rows = perfect("single_label")
    predictions[0]["probabilities"] = np.array([0.9, 0.05, 0.05], np.float32)
    details = task.details(predictions, rows)
    assert details["confusion_matrix"] == {"labels": ["arts", "news", "sports"], "counts": [[1, 0, 0], [0, 2, 0], [1, 0, 0]]}
    assert details["labels"][0] == {"label": "arts", "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert json.loads(json.dumps(details)) == details
    assert task.details([], []) == {}
    several, predictions, rows = perfect("multi_label")
    assert [entry["f1"] for entry in several.details(predictions, rows)["labels"]] == [1.0, 1.0, 1.0]
    number, predictions, rows = perfect("regression")
    assert number.details(predictions, rows) == {}


def test_predictions_for_people() -> None:
    single = make(SINGLE).present({"example": 0, "probabilities": np.array([0.25, 0.5, 0.25], np.float32)}, {"text": "x"})
    assert single == {"label": "news", "score": 0.5, "probabilities": {"arts": 0.25, "news": 0.5, "sports": 0.25}}
    task = make(SEVERAL, problem_type="multi_label", threshold=0.3)
    several = task.present({"example": 0, "probabilities": np.array([0.25, 0.5, 0.75], np.float32)}, {"text": "x"})
    assert several == {"labels": ["b", "c"], "probabilities": {"a": 0.25, "b": 0.5, "c": 0.75}}
    assert make(problem_type="regression").present({"example": 0, "value": 2.5}, {"text": "x"}) == {"value": 2.5}
    assert json.loads(json.dumps(single)) == single


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_a_probability_at_the_threshold_is_treated_alike_everywhere(threshold: float) -> None:
    task = make([{"text": "x", "label": ["a"]}], problem_type="multi_label", threshold=threshold, metrics=["accuracy"])
    prediction = {"example": 0, "probabilities": np.array([threshold], np.float32)}
    rows = [{"text": "x", "label": task.present(prediction, {"text": "x"})["labels"]}]
    assert task.score([prediction], rows) == {"accuracy": 1.0}


def test_weights_and_focal_loss_change_training_only() -> None:
    rows = [*SINGLE, {"text": "w5", "label": "news"}]
    plain, weighted = make(rows), make(rows, class_weights="balanced", focal_gamma=2.0)
    tokenizer = tiny_tokenizer()
    batch = plain.collate(numbered(plain.encode(rows, tokenizer)), tokenizer)
    outputs = type("Outputs", (), {"logits": torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(0))})
    assert float(weighted.loss(outputs, batch)) != pytest.approx(float(plain.loss(outputs, batch)))
    with torch.no_grad():
        assert float(weighted.loss(outputs, batch)) == pytest.approx(float(plain.loss(outputs, batch)))


def test_weights_of_unknown_labels_are_refused() -> None:
    with pytest.raises(DataError, match="no row has the label 'weather'"):
        make(SINGLE, class_weights={"weather": 2.0})
    assert "'weather' not in labels" in make(labels=["a", "b"], class_weights={"weather": 2.0}).check_options()
    assert "a regression has no labels" in make(problem_type="regression", focal_gamma=1.0).check_options()


def test_thresholds_are_tuned_on_validation_rows_and_used_afterwards() -> None:
    task = make(SEVERAL, problem_type="multi_label", threshold="tuned")
    rows = [{"text": "x", "label": ["a"] if index < 12 else []} for index in range(40)]
    scores = [0.3 - index / 1000 if index < 12 else 0.1 for index in range(40)]
    found = [{"example": index, "probabilities": np.array([score, 0.4, 0.01])} for index, score in enumerate(scores)]
    assert task.needs_validation == "threshold: tuned"
    assert task.present(found[0], rows[0])["labels"] == []
    task.calibration = task.calibrate(found, rows)
    assert 0.1 < task.calibration["thresholds"]["a"] < 0.289
    assert "a" in task.present(found[0], rows[0])["labels"]
    assert "a" not in task.present(found[39], rows[39])["labels"]
    assert json.loads(json.dumps(task.calibration)) == task.calibration
    assert make(SEVERAL, problem_type="multi_label").calibrate(found, rows) == {}


LONG = " ".join(f"w{number}" for number in range(30))


def test_windows_are_pooled_to_the_mean_of_their_logits() -> None:
    for problem, rows in EXAMPLES.items():
        task = make(rows, problem_type=problem, long_texts="windows", max_length=10, window_stride=5)
        tokenizer = tiny_tokenizer()
        features = task.encode([{**rows[0], "text": LONG}, rows[1]], tokenizer)
        assert [item["row"] for item in features] == [0] * 6 + [1]
        assert all(item["label"] == features[0]["label"] for item in features[:6])
        batch = task.collate([{**item, "example": item["row"]} for item in features], tokenizer)
        width = 1 if problem == "regression" else 3
        logits = torch.randn(7, width, generator=torch.Generator().manual_seed(0))
        parts = task.predictions(type("Outputs", (), {"logits": logits}), batch)
        pooled = task.combine(parts[:6])
        expected = task.predictions(
            type("Outputs", (), {"logits": logits[:6].mean(0, keepdim=True)}), {"example": torch.tensor([0])}
        )[0]
        key = "value" if problem == "regression" else "probabilities"
        np.testing.assert_allclose(pooled[key], expected[key], rtol=1e-4)
        assert task.combine(parts[6:]) is parts[6]


def test_head_and_tail_keeps_both_ends() -> None:
    task = make(SINGLE, long_texts="head_tail", max_length=10)
    tokenizer = tiny_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(task.encode([{"text": LONG}], tokenizer)[0]["input_ids"])
    assert tokens == ["<cls>", "w0", "w1", *(f"w{number}" for number in range(24, 30)), "<sep>"]


def test_long_pairs_can_only_be_cut() -> None:
    with pytest.raises(DataError, match="is for single texts"):
        make([{**row, "text_pair": "w1"} for row in SINGLE], long_texts="windows")
