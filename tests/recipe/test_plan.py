from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftkit.errors import RecipeError
from ftkit.models.facts import ModelFacts
from ftkit.recipe.expectations import parse_bound
from ftkit.recipe.json_schema import recipe_schema
from ftkit.recipe.load import parse_recipe
from ftkit.recipe.plan import Plan, locate, make_plan, recipe_values
from ftkit.registry import METHODS, TASKS

FACTS = ModelFacts(
    kind="encoder", model_type="bert", hidden_size=384, block_count=6, max_positions=512, vocab_size=30522, path=None
)
TEXT = """\
model: m
task: text-classification
data: {train: a.csv, split: {validation: 0.1}}
method: lora
train: {early_stopping: {patience: 2}}
"""


def plan(text: str = TEXT, *overrides: str, gpu: bool = False, bf16: bool = False, facts: ModelFacts = FACTS) -> Plan:
    return make_plan(parse_recipe(text, "r", overrides), facts, gpu=gpu, gpu_bf16=bf16)


def autos(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict):
        return {found for key, item in value.items() for found in autos(item, f"{path}.{key}")}
    if isinstance(value, list):
        return {found for item in value for found in autos(item, path)}
    return {path} if value == "auto" else set()


@pytest.mark.parametrize("method", [name for name in METHODS.names() if not METHODS.get(name).needs])
def test_nothing_stays_auto_but_what_others_decide(method: str) -> None:
    left = autos(recipe_values(plan(TEXT, f"method={method}").recipe))
    assert left <= {".model.attention", ".data.train.format", ".data.split.stratify", ".data.num_workers"}


def test_every_filled_value_names_its_source() -> None:
    found = plan()
    assert found.sources["train.learning_rate"]
    assert found.sources["train.early_stopping.metric"] == "train.best_metric"
    assert all(source for source in found.sources.values())


def test_a_plan_is_a_recipe_that_gives_the_same_plan() -> None:
    first = plan()
    text = first.to_yaml()
    second = plan(text)
    assert recipe_values(first.recipe) == recipe_values(second.recipe)
    assert second.sources == {}
    assert "# " + first.sources["train.learning_rate"] in text


def test_random_weights_are_for_methods_that_train_them_all() -> None:
    changed = TEXT.replace("model: m", "model: {name: m, weights: random}")
    with pytest.raises(RecipeError, match="lora would leave most of them random"):
        plan(changed)
    assert plan(changed, "method=full").recipe.model.weights == "random"


def test_precision_follows_the_machine() -> None:
    assert plan().recipe.train.precision == "fp32"
    assert plan(gpu=True, bf16=True).recipe.train.precision == "bf16"
    with pytest.raises(RecipeError, match="fp16 needs a GPU"):
        plan(TEXT, "train.precision=fp16")
    assert plan(TEXT, "train.precision=fp16", gpu=True).recipe.train.precision == "fp16"


def test_early_stopping_and_best_metric_agree() -> None:
    watched = plan(TEXT, "train.early_stopping.metric=f1_macro").recipe.train
    assert (watched.best_metric, watched.early_stopping.metric if watched.early_stopping else "") == ("f1_macro", "f1_macro")
    loss = plan(TEXT, "train.best_metric=loss").recipe.train
    assert loss.early_stopping is not None
    assert (loss.early_stopping.metric, loss.early_stopping.mode) == ("loss", "min")


def test_a_model_of_the_wrong_kind_is_refused() -> None:
    vision = FACTS.__class__(**{**vars(FACTS), "kind": "vision", "model_type": "vit"})
    with pytest.raises(RecipeError, match="vit is of the kind 'vision'; text-classification needs one of"):
        plan(facts=vision)


SEQ2SEQ = """\
model: m
task: seq2seq
data: {train: a.csv}
method: full
"""


def test_an_encoder_that_is_to_write_is_told_of_the_pair() -> None:
    with pytest.raises(RecipeError, match=r"bert is of the kind 'encoder'; seq2seq .* decoder beside it with `model.decoder`"):
        plan(SEQ2SEQ)
    decoder = replace(FACTS, kind="decoder", model_type="gpt2")
    with pytest.raises(RecipeError, match=r"needs one of: encoder-decoder\. Choose another model$"):
        plan(SEQ2SEQ, facts=decoder)


def test_a_pair_is_refused_where_a_single_model_is_wanted() -> None:
    pair = replace(FACTS, kind="encoder-decoder", model_type="encoder-decoder")
    with pytest.raises(RecipeError, match=r"model.decoder: .* text-classification takes a single model") as caught:
        plan(TEXT, "model.decoder=n", facts=pair)
    assert len(caught.value.problems) == 1
    assert plan(SEQ2SEQ, "model.decoder=n", facts=pair).recipe.model.decoder == "n"


@pytest.mark.parametrize(("tied", "refused"), [(True, True), (False, False), (None, False)])
def test_a_method_may_refuse_a_task(tied: bool | None, refused: bool) -> None:
    model = replace(FACTS, kind="encoder-decoder", model_type="t5", tied=tied)
    if not refused:
        assert plan(SEQ2SEQ, "method=linear-probe", facts=model)
        return
    with pytest.raises(RecipeError, match=r"^method: t5 as a language model has no head of its own.*`lora`"):
        plan(SEQ2SEQ, "method=linear-probe", facts=model)
    assert plan(TEXT, "method=linear-probe", facts=model)


def test_locate_makes_existing_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    for name in ("here.csv", "recipes/there.csv", "a#b.csv"):
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "recipes"
    assert locate("here.csv", base) == str(tmp_path / "here.csv")
    assert locate("there.csv", base) == str(base / "there.csv")
    assert locate("there.csv#5", base) == str(base / "there.csv#5")
    assert locate("a#b.csv", base) == str(tmp_path / "a#b.csv")
    assert locate("*.csv", base) == "*.csv"
    assert locate("recipes/*.csv", base) == str(tmp_path / "recipes/*.csv")
    for text in ("package:x/y", "hub:a/b", "org/name", str(tmp_path / "here.csv")):
        assert locate(text, base) == text


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        (">= 0.5", 0.5, True),
        ("> 0.5", 0.5, False),
        ("< 1e-3", 5e-4, True),
        ("<=-1", -1.0, True),
        (">= .5", None, False),
        ("> 0", float("nan"), False),
    ],
)
def test_bounds(text: str, value: float | None, holds: bool) -> None:
    bound, wrong = parse_bound(text)
    assert wrong == ""
    assert bound is not None
    assert bound.holds(value) is holds


def test_json_schema_knows_every_component() -> None:
    schema = recipe_schema()
    json.dumps(schema, allow_nan=False)
    for kind, registry in (("task", TASKS), ("method", METHODS)):
        names, *forms = schema["properties"][kind]["anyOf"]
        assert names["enum"] == registry.names()
        assert {form["properties"]["name"]["const"] for form in forms} == set(registry.names())
        assert all(form["additionalProperties"] is False for form in forms)
    assert set(schema["required"]) == {"data", "model", "task"}, "and either method or phases"


def test_warmup_steps_leave_the_ratio_open_so_that_the_plan_stays_a_recipe() -> None:
    found = plan(TEXT, "train.warmup_steps=7")
    assert found.recipe.train.warmup_ratio == "auto"
    assert plan(found.to_yaml()).recipe.train.warmup_steps == 7
