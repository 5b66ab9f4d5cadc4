from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import ftkit
from ftkit.errors import ModelError
from ftkit.methods.base import Method
from ftkit.methods.multitask_prompt_tuning import MultitaskPromptTuning, Options
from ftkit.methods.parts.prompts import prompt_of
from ftkit.methods.prompt_tuning import Options as PlainOptions
from ftkit.methods.prompt_tuning import PromptTuning
from ftkit.run.planning import make_plan_here
from ftkit.tuners.prompt_transfer import decompose
from tests.methods.cases import fresh_model

RecipeFile = Callable[..., Path]
LENGTH, WIDTH = 4, 16


def saved(method: Method, folder: Path, seed: int) -> Tensor:
    """Writes an adapter of random values; returns its prompt."""
    model = method.apply(*fresh_model("bert"))
    prompt = prompt_of(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.uniform_(0.5, 1.5)
    method.save_adapter(model, folder)
    return prompt().detach()


def started(*folders: Path) -> torch.nn.Module:
    method = MultitaskPromptTuning(Options(length=LENGTH, sources=[str(folder) for folder in folders]))
    model = method.apply(*fresh_model("bert"))
    method.training_begins(model, 10)
    return prompt_of(model)


def test_the_prompt_is_the_shared_one_scaled_by_two_vectors() -> None:
    prompt = prompt_of(MultitaskPromptTuning(Options(length=LENGTH)).apply(*fresh_model("bert")))
    torch.testing.assert_close(prompt(), prompt.shared)
    with torch.no_grad():
        prompt.rows.uniform_()
        prompt.columns.uniform_()
    torch.testing.assert_close(prompt(), prompt.shared * torch.outer(prompt.rows, prompt.columns))


def test_one_source_is_taken_over(tmp_path: Path) -> None:
    own = MultitaskPromptTuning(Options(length=LENGTH))
    expected = saved(own, tmp_path / "own", 1)
    prompt = started(tmp_path / "own")
    torch.testing.assert_close(prompt(), expected)
    assert not torch.allclose(prompt.rows, torch.ones(LENGTH))
    plain = saved(PromptTuning(PlainOptions(length=LENGTH)), tmp_path / "plain", 2)
    torch.testing.assert_close(started(tmp_path / "plain").shared, plain)


def test_several_sources_are_taken_apart(tmp_path: Path) -> None:
    folders = [tmp_path / str(seed) for seed in range(3)]
    prompts = torch.stack([saved(PromptTuning(PlainOptions(length=LENGTH)), folder, seed) for seed, folder in enumerate(folders)])
    shared, rows, columns = decompose(prompts)
    prompt = started(*folders)
    torch.testing.assert_close(prompt.shared, shared)
    torch.testing.assert_close(prompt(), shared * torch.outer(rows.mean(0), columns.mean(0)))


def test_factors_are_found_again() -> None:
    torch.manual_seed(0)
    shared = torch.rand(6, 8) + 0.5
    rows, columns = torch.rand(4, 6) + 0.5, torch.rand(4, 8) + 0.5
    prompts = shared * rows[:, :, None] * columns[:, None]
    found_shared, found_rows, found_columns = decompose(prompts)
    torch.testing.assert_close(found_shared * found_rows[:, :, None] * found_columns[:, None], prompts, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found_rows.norm(dim=1), torch.full((4,), 6**0.5))


def test_a_decomposition_is_nearer_than_the_mean() -> None:
    torch.manual_seed(0)
    prompts = torch.randn(3, 5, 7)
    shared, rows, columns = decompose(prompts)
    rest = prompts - shared * rows[:, :, None] * columns[:, None]
    assert rest.norm() < (prompts - prompts.mean(0)).norm()
    assert torch.isfinite(rest).all()
    assert decompose(torch.zeros(2, 3, 3))[0].abs().max() == 0


def test_unfit_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter can be read here"):
        started(tmp_path / "nothing")
    saved(PromptTuning(PlainOptions(length=LENGTH + 1)), tmp_path / "longer", 1)
    with pytest.raises(ModelError, match=r"has 5 x 16 numbers, this run's 4 x 16"):
        started(tmp_path / "longer")
    from ftkit.methods.lora import LoRA
    from ftkit.methods.lora import Options as LoraOptions

    LoRA(LoraOptions()).apply(*fresh_model("bert")).save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    with pytest.raises(ModelError, match="the adapter holds no prompt"):
        started(tmp_path / "lora")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no adapter can be read here"):
        started(tmp_path / "broken")


def test_there_must_be_a_source_in_a_list_of_sources() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        Options(sources=[])


def test_a_run_starts_from_earlier_ones_and_loads_without_them(recipe_file: RecipeFile, tmp_path: Path) -> None:
    source = recipe_file(method="{name: prompt-tuning, length: 4}", export="[adapter]")
    ftkit.train(ftkit.load_recipe(source, ["train.max_steps=2"]), output=tmp_path / "source")
    adapter = tmp_path / "source" / "export" / "adapter"
    method = "{name: multitask-prompt-tuning, length: 4, sources: [source/export/adapter]}"
    recipe = ftkit.load_recipe(recipe_file(method=method), ["train.max_steps=2"])
    assert make_plan_here(recipe).recipe.method.options.sources == [str(adapter)]
    ftkit.train(recipe, output=tmp_path / "target")
    lock = tmp_path / "source" / "lock.json"
    text = lock.read_text(encoding="utf-8")
    digest = json.loads(text)["model_files"]["model.safetensors"]
    lock.write_text(text.replace(digest, "0" * 64), encoding="utf-8")
    with pytest.raises(ModelError, match=r"trained on another base than .*: other files: model.safetensors"):
        ftkit.train(recipe, output=tmp_path / "other")
    adapter.rename(tmp_path / "gone")
    assert len(list(ftkit.load(tmp_path / "target").predict(["w1 w2"]))) == 1
