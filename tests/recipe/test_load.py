from __future__ import annotations

import pytest

from ftkit.errors import RecipeError
from ftkit.recipe.load import parse_recipe

BASE = {
    "model": "m",
    "task": "text-classification",
    "data": "{train: a.csv, validation: b.csv}",
    "method": "lora",
}


def recipe(**keys: str | None) -> str:
    values = {**BASE, **keys}
    return "".join(f"{key}: {value}\n" for key, value in values.items() if value is not None)


def problems(**keys: str | None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe(**keys), "r.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_a_small_recipe_and_its_defaults() -> None:
    found = parse_recipe(recipe(method="{name: lora, rank: 2}"), "r.yaml", ["train.epochs=2", "seed=4"])
    assert (found.model.name, found.method.name, found.method.options.rank) == ("m", "lora", 2)  # type: ignore[attr-defined]
    assert (found.train.epochs, found.train.batch_size, found.seed) == (2.0, 32, 4)
    assert found.data.train[0].path == "a.csv"
    assert found.origin.overrides == ("train.epochs=2", "seed=4")


@pytest.mark.parametrize("key", ["learning_rate", "epochs", "weight_decay", "warmup_ratio", "eval_batch_size", "best_metric"])
def test_auto_may_be_written_out(key: str) -> None:
    assert getattr(parse_recipe(recipe(train=f"{{{key}: auto}}"), "r").train, key) == "auto"


def test_every_problem_is_reported_with_its_place() -> None:
    found = problems(
        model="{name: m, revison: main}",
        data="{train: [a.csv, {path: b.csv, weight: 0}], splitt: 3}",
        method="{name: lora, rank: -1, lora_alpha: 3}",
        train="{epochs: -1, batch_size: 2.5, schedule: cubic, patience: 3}",
        export="[adapter, onnx]",
    )
    expected = [
        "r.yaml:1:18: model.revison: unknown key 'revison'. Did you mean 'revision'?",
        "r.yaml:3:37: data.train[1].weight: 0 is not a number > 0",
        "r.yaml:3:50: data.splitt: unknown key 'splitt'. Did you mean 'split'?",
        "r.yaml:4:22: method.rank: -1 is not a number >= 1",
        "r.yaml:4:32: method.lora_alpha: unknown key 'lora_alpha'. Did you mean 'alpha'?",
        "r.yaml:5:9: train.epochs: -1 is not a number > 0 or 'auto'",
        "r.yaml:5:21: train.batch_size: 2.5 is not a whole number",
        "r.yaml:5:38: train.schedule: 'cubic' is not one of 'linear', 'cosine', 'constant' or 'inverse_sqrt'",
        "r.yaml:5:55: train.patience: unknown key 'patience' here. It belongs under `train.early_stopping`",
        "r.yaml:6:19: export[1]: 'onnx' is not one of 'adapter' or 'merged'",
    ]
    assert found == expected


def test_rules_across_keys_are_reported_beside_problems_of_single_keys() -> None:
    found = problems(
        method="full", export="[adapter]", train="{batchsize: 3, epochs: x, early_stopping: {metric: acuracy, pateince: 1}}"
    )
    text = "\n".join(found)
    for part in ("'batchsize'", "train.epochs", "'pateince'", "no separate adapter", "unknown metric 'acuracy'"):
        assert part in text
    assert len(found) == 5


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": None}, "task: a task name is required. Known: image-classification, "),
        ({"method": "lroa"}, "unknown method 'lroa'. Did you mean 'lora'? Known: "),
        ({"task": "text_classification"}, "unknown task 'text_classification'. Did you mean 'text-classification'?"),
        ({"data": None}, "data: is required. Add `data:`"),
        ({"model": None}, "model: is required"),
        ({"train": "{lr: 1e-3}"}, "train.lr: unknown key 'lr'. Did you mean 'learning_rate'?"),
        ({"train": "{bs: 8}"}, "train.bs: unknown key 'bs'. Did you mean 'batch_size'?"),
        ({"train": "{wd: 0.1}"}, "train.wd: unknown key 'wd'. Did you mean 'weight_decay'?"),
        ({"train": "{warmup: 0.1}"}, "train.warmup: unknown key 'warmup'. Did you mean 'warmup_ratio'?"),
        ({"train": "{r: 4}"}, "train.r: unknown key 'r'. Did you mean 'rank', under `method`"),
        ({"expect": "{accuracy: 0.9}"}, "expect.accuracy: 0.9 is not a comparison"),
        ({"expect": "{accuracy: 0.9}"}, 'in quotes: `accuracy: ">= 0.9"`'),
        ({"train": "{rank: 4}"}, "train.rank: unknown key 'rank' here. It belongs under `method`"),
        ({"max_length": "4"}, "max_length: unknown key 'max_length' here. It belongs under `task`"),
        ({"epochs": "4"}, "epochs: unknown key 'epochs' here. It belongs under `train`"),
        ({"data": "{train: a, split: {validation: 0.5, test: 0.5}}"}, "leave nothing to train on"),
        ({"data": "{train: a, validation: b, split: {validation: 0.1}}"}, "`data.validation` already names the validation rows"),
        ({"data": "{train: a}", "train": "{early_stopping: {patience: 2}}"}, "train.early_stopping: needs validation rows"),
        ({"data": "{train: a}", "train": "{best_metric: f1_macro}"}, "'f1_macro' would pick the best weights on validation rows"),
        ({"data": "{train: a}", "expect": '{accuracy: ">= 0.5"}'}, "no test or validation split"),
        ({"expect": '{accuracy: "0.5"}'}, "expect.accuracy: '0.5' is not a comparison with a number"),
        ({"expect": '{acc: ">= 0.5"}'}, "expect.acc: unknown metric 'acc'. The metrics of text-classification: accuracy"),
        ({"train": "{best_metric: rouge}"}, "train.best_metric: unknown metric 'rouge'"),
        ({"train": "{best_metric: accuracy, early_stopping: {metric: f1_macro}}"}, "`train.best_metric` is 'accuracy'"),
        ({"train": "{momentum: 0.9}"}, "the optimizer 'adamw' has no momentum"),
        ({"train": "{warmup_ratio: 0.1, warmup_steps: 3}"}, "give warmup_ratio or warmup_steps, not both"),
        ({"train": "{evaluate_every: {epochs: 1, steps: 3}}"}, "give exactly one of epochs and steps"),
        (
            {"method": "full", "export": "[adapter]"},
            "full trains the model itself; there is no separate adapter. Use `export: [merged]`",
        ),
        (
            {"task": "{name: text-classification, problem_type: regression}", "train": "{label_smoothing: 0.1}"},
            "no labels to smooth",
        ),
        ({"train": "{learning_rate: .nan}"}, "train.learning_rate: nan is not a finite number"),
        ({"data": "{train: a, split: {validation: 0.1, group: user, stratify: label}}"}, "cannot be stratified too"),
    ],
)
def test_messages(keys: dict[str, str | None], message: str) -> None:
    found = problems(**keys)
    assert any(message in problem for problem in found), found


@pytest.mark.parametrize(
    ("text", "message"), [("", "the recipe is empty"), ("- a\n", "is not a mapping of keys"), ("x\n", "not a mapping")]
)
def test_documents_that_are_no_recipe(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text, "r")
