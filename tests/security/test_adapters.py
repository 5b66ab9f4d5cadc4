"""Hostile adapters: pickled weights, configs that name code or files, tensors of other shapes, names that are paths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ftkit.adapters.sources import stored_parameters
from ftkit.errors import FtkitError, ModelError
from ftkit.models.load import load_model
from ftkit.recipe.schema import ModelSpec
from ftkit.tuners.wrap import load_adapter
from tests.security.conftest import Command
from tests.security.hostile import LYING, Mark, safetensors_bytes, snapshot, tensor
from tests.security.test_model_folders import HEAD, edit

VERBS = (("inspect", "{a}"), ("list", "{a}"), ("diff", "{a}", "{a}"), ("convert", "{a}", "--to", "adapterhub", "--output", "{out}"))


@pytest.fixture
def adapter(finished: Path, tmp_path: Path) -> Path:
    """An exported LoRA adapter, to be changed."""
    return shutil.copytree(finished / "run" / "export" / "adapter", tmp_path / "adapters" / "adapter")


def load(adapter: Path, base: Path) -> None:
    loaded = load_model(ModelSpec(name=str(base)), HEAD, seed=0)
    load_adapter(loaded.model, loaded.layout, adapter)


def try_all(command: Command, adapter: Path, out: Path) -> str:
    """Every verb of `ftkit adapters` that takes an adapter; what they said."""
    said = ""
    for verb, *arguments in VERBS:
        ended = command("adapters", verb, *(argument.format(a=adapter, out=out) for argument in arguments))
        assert ended.code in (0, 2), ended.said
        said += ended.said
    return said


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_adapter.bin"])
def test_pickled_adapters_are_refused(name: str, mark: Mark, adapter: Path, tmp_path: Path, command: Command) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / name).write_bytes(mark.torch_file())
    assert "which runs code when it is read" in try_all(command, adapter, tmp_path / "out")
    if name == "pytorch_adapter.bin":
        (adapter / "adapter_config.json").write_text(json.dumps({"config": {}, "model_type": "bert", "name": "x"}))
        ended = command("adapters", "convert", adapter, "--to", "ftkit", "--output", tmp_path / "out")
        assert ended.code == 2
    assert not (tmp_path / "out").exists()


def test_configs_of_adapters_name_no_code(mark: Mark, adapter: Path, finished: Path, tmp_path: Path, command: Command) -> None:
    package = tmp_path / "work" / "evil"
    package.mkdir()
    (package / "__init__.py").write_text(mark.code())
    edit(
        adapter / "adapter_config.json",
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
        base_model_name_or_path="../../evil",
        corda_config={"cache_file": str(adapter / "cache.pt")},
        eva_config={"x": 1},
        peft_version="evil",
    )
    (adapter / "cache.pt").write_bytes(mark.torch_file())
    try_all(command, adapter, tmp_path / "out")
    with pytest.raises(FtkitError):
        load(adapter, finished / "bert")


@pytest.mark.parametrize("kind", ["EVIL", "../evil", 5, None, ["LORA"], "LORA" * 1000])
def test_unknown_types_of_adapters_are_refused(
    kind: object, adapter: Path, finished: Path, tmp_path: Path, command: Command
) -> None:
    edit(adapter / "adapter_config.json", peft_type=kind)
    try_all(command, adapter, tmp_path / "out")
    with pytest.raises(FtkitError):
        load(adapter, finished / "bert")


@pytest.mark.parametrize("what", LYING)
def test_lying_safetensors_of_adapters_are_refused(
    what: str, adapter: Path, finished: Path, tmp_path: Path, command: Command
) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(LYING[what])
    try_all(command, adapter, tmp_path / "out")
    with pytest.raises(ModelError):
        load(adapter, finished / "bert")


def test_counting_values_believes_no_header(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    wrong = ({"a": {"shape": "4"}}, {"a": {"shape": [2.5]}}, {"a": {"shape": [-1]}}, {"a": {"shape": [9] * 10_000}}, {"a": 5}, [1])
    for header in wrong:
        file.write_bytes(safetensors_bytes(header))
        with pytest.raises(ValueError, match="header"):
            stored_parameters(file)
    file.write_bytes(safetensors_bytes({"a": tensor([2, 3], 0, 24)}, bytes(24)))
    assert stored_parameters(file) == 6


def test_tensors_of_other_names_and_shapes_are_refused(adapter: Path, finished: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.bert.embeddings.word_embeddings.weight": torch.zeros(64, 16)}, file)
    with pytest.raises(ModelError, match="belongs to nothing"):
        load(adapter, finished / "bert")
    save_file({**tensors, next(iter(tensors)): torch.zeros(3, 5)}, file)
    with pytest.raises(ModelError, match=r"is of the shape \[3, 5\], expected"):
        load(adapter, finished / "bert")


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/../../escaped", "a\0b", "x" * 5000])
def test_names_of_adapters_are_no_paths(name: str, finished: Path, adapter: Path, tmp_path: Path, command: Command) -> None:
    before = snapshot(tmp_path)
    for source in (finished / "run", adapter):
        ended = command("adapters", "convert", source, "--to", "adapterhub", "--output", tmp_path / "out", "--name", name)
        assert ended.code == 2
    assert snapshot(tmp_path) == before


def test_adapters_that_a_recipe_names_are_read_as_safetensors_only(
    mark: Mark, finished: Path, adapter: Path, tmp_path: Path, command: Command
) -> None:
    """Methods that start from adapters of others (fusion, prompt transfer) read them no other way."""
    bottleneck = {"peft_type": "ADAPTER", "placement": "pfeiffer", "bottleneck": 2, "activation": "relu", "layer_norm": "none"}
    edit(adapter / "adapter_config.json", **bottleneck)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(mark.torch_file())
    other = shutil.copytree(adapter, tmp_path / "adapters" / "other")
    for method in (
        f"{{name: adapter-fusion, adapters: [{adapter}, {other}]}}",
        f"{{name: multitask-prompt-tuning, sources: [{adapter}]}}",
    ):
        recipe = (finished / "recipe.yaml").read_text().splitlines()
        (tmp_path / "recipe.yaml").write_text(
            "\n".join(f"method: {method}" if line.startswith("method") else line for line in recipe)
        )
        ended = command("train", tmp_path / "recipe.yaml", "--output", tmp_path / "run")
        assert ended.code == 2, ended.said
        assert str(adapter) in ended.err
        assert "read" in ended.err
        assert not list((tmp_path / "run").glob("e*"))  # nothing was exported
