from __future__ import annotations

import json
from pathlib import Path

import ftkit
from ftkit.data.splits import load_splits
from ftkit.recipe.load import parse_recipe
from ftkit.recipe.phase_plans import whole_yaml
from ftkit.run.planning import make_plan_here
from ftkit.run.smoke_slice import EVALUATED, LONGEST_EVALUATED, changes, slice_of, smaller_plan
from tests.tiny import save_tiny


def project(folder: Path, rows: list[dict[str, object]], **keys: str) -> Path:
    save_tiny(folder / "bert", "bert", num_labels=2)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "model": "bert",
        "task": "text-classification",
        "data": "{train: rows.jsonl, split: {validation: 0.2}}",
        "method": "lora",
        **keys,
    }
    (folder / "recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()), encoding="utf-8")
    return folder / "recipe.yaml"


def rows_of(labels: list[str]) -> list[dict[str, object]]:
    return [{"text": f"w{number % 40} w{number // 40}", "label": label} for number, label in enumerate(labels)]


def test_every_label_is_in_the_slice_and_the_task_knows_all_of_them(tmp_path: Path) -> None:
    rare = [f"rare {number}" for number in range(6) for _ in range(8)]
    path = project(tmp_path, rows_of(["common"] * 400 + rare), train="{batch_size: 2}")
    plan = make_plan_here(ftkit.load_recipe(path))
    task = plan.task()
    splits = load_splits(plan.recipe.data, task, tmp_path)
    few = slice_of(splits, task, plan=smaller_plan(plan))
    assert few.validation is not None
    assert (len(few.train), len(few.validation), few.test) == (8, EVALUATED, None)
    assert set(few.train.column("label")) == {"common", *rare} == set(task.state()["labels"])
    assert few.train.fingerprint() == slice_of(splits, task, plan=smaller_plan(plan)).train.fingerprint()


def test_tags_and_several_labels_count_one_by_one_and_texts_do_not(tmp_path: Path) -> None:
    words = [{"tokens": ["w1", "w2"], "tags": ["O", "O"]} for _ in range(60)]
    words += [{"tokens": ["w3", f"w{number}"], "tags": ["B-A", "B-C" if number == 35 else "I-A"]} for number in range(20, 40)]
    plan = make_plan_here(ftkit.load_recipe(project(tmp_path, [*words], task="token-classification", data="{train: rows.jsonl}")))
    task = plan.task()
    few = slice_of(load_splits(plan.recipe.data, task, tmp_path), task, plan=smaller_plan(plan))
    assert {tag for tags in few.train.column("tags") for tag in tags} == {"O", "B-A", "I-A", "B-C"}
    assert len(few.train) == 16


def test_rows_that_are_books_are_few(tmp_path: Path) -> None:
    long = "w1 " * (LONGEST_EVALUATED // 8)
    rows = [{"text": long + f"w{number}", "label": ("a", "b")[number % 2]} for number in range(40)]
    plan = make_plan_here(ftkit.load_recipe(project(tmp_path, [*rows])))
    task = plan.task()
    few = slice_of(load_splits(plan.recipe.data, task, tmp_path), task, plan=smaller_plan(plan))
    assert few.validation is not None
    assert len(few.validation) == 2


def test_the_smaller_plan_is_a_recipe_and_says_what_it_changed(tmp_path: Path) -> None:
    train = "{batch_size: 64, gradient_accumulation_steps: 8, warmup_steps: 100, early_stopping: {patience: 2}, num_processes: 4}"
    keys = {"train": train, "expect": '{accuracy: "> 0.5"}', "trackers": "[tensorboard]", "seed": "7"}
    path = project(tmp_path, rows_of(["a", "b"] * 20), **keys)
    plan = make_plan_here(ftkit.load_recipe(path))
    smaller = smaller_plan(plan)
    again = parse_recipe(whole_yaml(smaller), base=tmp_path)
    assert (again.train.batch_size, again.train.gradient_accumulation_steps, again.train.max_steps) == (4, 2, 4)
    assert (again.train.early_stopping, again.train.num_processes, again.expect, again.trackers) == (None, None, {}, [])
    assert (again.seed, again.train.warmup_steps, again.method, again.export) == (7, 100, plan.recipe.method, plan.recipe.export)
    found = changes(plan, smaller)
    assert found["train.batch_size"] == {"recipe": 64, "smoke": 4}
    assert found["train.max_steps"] == {"recipe": None, "smoke": 4}
    assert not [key for key in found if key.startswith(("model", "method", "task"))]


def test_each_phase_gets_four_steps(tmp_path: Path) -> None:
    path = project(tmp_path, rows_of(["a", "b"] * 20))
    text = path.read_text().replace(
        "method: lora\n", "phases: [{method: linear-probe, max_steps: 50}, {method: lora, epochs: 3}]\n"
    )
    plan = make_plan_here(parse_recipe(text, base=tmp_path))
    again = parse_recipe(whole_yaml(smaller_plan(plan)), base=tmp_path)
    assert [phase.train.max_steps for phase in (*again.earlier, again)] == [4, 4]
    assert [phase.method.name for phase in (*again.earlier, again)] == ["linear-probe", "lora"]
