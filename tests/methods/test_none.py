"""The untuned baseline: evaluated and exported like a run, but nothing changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ftkit
from ftkit.errors import ModelError, RecipeError
from tests.tiny import WORDS, save_tiny

RECIPE = """
model: {model}
task: {{name: language-modeling, max_length: 16}}
data: {{train: texts.jsonl, validation: texts.jsonl, test: texts.jsonl, leaks: "off"}}
method: none
train: {{evaluate_first: true}}
export: [merged]
expect: {{perplexity: "> 1"}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    model = save_tiny(tmp_path / "model", "llama", "AutoModelForCausalLM")
    texts = [" ".join(WORDS[start : start + 9]) for start in range(20)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=model))
    return path


def test_a_run_without_tuning_gives_the_figures_of_the_untouched_model(recipe: Path, tmp_path: Path) -> None:
    result = ftkit.train(ftkit.load_recipe(recipe), output=tmp_path / "run")
    results = result.results
    assert (result.exit_code, results["status"], results["steps"], results["total_steps"]) == (0, "completed", 0, 0)
    assert results["parameters"]["trainable"] == 0
    test = results["splits"]["test"]
    assert test["metrics"] == test["before"]
    assert test["metrics"]["perplexity"] == pytest.approx(64, rel=0.2), "random weights know nothing of 64 tokens"
    base, exported = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", tmp_path / "run/export/merged"))
    assert base.keys() == exported.keys()
    assert all(torch.equal(exported[name], base[name]) for name in base)
    evaluated = ftkit.load(tmp_path / "run").evaluate(data=str(tmp_path / "texts.jsonl"))
    assert evaluated["metrics"]["perplexity"] == pytest.approx(test["metrics"]["perplexity"], rel=1e-6)
    assert ftkit.train(ftkit.load_recipe(recipe), output=tmp_path / "run", resume=True).results["status"] == "completed"


def test_a_head_without_values_is_no_baseline(recipe: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "three", "llama")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": "w1 w2", "label": label}) + "\n" for label in "ab" * 5))
    text = recipe.read_text().replace("{name: language-modeling, max_length: 16}", "text-classification")
    recipe.write_text(text.replace("texts.jsonl", "rows.jsonl").replace("perplexity", "accuracy"))
    with pytest.raises(RecipeError, match="a head for text-classification would be random: the checkpoint is a LlamaForCausalLM"):
        ftkit.validate(ftkit.load_recipe(recipe))
    # A head for three labels is none for two.
    other = ftkit.load_recipe(recipe, [f"model={tmp_path / 'three'}"])
    assert ftkit.validate(other)
    with pytest.raises(ModelError, match="would leave them random"):
        ftkit.train(other, output=tmp_path / "run")
