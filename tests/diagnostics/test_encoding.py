from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftkit.data.splits import Splits
from ftkit.diagnostics.encoding import encoding_findings, unknown_id
from ftkit.diagnostics.findings import Finding
from ftkit.diagnostics.roles import roles_of
from ftkit.models.facts import read_facts
from ftkit.recipe.load import load_recipe
from ftkit.recipe.plan import Plan, make_plan
from ftkit.registry import TASKS
from ftkit.tasks.base import Batch, Task
from tests.diagnostics.rows import Row, table
from tests.tiny import save_tiny, tiny_tokenizer

Make = Callable[..., Plan]


def known_rows(count: int, words: int = 6) -> list[Row]:
    """Texts of words that the tiny tokenizer knows."""
    draw = random.Random(0)
    return [{"text": " ".join(f"w{draw.randrange(41)}" for _ in range(words)), "label": "ab"[n % 2]} for n in range(count)]


@pytest.fixture
def make(recipe_file: Callable[..., Path]) -> Make:
    def plan(**keys: str) -> Plan:
        recipe = load_recipe(recipe_file(**keys))
        return make_plan(recipe, read_facts(recipe.model, recipe.origin.base), gpu=False, gpu_bf16=False)

    return plan


def found_in(plan: Plan, rows: list[Row], task: Task | None = None) -> list[Finding]:
    task, found = task or plan.task(), table(rows)
    task.learn(found)
    return encoding_findings(plan, task, Splits(train=found), {"train": roles_of(task, found)}, cache=False)


def test_short_rows_of_known_words_have_nothing(make: Make) -> None:
    assert found_in(make(), known_rows(50)) == []


def test_cut_rows_are_found_with_what_they_lose(make: Make) -> None:
    rows = known_rows(98, words=6)
    rows[10]["text"] = " ".join(["w1"] * 30)
    rows[20]["text"] = " ".join(["w2"] * 38)
    plan = make(task="{name: text-classification, max_length: 22}")
    (finding,) = found_in(plan, rows)
    assert (finding.check, finding.severity, finding.rows) == ("cut-rows", "note", 2)
    assert finding.places == ("train.jsonl, row 11", "train.jsonl, row 21")
    assert finding.details == ("32 tokens", "40 tokens")
    # 96 rows of 8 tokens, and 32 and 40 of which 22 are left.
    assert f"{100 * 28 / (96 * 8 + 72):.2g} % of all tokens are lost" in finding.message
    assert "50 % up to 8" in finding.message
    assert "the longest 40" in finding.message


def test_many_cut_rows_are_a_warning_with_a_length_that_would_do(make: Make) -> None:
    plan = make(task="{name: text-classification, max_length: 10}")
    (finding,) = found_in(plan, [*known_rows(90), *known_rows(10, words=20)])
    assert finding.severity == "warning"
    assert finding.hint == "`task.max_length: 24` keeps 95 % of the rows whole"


def test_the_advice_is_a_length_beyond_the_present_one(make: Make) -> None:
    rows = known_rows(500)
    rows[3]["text"] = " ".join(["w1"] * 40)
    (finding,) = found_in(make(task="{name: text-classification, max_length: 16}"), rows)
    assert finding.hint == "`task.max_length: 48` keeps 100 % of the rows whole"
    (finding,) = found_in(make(task="{name: text-classification, max_length: 16}"), [*known_rows(60), *known_rows(40, words=100)])
    assert finding.hint.startswith("`task.max_length: 64`, all that the model takes, keeps 60 % whole, or set `task.long_texts")


def test_rows_beyond_the_model_ask_for_windows(make: Make) -> None:
    (finding,) = found_in(make(), known_rows(40, words=100))
    assert "The model takes no more" in finding.hint
    assert "task.long_texts: windows" in finding.hint
    assert found_in(make(task="{name: text-classification, long_texts: windows}"), known_rows(40, words=100)) == []


def test_a_pair_counts_both_its_texts(make: Make) -> None:
    rows = [{**row, "text_pair": row["text"]} for row in known_rows(40, words=20)]
    (finding,) = found_in(make(task="{name: text-classification, max_length: 30}"), rows)
    assert finding.details[0] in ("42 tokens", "43 tokens")


def test_unknown_words_are_counted(make: Make) -> None:
    rows = known_rows(100, words=18)
    rows[3]["text"] += " привет"
    assert found_in(make(), rows) == []
    rows[4]["text"] += " мир мир мир"
    (noted,) = found_in(make(), rows)
    assert (noted.check, noted.severity, noted.rows) == ("unknown-tokens", "note", 2)
    for row in rows[50:60]:
        row["text"] += " мир мир мир"
    (warned,) = found_in(make(), rows)
    assert (warned.severity, warned.rows) == ("warning", 12)
    assert warned.details[1] == "3 of 23 tokens"


def test_an_unknown_token_that_is_also_another_one_says_nothing() -> None:
    tokenizer = tiny_tokenizer()
    assert unknown_id(tokenizer) == tokenizer.unk_token_id
    tokenizer.pad_token = tokenizer.unk_token
    assert unknown_id(tokenizer) is None


def test_a_tokenizer_that_cannot_be_loaded_is_a_warning(make: Make, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "broken", "bert")
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    (finding,) = found_in(make(model=str(folder)), known_rows(20))
    assert (finding.check, finding.severity) == ("no-tokenizer", "warning")


class _Half(TASKS.get("text-classification")):  # type: ignore[misc]
    """Leaves out training rows with the word w0; those with w1 have no target."""

    name = "text-classification"
    left_out = "they say w0"

    def encode(self, rows: Any, processor: Any, *, training: bool = False) -> Any:
        features = super().encode(rows, processor, training=training)
        return [item for item in features if not (training and "w0" in rows[item["row"]]["text"].split())]

    def target_count(self, batch: Batch) -> int:
        return sum(int(7 + 1 not in row) for row in batch["input_ids"].tolist())


@pytest.mark.parametrize(("count", "severity"), [(2, "warning"), (50, "warning"), (51, "error")])
def test_rows_that_training_leaves_out(make: Make, count: int, severity: str) -> None:
    plan = make()
    rows = [{"text": "w3 w4 w0" if n < count else "w3 w4", "label": "ab"[n % 2]} for n in range(100)]
    (finding,) = found_in(plan, rows, _Half(plan.recipe.task.options))
    assert (finding.check, finding.severity, finding.rows) == ("left-out-rows", severity, count)
    assert "they say w0" in finding.message


def test_rows_without_a_target(make: Make) -> None:
    plan = make()
    rows = [{"text": "w3 w1" if n in (4, 9) else "w3 w4", "label": "ab"[n % 2]} for n in range(30)]
    (finding,) = found_in(plan, rows, _Half(plan.recipe.task.options))
    assert (finding.check, finding.places) == ("no-target", ("train.jsonl, row 5", "train.jsonl, row 10"))


def test_a_task_that_must_see_the_model_first_is_left_alone(make: Make) -> None:
    class Bound(_Half):
        def bind(self, model: Any, processor: Any) -> None: ...

        def collate(self, *arguments: Any, **more: Any) -> Batch:
            raise AssertionError("collate before bind")

    plan = make()
    assert found_in(plan, [{"text": "w3 w1", "label": "ab"[n % 2]} for n in range(30)], Bound(plan.recipe.task.options)) == []


def test_rows_that_cannot_be_encoded_are_an_error(make: Make) -> None:
    from ftkit.tasks.base import RowError

    class Picky(_Half):
        def encode(self, rows: Any, processor: Any, *, training: bool = False) -> Any:
            if any("w9" in row["text"] for row in rows):
                raise RowError("text", "is cut short", "Repair it")
            return super().encode(rows, processor, training=training)

    plan = make()
    rows = [{"text": "w9 w4" if n == 6 else "w3 w4", "label": "ab"[n % 2]} for n in range(30)]
    (finding,) = found_in(plan, rows, Picky(plan.recipe.task.options))
    assert (finding.check, finding.severity, finding.places) == ("unusable-rows", "error", ("train.jsonl, row 7",))


def test_lengths_are_those_of_the_plan(make: Make) -> None:
    plan = make(task="{name: text-classification, max_length: 10}")
    short = replace(plan, facts=replace(plan.facts, max_positions=16))
    (finding,) = found_in(short, known_rows(20, words=30))
    assert "`task.max_length: 16`, all that the model takes, keeps 0 % whole" in finding.hint
