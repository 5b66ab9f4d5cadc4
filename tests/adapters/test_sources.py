"""list, inspect and diff: what is told of a run or adapter."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ftkit
from ftkit import api
from ftkit.adapters.differing import distance
from ftkit.adapters.inspecting import effective_rank
from ftkit.adapters.sources import plain_name
from ftkit.errors import FtkitError
from tests.adapters.conftest import Train


@pytest.fixture(scope="module")
def exported(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "adapter"
    ftkit.export(first, "adapter", to=folder)
    return folder


def test_list_finds_runs_and_adapters(first: Path, second: Path, on_other_base: Path, exported: Path, workshop: Path) -> None:
    (workshop / "runs" / "unfinished").mkdir(exist_ok=True)
    shutil.copyfile(first / "plan.yaml", workshop / "runs" / "unfinished" / "plan.yaml")
    found = {Path(entry["path"]).name: entry for entry in api.list_adapters([workshop, exported], base=str(workshop / "bert"))}
    run = found["first"]
    assert (run["kind"], run["method"], run["task"], run["base_matches"]) == ("run", "lora", "text-classification", "yes")
    results = json.loads((first / "results.json").read_text(encoding="utf-8"))
    assert run["parameters"] == results["parameters"]["trainable"]
    assert run["metric"] == {"name": "accuracy", "split": "test", "value": results["splits"]["test"]["metrics"]["accuracy"]}
    assert run["trained"] == results["started"]
    assert found["on_other_base"]["base_matches"] == "no"
    assert found["unfinished"]["problem"] == "the run is not finished (status: unknown)"
    assert found["unfinished"]["method"] == "lora"
    adapter = found["adapter"]
    assert (adapter["kind"], adapter["method"], adapter["base_matches"], adapter["task"]) == ("adapter", "lora", "same name", None)
    assert adapter["parameters"] == sum(tensor.numel() for tensor in load_file(exported / "adapter_model.safetensors").values())
    assert "bert" not in found
    with pytest.raises(FtkitError, match="there is no such folder"):
        api.list_adapters([workshop / "nowhere"])
    with pytest.raises(FtkitError, match="nowhere"):
        api.list_adapters([workshop], base=str(workshop / "nowhere"))


def test_effective_rank_is_that_of_its_formula() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(3.0)
    assert effective_rank(torch.tensor([5.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(3)) is None
    shares = [0.5, 0.25, 0.25]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(torch.tensor([4.0, 2.0, 2.0])) == pytest.approx(expected)


def layers(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {layer["layer"]: layer for layer in found["layers"]}


def test_inspect_a_lora_from_its_files_and_from_its_run(first: Path, exported: Path) -> None:
    run, adapter = api.inspect_adapter(first), api.inspect_adapter(exported)
    assert run["source"] == adapter["source"] == "low rank"
    tensors = load_file(exported / "adapter_model.safetensors")
    for name, layer in layers(adapter).items():
        assert layer["norm"] == pytest.approx(layers(run)[name]["norm"], rel=1e-5)
        if layer["what"] == "update":
            a, b = (tensors[f"base_model.model.{name}.lora_{kind}.weight"].double() for kind in "AB")
            update = 2 * b @ a
            assert layer["norm"] == pytest.approx(float(update.norm()), rel=1e-5)
            values = torch.linalg.svdvals(update)
            assert layer["effective_rank"] == pytest.approx(effective_rank(values), rel=1e-4)
            assert layer["rank"] == 4
            assert 1 <= layer["effective_rank"] <= 4
    assert layers(run)["classifier"]["what"] == "weights"
    assert layers(run)["classifier"]["effective_rank"] is None
    assert adapter["update_norm"] == pytest.approx(sum(x["norm"] ** 2 for x in adapter["layers"] if x["what"] == "update") ** 0.5)


def test_inspect_what_merges_is_the_change_of_the_weight(train: Train, tuned: Path) -> None:
    dora = train("dora", "train.max_steps=1", method="{name: lora, dora: true}")
    found = api.inspect_adapter(dora)
    assert found["source"] == "merged"
    query = layers(found)["bert.encoder.layer.0.attention.self.query"]
    assert query["what"] == "update"
    assert 0 < query["relative_norm"] < 10
    whole = api.inspect_adapter(tuned)
    assert whole["source"] == "tuned"
    model, base = ftkit.load(tuned).bare_model.state_dict(), load_file(Path(whole["base"]) / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense"
    update = model[f"{name}.weight"].double() - base[f"{name}.weight"].double()
    assert layers(whole)[name]["norm"] == pytest.approx(float(update.norm()), rel=1e-6)
    assert layers(whole)[name]["effective_rank"] == pytest.approx(effective_rank(torch.linalg.svdvals(update)), rel=1e-6)
    assert layers(whole)["bert.embeddings.word_embeddings"]["effective_rank"] is None


def test_inspect_what_is_no_matrix_has_norms_only(train: Train) -> None:
    found = api.inspect_adapter(train("prompt", "train.max_steps=1", method="{name: prompt-tuning, length: 4}"))
    assert found["source"] == "tensors"
    assert found["update_norm"] is None
    assert all(layer["what"] == "weights" and layer["effective_rank"] is None for layer in found["layers"])
    assert all(layer["norm"] > 0 for layer in found["layers"])


def test_diff_of_runs(first: Path, second: Path, on_other_base: Path, tuned: Path) -> None:
    found = api.diff_adapters(first, second)
    assert found["same_base"] is True
    assert not found["equal"]
    assert {"train.learning_rate", "seed"} == {entry["key"] for entry in found["settings"]}
    one, two = (ftkit.load(run).prepared.model.state_dict() for run in (first, second))
    name = next(entry["name"] for entry in found["tensors"] if entry["name"].endswith("query.lora_A.weight"))
    key = next(key for key in one if plain_name(key) == name)
    entry = next(entry for entry in found["tensors"] if entry["name"] == name)
    assert entry["max_difference"] == pytest.approx(float((one[key] - two[key]).abs().max()))
    assert entry["relative_difference"] == pytest.approx(float((one[key] - two[key]).norm() / one[key].norm()), rel=1e-5)
    assert entry["cosine"] == pytest.approx(float(torch.cosine_similarity(one[key].flatten(), two[key].flatten(), 0)), abs=1e-5)
    other = api.diff_adapters(first, on_other_base)
    assert other["same_base"] is False
    assert "model.safetensors" in other["base"]
    against = api.diff_adapters(first, tuned)
    assert any("lora_A" in name for name in against["only_in_a"])
    assert "bert.embeddings.word_embeddings.weight" in against["only_in_b"]


def test_diff_of_a_run_and_its_own_adapter(first: Path, exported: Path, tmp_path: Path) -> None:
    found = api.diff_adapters(first, exported)
    assert found["equal"]
    assert (found["same_base"], found["settings"]) == (None, None)
    changed = shutil.copytree(exported, tmp_path / "changed")
    tensors = load_file(changed / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = torch.zeros(2, 3)
    save_file(tensors, changed / "adapter_model.safetensors")
    config = json.loads((changed / "adapter_config.json").read_text(encoding="utf-8"))
    (changed / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 5}), encoding="utf-8")
    found = api.diff_adapters(exported, changed)
    assert [entry["name"] for entry in found["other_shape"]] == [plain_name(name)]
    assert found["settings"] == [{"key": "lora_alpha", "a": 8, "b": 5}]


def test_folders_that_are_neither(tmp_path: Path) -> None:
    with pytest.raises(FtkitError, match="neither a run folder nor an adapter"):
        api.inspect_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"config": {}}', encoding="utf-8")
    with pytest.raises(FtkitError, match=r"is an adapter of AdapterHub's library\. Convert it: ftkit adapters convert"):
        api.diff_adapters(tmp_path, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(FtkitError, match="runs code when it is read"):
        api.inspect_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_text("broken", encoding="utf-8")
    with pytest.raises(FtkitError, match="cannot be read"):
        api.inspect_adapter(tmp_path)
    assert "cannot be read" in api.list_adapters([tmp_path])[0]["problem"]


def _without(tensors: dict[str, torch.Tensor], mark: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if mark not in name}


DAMAGED: list[tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], dict[str, Any], str]] = [
    (lambda found: {name: tensor * math.nan for name, tensor in found.items()}, {}, "values that are not finite numbers"),
    (lambda found: _without(found, "lora_B"), {}, "lora_A.weight has no lora_B beside it"),
    (lambda found: {**found, "base_model.model.x.lora_A.weight": torch.ones(4, 16)}, {}, "x.lora_A.weight has no lora_B beside it"),
    (lambda found: {name: tensor.flatten() for name, tensor in found.items()}, {}, "not of the rank 4"),
    (dict, {"r": 9}, "which is not of the rank 9"),
    (dict, {"r": "four"}, "which is not of the rank 'four'"),
    (dict, {"lora_alpha": None}, "`lora_alpha` is None, expected a number"),
    (dict, {"lora_alpha": math.nan}, "`lora_alpha` is nan, expected a number"),
    (dict, {"peft_type": ["LORA"]}, r"`peft_type` is \['LORA'\], expected a name"),
    (dict, {"base_model_name_or_path": 5}, "`base_model_name_or_path` is 5, expected a name"),
    (dict, {"rank_pattern": 1}, "`rank_pattern` is 1, expected a mapping"),
]


@pytest.mark.parametrize(("change", "settings", "message"), DAMAGED, ids=[message for *_, message in DAMAGED])
def test_a_damaged_adapter_is_refused_in_words(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    settings: dict[str, Any],
    message: str,
    exported: Path,
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(exported, tmp_path / "damaged")
    save_file(change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}), encoding="utf-8")
    with pytest.raises(FtkitError, match=message) as caught:
        api.inspect_adapter(folder)
    assert caught.value.exit_code == 2
    assert all("damaged" in problem.place and problem.hint for problem in caught.value.problems)


def test_a_file_that_was_cut_is_listed_with_the_reason(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "cut")
    file = folder / "adapter_model.safetensors"
    assert api.list_adapters([folder])[0]["problem"] is None
    file.write_bytes(file.read_bytes()[:-8])
    assert api.list_adapters([folder])[0]["problem"] == "adapter_model.safetensors cannot be read (ValueError)"


def test_values_that_are_no_numbers_have_no_direction() -> None:
    assert distance(torch.ones(3), torch.full((3,), math.nan))["cosine"] is None
    assert distance(torch.full((3,), math.inf), torch.ones(3))["cosine"] is None
    assert distance(torch.ones(3), -torch.ones(3))["cosine"] == pytest.approx(-1.0)
