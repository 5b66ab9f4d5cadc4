from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

from ftkit.data.feature_columns import from_features, to_values
from ftkit.errors import DataError
from ftkit.models.facts import ModelFacts
from ftkit.registry import TASKS
from ftkit.tasks.base import Features, Prediction, Row, RowError
from ftkit.tasks.token_classification import Options, TokenClassification
from tests.tasks.parts.word_tokenizers import byte_level, random_rows, word_pieces
from tests.tiny import DECODERS, ENCODERS, tiny_config, tiny_tokenizer

ROWS: list[dict[str, Any]] = [
    {"tokens": ["w1", "w2", "w3", "w4"], "tags": ["B-PER", "I-PER", "O", "B-LOC"]},
    {"tokens": ["w5"], "tags": ["O"]},
    {"tokens": ["w6", "w7"], "tags": ["B-LOC", "B-LOC"]},
]
PLAIN_ROWS = [{"tokens": "w1 w2 w3", "tags": "N V N"}, {"tokens": "w4", "tags": "ADJ"}]


def make(rows: Sequence[Row] = (), **options: Any) -> TokenClassification:
    task = TokenClassification(Options(**{"max_length": 32, "overlap": 8, "labeling": "first", **options}))
    if rows:
        for row in rows:
            task.check_row(row)
        task.learn(rows)
        for row in rows:
            task.check_learned(row)
    return task


def facts(max_positions: int | None, kind: str = "encoder") -> ModelFacts:
    return ModelFacts(
        kind=kind,  # type: ignore[arg-type]
        model_type="bert",
        hidden_size=16,
        block_count=2,
        max_positions=max_positions,
        vocab_size=64,
        path=None,
    )


def model_for(family: str, task: TokenClassification) -> Any:
    import transformers

    head = task.head()
    torch.manual_seed(0)
    return getattr(transformers, head.auto_class).from_config(tiny_config(family, **head.config)).eval()


def numbered(task: TokenClassification, rows: Sequence[Row], tokenizer: Any) -> list[Features]:
    """Features as they come out of the cache."""
    encoded = task.encode(rows, tokenizer)
    batch = from_features([{**feature, "example": feature["row"]} for feature in encoded])
    return [to_values(batch, index) for index in range(len(encoded))]


def gathered(task: TokenClassification, parts: Sequence[Prediction]) -> list[Prediction]:
    by_example: dict[int, list[Prediction]] = {}
    for part in parts:
        by_example.setdefault(part["example"], []).insert(0, part)
    return [task.combine(by_example[example]) for example in sorted(by_example)]


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def predicted(task: TokenClassification, tags: Sequence[Sequence[str]]) -> list[Prediction]:
    ids = task._tags.ids
    return [
        {"example": number, "labels": np.array([ids[tag] for tag in row]), "scores": np.full(len(row), 0.5, np.float32)}
        for number, row in enumerate(tags)
    ]


# --- options, columns, defaults ------------------------------------------------------------------------------------


def test_it_is_found_by_name() -> None:
    assert TASKS.get("token-classification") is TokenClassification


def test_columns_say_what_is_needed() -> None:
    columns = make().columns()
    assert [(name, column.required, column.target) for name, column in columns.items()] == [
        ("tokens", True, False),
        ("tags", True, True),
    ]
    assert {"words", "sentence", "text"} <= set(columns["tokens"].names)
    assert {"ner_tags", "labels"} <= set(columns["tags"].names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["O", "B-a", "O"]}, "labels: 'O' given more than once"),
        ({"scheme": "none", "labels": ["N"]}, "labels: there must be at least two"),
        ({"scheme": "none", "on_invalid": "repair"}, "on_invalid: plain tags (scheme none) have no rules to break"),
        ({"scheme": "IOB2", "labels": ["O", "S-a", "NOUN"]}, "labels: 'S-a', 'NOUN' cannot be tags of IOB2"),
        ({"overlap": 17}, "overlap: 17 is more than half of max_length, 32"),
        ({"metrics": ["precison"]}, "metrics: there is no metric 'precison' here; did you mean 'precision'?"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    assert message in make(**options).check_options()


@pytest.mark.parametrize("options", [{}, {"scheme": "none", "labels": ["N", "V"]}, {"labels": ["O", "S-a"]}, {"overlap": 16}])
def test_good_options(options: dict[str, Any]) -> None:
    assert make(**options).check_options() == ""


@pytest.mark.parametrize("options", [{"max_length": 4}, {"overlap": -1}, {"scheme": "IOB"}, {"labeling": "middle"}, {"stride": 3}])
def test_options_that_do_not_exist_or_are_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**options)


def test_defaults_come_with_their_source() -> None:
    encoder, decoder = (TokenClassification(Options()).defaults(facts(128, kind)) for kind in ("encoder", "decoder"))
    assert {key: default.value for key, default in encoder.items()} == {
        "task.max_length": 128,
        "task.overlap": 32,
        "task.labeling": "first",
        "task.metrics": ["f1", "precision", "recall", "f1_macro", "accuracy"],
    }
    assert decoder["task.labeling"].value == "last"
    assert TokenClassification(Options(max_length=64)).defaults(facts(None))["task.overlap"].value == 16
    assert TokenClassification(Options(scheme="none")).defaults(facts(None))["task.metrics"].value == ["accuracy", "f1_macro"]
    assert all(default.source for default in encoder.values())


def test_a_length_that_the_model_cannot_take_is_refused() -> None:
    assert "max_length is 512, but bert takes at most 128 tokens" in make(max_length=512).refusal(facts(128))
    assert make(max_length=512).refusal(facts(None)) == ""


def test_metrics_before_anything_is_learned() -> None:
    specs = make().metrics()
    assert (specs[0].name, specs[-1].name) == ("f1", "loss")
    assert {spec.name for spec in specs if spec.headline} == {"f1", "accuracy"}
    assert [spec.name for spec in make(scheme="none").metrics()] == ["accuracy", "f1_macro", "loss"]


# --- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({"tokens": []}, "tokens", "the sentence has no words"),
        ({"tokens": " \n"}, "tokens", "the sentence has no words"),
        ({"tokens": None}, "tokens", "the words are missing"),
        ({"tokens": 3}, "tokens", "the words are 3, which is neither a list nor text"),
        ({"tokens": ["a", 3]}, "tokens", "word 2 is 3, which is not text"),
        ({"tokens": ["a"], "tags": None}, "tags", "the tags are missing"),
        ({"tokens": ["a"], "tags": ["O", "O"]}, "tags", "2 tags for 1 words"),
        ({"tokens": "a b, c", "tags": "O O"}, "tags", "2 tags for 3 words"),
        ({"tokens": ["a"], "tags": [1.5]}, "tags", "tag 1 is 1.5, which is not text"),
        ({"tokens": ["a"], "tags": [["O"]]}, "tags", r"tag 1 is \['O'\], which is not text"),
    ],
)
def test_rows_that_do_not_fit(row: Row, column: str, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        make().check_row(row)
    assert caught.value.column == column
    assert caught.value.hint


def test_rules_and_types_are_those_of_the_training_rows() -> None:
    task = make(ROWS)
    with pytest.raises(RowError, match=r"word 2 \('b'\): I-LOC follows O, which IOB2 does not allow"):
        task.check_learned({"tokens": ["a", "b"], "tags": ["O", "I-LOC"]})
    with pytest.raises(RowError, match="type 'ORG' does not occur in the training rows, which have 'LOC', 'PER'"):
        task.check_learned({"tokens": ["a", "b"], "tags": "O B-ORG"})
    with pytest.raises(RowError, match="tag 'X' does not occur"):
        make(PLAIN_ROWS, scheme="none").check_learned({"tokens": "a", "tags": "X"})
    make(ROWS, on_invalid="repair").check_learned({"tokens": ["a", "b"], "tags": ["O", "I-LOC"]})


def test_broken_training_rows_are_reported_after_learning() -> None:
    rows = [*ROWS, {"tokens": ["a"], "tags": ["I-PER"]}]
    with pytest.raises(RowError, match=r"word 1 \('a'\): I-PER follows nothing"):
        make(rows)
    with pytest.raises(DataError, match=r"Set task\.scheme"):
        make(PLAIN_ROWS)


def test_rows_to_predict_need_no_tags() -> None:
    task = make(ROWS)
    for row in ({"tokens": "Hello."}, {"tokens": ["w1"]}):
        task.check_row(row)
        task.check_learned(row)
        assert "labels" not in task.encode([row], tiny_tokenizer())[0]


@pytest.mark.parametrize(
    ("rows", "word_split", "words"),
    [
        (ROWS, "auto", ["Anna", ",", "hi"]),
        ([{"tokens": "a b", "tags": "B-PER O"}], "auto", ["Anna,", "hi"]),
        (ROWS, "spaces", ["Anna,", "hi"]),
        ([{"tokens": "a b", "tags": "B-PER O"}], "unicode", ["Anna", ",", "hi"]),
    ],
)
def test_texts_to_predict_are_divided_like_the_training_rows(rows: list[Row], word_split: str, words: list[str]) -> None:
    task = make(rows, word_split=word_split)
    restored = make(word_split=word_split)
    restored.restore(task.state())
    for learned in (task, restored):
        assert learned._sentence({"tokens": "Anna, hi"}).words == words
        assert learned._sentence({"tokens": "Anna, hi", "tags": "O O"}).words == ["Anna,", "hi"]


def test_state_survives_json() -> None:
    for rows, options in ((ROWS, {}), (PLAIN_ROWS, {"scheme": "none"})):
        learned, restored = make(rows, **options), make(**options)
        restored.restore(json.loads(json.dumps(learned.state())))
        assert restored.state() == learned.state()
        assert restored.head() == learned.head()
        assert restored.encode(rows, tiny_tokenizer()) == learned.encode(rows, tiny_tokenizer())


def test_label_order_depends_on_neither_rows_nor_the_hash_seed() -> None:
    expected = make(ROWS).state()
    assert expected == {"labels": ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"], "scheme": "IOB2", "spaces": False}
    assert all(make(random.Random(seed).sample(ROWS, 3)).state() == expected for seed in range(3))
    code = (
        "import json; from ftkit.tasks.token_classification import *; task = TokenClassification(Options());"
        "task.learn([{'tokens': ['x'], 'tags': ['B-' + name]} for name in ('pear', 'fig', 'apple')]); print(json.dumps(task.state()))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True, timeout=60
        ).stdout
        for seed in ("0", "4242")
    }
    assert len(outputs) == 1


def test_descriptions() -> None:
    assert make(ROWS).describe(iter(ROWS)) == {
        "rows": 3,
        "words": {"min": 1, "median": 2, "mean": pytest.approx(7 / 3), "max": 4},
        "scheme": "IOB2",
        "labels": {"LOC": 3, "PER": 1},
    }
    plain = make(PLAIN_ROWS, scheme="none").describe(PLAIN_ROWS)
    assert plain["labels"] == {"ADJ": 1, "N": 2, "V": 1}
    rows = [*ROWS, {"tokens": ["w1"], "tags": ["I-PER"]}]
    assert make(rows, on_invalid="repair").describe(rows)["repaired_rows"] == 1


def test_heads_name_every_output() -> None:
    head = make(ROWS).head()
    assert (head.auto_class, head.peft_task_type, head.pretrained) == ("AutoModelForTokenClassification", "TOKEN_CLS", False)
    assert head.config["id2label"] == {0: "O", 1: "B-LOC", 2: "I-LOC", 3: "B-PER", 4: "I-PER"}
    assert head.config["label2id"]["I-PER"] == 4


# --- tokens --------------------------------------------------------------------------------------------------------


def test_a_short_sentence_is_one_feature() -> None:
    assert make(ROWS).encode(ROWS[:1], tiny_tokenizer("bert"))[0] == {
        "input_ids": [2, 8, 9, 10, 11, 3],
        "words": [0, 1, 2, 3],
        "positions": [1, 2, 3, 4],
        "word_count": 4,
        "labels": [-100, 3, 4, 0, 1, -100],
        "length": 6,
        "row": 0,
        "truncated": False,
    }


@pytest.mark.parametrize(
    ("labeling", "labels", "positions"),
    [
        ("first", [-100, 3, -100, -100, 4, -100, 0, -100], [1, 4, 6]),
        ("last", [-100, -100, -100, 3, -100, 4, 0, -100], [3, 5, 6]),
        ("all", [-100, 3, 4, 4, 4, 4, 0, -100], [1, 4, 6]),
    ],
)
def test_words_of_several_pieces(labeling: str, labels: list[int], positions: list[int]) -> None:
    row = {"tokens": ["abc", "de", "f"], "tags": ["B-PER", "I-PER", "O"]}
    feature = make([*ROWS, row], labeling=labeling).encode([row], word_pieces())[0]
    assert (feature["labels"], feature["positions"]) == (labels, positions)
    assert feature["token_type_ids"] == [0] * 8


def test_the_first_pieces_are_those_of_words_split_beforehand() -> None:
    """transformers' own way for pre-split words, on a tokenizer where both can be had."""
    tokenizer = word_pieces()
    rows = [row for row in random_rows(20) if not {"\u200b", "", "a b"} & set(row["tokens"])]
    task = make(rows, max_length=10_000)
    for row, feature in zip(rows, task.encode(rows, tokenizer), strict=True):
        encoded = tokenizer(row["tokens"], is_split_into_words=True, verbose=False)
        words = encoded.word_ids()
        expected = [
            -100 if word is None or word == words[index - 1] else task._tags.ids[row["tags"][word]]
            for index, word in enumerate(words)
        ]
        assert feature["input_ids"] == encoded["input_ids"]
        assert feature["labels"] == expected


def test_byte_level_tokenizers_need_no_prefix_space() -> None:
    tokenizer = byte_level()
    row = {"tokens": ["abc", "def", "é"], "tags": ["B-PER", "O", "B-LOC"]}
    feature = make([row]).encode([row], tokenizer)[0]
    assert feature["input_ids"] == tokenizer("abc def é")["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(feature["input_ids"])
    assert [pieces[position][:2] for position in feature["positions"]] == ["ab", "Ġd", "Ã"]


def test_no_window_is_longer_and_no_word_is_lost() -> None:
    row = {"tokens": [f"w{number}" for number in range(41)] * 5, "tags": ["B-PER"] * 205}
    features = make([row], max_length=16, overlap=4).encode([row], tiny_tokenizer("bert"))
    assert [word for feature in features for word in feature["words"]] == list(range(205))
    assert {feature["word_count"] for feature in features} == {205}
    assert {feature["length"] for feature in features} == {16}
    assert not any(feature["truncated"] for feature in features)
    for feature in features:
        assert [feature["input_ids"][position] - 7 for position in feature["positions"]] == [word % 41 for word in feature["words"]]


def test_more_rows_than_one_call_takes() -> None:
    rows = [{"tokens": [f"w{number % 40}"], "tags": ["B-PER"]} for number in range(2100)]
    features = make(rows).encode(rows, tiny_tokenizer())
    assert [item["row"] for item in features] == list(range(2100))
    assert all(item["input_ids"][1] == 7 + number % 40 for number, item in enumerate(features))


def test_mistakes_of_the_caller() -> None:
    with pytest.raises(ValueError, match="still `auto`"):
        make(ROWS, labeling="auto").encode(ROWS, tiny_tokenizer())


def test_batches_are_padded() -> None:
    task = make(ROWS)
    batch = task.collate(numbered(task, ROWS, tiny_tokenizer("bert")), tiny_tokenizer("bert"))
    assert batch["input_ids"].tolist() == [[2, 8, 9, 10, 11, 3], [2, 12, 3, 0, 0, 0], [2, 13, 14, 3, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [6, 3, 4]
    assert batch["labels"].tolist()[1] == [-100, 0, -100, -100, -100, -100]
    assert batch["word_row"].tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert batch["word_position"].tolist() == [1, 2, 3, 4, 1, 1, 2]
    assert task.target_count(batch) == 7
    assert "labels" not in task.model_inputs


def test_inspection_shows_pieces_tags_and_windows() -> None:
    row = {"tokens": ["abc", "de"], "tags": ["B-PER", "O"]}
    task = make([row], max_length=8)
    shown = task.inspect(task.encode([row], word_pieces())[0], word_pieces())
    assert shown == [
        ("<cls>", "special token"),
        ("a", "B-PER"),
        ("##b", ""),
        ("##c", ""),
        ("d", "O"),
        ("##e", ""),
        ("<sep>", "special token"),
    ]
    long = {"tokens": ["abcdef", "ab", "abcde"], "tags": ["B-PER", "O", "O"]}
    closing = [pair for item in task.encode([long], word_pieces()) for pair in task.inspect(item, word_pieces()) if not pair[0]]
    assert ("", "a window: words 1 to 2 of 3 are read here") in closing
    assert ("", "a word of more than half a window was cut") in closing


# --- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_loss_is_that_of_transformers(family: str) -> None:
    from transformers import DataCollatorForTokenClassification

    task = make(ROWS)
    model, tokenizer = model_for(family, task), tiny_tokenizer(family)
    features = numbered(task, ROWS, tokenizer)
    batch = task.collate(features, tokenizer)
    plain = [{name: feature[name] for name in ("input_ids", "labels")} for feature in features]
    reference = DataCollatorForTokenClassification(tokenizer)(plain)
    assert torch.equal(reference["labels"], batch["labels"])
    outputs = model(**reference)
    own = task.forward(model, batch)
    assert task.loss(own, batch).dtype == torch.float32
    assert (task.loss(own, batch) / task.target_count(batch)).item() == pytest.approx(outputs.loss.item(), rel=1e-5)


def test_label_smoothing_only_where_asked_for() -> None:
    task = make(ROWS)
    logits = torch.tensor([[[9.0, 9, 9, 9, 9], [3.0, 0, 0, 0, 0]]])
    batch = {"labels": torch.tensor([[-100, 0]]), "input_ids": torch.zeros(1, 2)}
    log_p = torch.log_softmax(logits[0, 1], -1)
    outputs = SimpleNamespace(logits=logits.bfloat16())
    assert task.loss(outputs, batch).item() == pytest.approx(-log_p[0].item())
    smoothed = 0.9 * -log_p[0] + 0.1 * -log_p.mean()
    assert task.loss(outputs, batch, label_smoothing=0.1).item() == pytest.approx(smoothed.item())


@pytest.mark.parametrize("family", ENCODERS + DECODERS)
def test_predictions_do_not_depend_on_the_batch(family: str) -> None:
    task = make(ROWS, labeling="last")
    model, tokenizer = model_for(family, task), tiny_tokenizer(family)
    features = numbered(task, ROWS, tokenizer)

    def predict(size: int) -> np.ndarray:
        parts: list[Prediction] = []
        for taken in batches(features, size):
            batch = task.collate(taken, tokenizer)
            with torch.no_grad():
                parts += task.predictions(task.forward(model, batch), batch)
        return np.concatenate([item["scores"] for item in gathered(task, parts)])

    assert predict(3) == pytest.approx(predict(1), abs=1e-6)
    assert predict(3).dtype == np.float32
    assert len(predict(1)) == 7


# --- results -------------------------------------------------------------------------------------------------------


def test_scores_are_seqevals() -> None:
    generator = random.Random(1)
    task = make(ROWS)
    names = task.state()["labels"]
    gold = [row["tags"] for row in random_rows(40)]
    rows = [{"tokens": ["x"] * len(tags), "tags": tags} for tags in gold]
    noisy = [[tag if generator.random() < 0.7 else generator.choice(names) for tag in tags] for tags in gold]
    scores = task.score(predicted(task, noisy), iter(rows))  # type: ignore[arg-type]
    assert list(scores) == [spec.name for spec in task.metrics()][:-1]
    assert scores == {
        "f1": pytest.approx(f1_score(gold, noisy)),
        "precision": pytest.approx(precision_score(gold, noisy)),
        "recall": pytest.approx(recall_score(gold, noisy)),
        "f1_macro": pytest.approx(f1_score(gold, noisy, average="macro")),
        "accuracy": pytest.approx(accuracy_score(gold, noisy)),
    }
    assert task.score(predicted(task, noisy), rows, ["recall"]) == {"recall": scores["recall"]}
    intervals = task.intervals(predicted(task, noisy), rows)
    assert set(intervals) == {"f1", "accuracy"}
    assert all(low < scores[name] < high for name, (low, high) in intervals.items())


def test_plain_tags_are_scored_word_by_word() -> None:
    from sklearn.metrics import f1_score as label_f1

    task = make(PLAIN_ROWS, scheme="none")
    predictions = predicted(task, [["N", "N", "N"], ["ADJ"]])
    expected = label_f1(["N", "V", "N", "ADJ"], ["N", "N", "N", "ADJ"], average="macro")
    assert task.score(predictions, PLAIN_ROWS) == {"accuracy": 0.75, "f1_macro": pytest.approx(expected)}
    assert task.details(predictions, PLAIN_ROWS)["labels"][0] == {
        "label": "ADJ",
        "precision": 1.0,
        "recall": 1.0,
        "f1": 1.0,
        "support": 1,
    }
    assert task.present(predictions[1], PLAIN_ROWS[1]) == {"tokens": ["w4"], "tags": ["ADJ"], "scores": [0.5]}


def test_details_are_a_table_by_type() -> None:
    task = make(ROWS)
    predictions = predicted(task, [["B-PER", "I-PER", "O", "O"], ["O"], ["B-LOC", "O"]])
    details = task.details(predictions, ROWS)
    assert details["types"][0] == {"type": "LOC", "precision": 1.0, "recall": pytest.approx(1 / 3), "f1": 0.5, "support": 3}
    assert json.loads(json.dumps(details)) == details
    assert task.details([], []) == {}


def test_scores_that_are_undefined() -> None:
    task = make(ROWS)
    predictions = predicted(task, [row["tags"] for row in ROWS])
    predictions[0]["scores"][1] = np.nan
    assert set(task.score(predictions, ROWS).values()) == {None}
    assert task.score(predictions, ROWS, ["f1"]) == {"f1": None}
    assert task.intervals(predictions, ROWS) == {}
    assert set(task.score([], []).values()) == {None}
    assert task.intervals([], []) == {}
    with pytest.raises(RowError, match="the tags are missing"):
        task.score(predictions, [{"tokens": row["tokens"]} for row in ROWS])


def test_entities_of_a_text_have_its_characters() -> None:
    task = make(ROWS)
    row = {"tokens": "Hi, Anna  Smith of Lima."}
    shown = task.present(predicted(task, [["O", "O", "B-PER", "I-PER", "O", "I-LOC", "O"]])[0], row)
    assert shown == {
        "entities": [
            {"type": "PER", "text": "Anna  Smith", "start": 4, "end": 15, "word_start": 2, "word_end": 4, "score": 0.5},
            {"type": "LOC", "text": "Lima", "start": 19, "end": 23, "word_start": 5, "word_end": 6, "score": 0.5},
        ],
        "tokens": ["Hi", ",", "Anna", "Smith", "of", "Lima", "."],
        "tags": ["O", "O", "B-PER", "I-PER", "O", "B-LOC", "O"],
    }
    assert json.loads(json.dumps(shown)) == shown
    words = task.present(predicted(task, [["O", "B-LOC"]])[0], {"tokens": ["in", "New York"]})
    assert words["entities"][0] == {
        "type": "LOC",
        "text": "New York",
        "start": 3,
        "end": 11,
        "word_start": 1,
        "word_end": 2,
        "score": 0.5,
    }


def test_a_word_missing_from_all_windows_is_noticed() -> None:
    part = {"example": 4, "words": [0, 2], "labels": np.array([0, 0]), "scores": np.ones(2, np.float32), "word_count": 3}
    with pytest.raises(RuntimeError, match="example 4: 2 words were predicted, it has 3"):
        make(ROWS).combine([part])
