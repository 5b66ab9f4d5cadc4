"""Reparametrizing methods from a recipe to proven exports: what happens before training, beside steps and while saving fits together.

That a new process computes the same is the contract suite's to show.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import ftkit
from ftkit.errors import RecipeError
from tests.run.test_train import RecipeFile


@pytest.mark.usefixtures("exports_proved_here")
@pytest.mark.parametrize(
    "method",
    [
        "{name: lora, rank: 4, init: eva, loraplus_lr_ratio: 4.0}",
        "{name: lora, rank: 4, init: olora}",
        "{name: lora, rank: 4, init: pissa, pissa_iterations: 2}",
        "{name: loha, rank: 2}",
        "{name: lokr, rank: null}",
        "{name: vera, rank: 8}",
        "{name: oft, block_size: 4}",
        "{name: boft, block_size: 4, factors: 2}",
        "{name: peft, type: RANDLORA, config: {r: 4}}",
        "{name: peft, type: SHIRA, config: {r: 2}}",
    ],
)
def test_runs_to_proven_exports(recipe_file: RecipeFile, tmp_path: Path, method: str) -> None:
    recipe = ftkit.load_recipe(recipe_file(method=method, export="[adapter, merged]"))
    ftkit.train(recipe, output=tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "completed"
    assert {form: facts["max_abs_difference"] <= 1e-5 for form, facts in results["exports"].items()} == {
        "adapter": True,
        "merged": True,
    }
    again = ftkit.export(tmp_path / "run", "adapter", to=tmp_path / "again")
    assert again["max_abs_difference"] <= 1e-5
    first, second = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "run/export/adapter", tmp_path / "again")
    )
    assert first.keys() == second.keys()


def test_a_type_that_cannot_be_merged_is_refused_by_the_recipe(recipe_file: RecipeFile) -> None:
    path = recipe_file(method="{name: peft, type: LILY, config: {r: 4}}", export="[adapter, merged]")
    with pytest.raises(RecipeError, match="what peft trains cannot be merged into the model"):
        ftkit.load_recipe(path)


def test_wrong_settings_have_their_place_in_the_recipe(recipe_file: RecipeFile) -> None:
    with pytest.raises(RecipeError, match=r"method.*RANDLORA has no setting 'rank'"):
        ftkit.load_recipe(recipe_file(method="{name: peft, type: RANDLORA, config: {rank: 4}}", export="[adapter]"))
    with pytest.raises(RecipeError, match=r"XLORA is refused"):
        ftkit.load_recipe(recipe_file(method="{name: peft, type: XLORA}", export="[adapter]"))
