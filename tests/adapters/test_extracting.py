from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ftkit
from ftkit import api
from ftkit.errors import FtkitError
from tests.adapters.conftest import Train
from tests.tiny import save_tiny

TEXTS = ["w1 w2 w30", "w11 w31", "w21 w22 w35 w1"]


@pytest.fixture(scope="module")
def extracted(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("extracted") / "lora"
    return folder, api.extract_lora(tuned, 3, folder)


def changes(tuned: Path) -> dict[str, torch.Tensor]:
    predictor = ftkit.load(tuned)
    base = load_file(Path(predictor.plan.recipe.model.name) / "model.safetensors")
    return {
        path: (predictor.bare_model.get_submodule(path).weight - base[f"{path}.weight"]).detach().double()
        for path in predictor.prepared.layout.linears("all")
    }


def test_each_update_is_the_best_of_its_rank(extracted: tuple[Path, dict[str, Any]], tuned: Path) -> None:
    folder, results = extracted
    wrapped = ftkit.load(folder).prepared.model
    stated = {layer["layer"]: layer for layer in results["derived"]["layers"]}
    lost = whole = 0.0
    assert stated.keys() == changes(tuned).keys()
    for path, change in changes(tuned).items():
        module = wrapped.get_submodule(f"base_model.model.{path}")
        update = module.get_delta_weight("default").detach().double()
        missed = torch.linalg.svdvals(change)[3:].norm()
        assert float((change - update).norm()) == pytest.approx(float(missed), rel=1e-3)
        assert stated[path]["relative_error"] == pytest.approx(float(missed / change.norm()), rel=1e-3)
        lost, whole = lost + float(missed) ** 2, whole + float(change.norm()) ** 2
    assert results["derived"]["relative_error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-3)


def test_what_is_no_linear_layer_is_stated_and_the_head_kept(extracted: tuple[Path, dict[str, Any]], tuned: Path) -> None:
    folder, results = extracted
    left_out = {part["part"]: part for part in results["derived"]["left_out"]}
    assert left_out.keys() == {"embeddings and other matrices", "norms", "biases"}
    assert 0 < sum(part["share"] for part in left_out.values()) < 1
    one, two = ftkit.load(tuned).bare_model, ftkit.load(folder).prepared.model
    saved = two.get_submodule("base_model.model.classifier").modules_to_save["default"]
    torch.testing.assert_close(saved.weight, one.classifier.weight)


def test_the_result_is_measured_and_a_run_like_any_other(
    extracted: tuple[Path, dict[str, Any]], tuned: Path, tmp_path: Path
) -> None:
    folder, results = extracted
    assert results["derived"]["before"][str(tuned)]["test"] == ftkit.load(tuned).evaluate("test")["metrics"]
    assert results["splits"]["test"]["metrics"] == ftkit.load(folder).evaluate("test")["metrics"]
    facts = ftkit.export(folder, "merged", to=tmp_path / "merged")
    assert facts["max_abs_difference"] <= facts["tolerance"]
    assert api.inspect_adapter(folder)["source"] == "low rank"
    assert api.list_adapters([folder])[0]["made_by"] == "extract"


def test_only_tuned_layers_get_an_update(train: Train, tmp_path: Path) -> None:
    partial = train("partial", method="{name: partial, top_blocks: 1}")
    api.extract_lora(partial, 16, tmp_path / "out", evaluate=["none"])
    predictor = ftkit.load(tmp_path / "out")
    names = [name for name, _ in predictor.prepared.model.named_parameters() if "lora_A" in name]
    assert names
    assert all(".layer.1." in name for name in names)


def test_the_rest_is_kept_whole_and_plain_peft_loads_it(tuned: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    results = api.extract_lora(tuned, 16, tmp_path / "out", keep_rest=True)
    derived = results["derived"]
    assert derived["left_out"] == []
    assert {part["part"] for part in derived["kept"]} == {"embeddings and other matrices", "norms", "biases"}
    assert derived["remaining_error"] < 1e-6
    assert derived["kept_bytes"] >= 4 * sum(part["parameters"] for part in derived["kept"])
    assert results["parameters"]["trainable"] * 4 >= derived["kept_bytes"]
    facts = ftkit.export(tmp_path / "out", "adapter", to=tmp_path / "adapter")
    assert facts["max_abs_difference"] <= facts["tolerance"]
    predictor = ftkit.load(tuned)
    base = predictor.prepared.layout.model.from_pretrained(predictor.plan.recipe.model.name, num_labels=3)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    inputs = {"input_ids": torch.tensor([[2, 9, 12, 30, 3]])}
    expected = predictor.bare_model(**inputs).logits
    torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loaded.merge_and_unload()(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
    assert api.inspect_adapter(tmp_path / "out")["source"] == "low rank"
    with pytest.raises(FtkitError, match="adapters with `lora_bias` do not combine"):
        api.merge_adapters([tmp_path / "out"] * 2, tmp_path / "merged", evaluate=["none"])


def test_the_error_that_remains_is_that_of_the_ranks_cut_off(
    tuned: Path, extracted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    kept = api.extract_lora(tuned, 3, tmp_path / "out", keep_rest=True, evaluate=["none"])["derived"]
    plain = extracted[1]["derived"]
    assert plain["kept"] == []
    assert plain["kept_bytes"] == 0
    share = sum(part["share"] for part in plain["left_out"])
    assert sum(part["share"] for part in kept["kept"]) == pytest.approx(share)
    assert kept["remaining_error"] == pytest.approx((1 - share) ** 0.5 * plain["relative_error"])
    assert plain["remaining_error"] == pytest.approx((share + (1 - share) * plain["relative_error"] ** 2) ** 0.5)


def test_what_peft_has_no_place_for_is_left_out_with_the_reason(workshop: Path, train: Train, tmp_path: Path) -> None:
    save_tiny(workshop / "t5", "t5")
    run = train("t5-full", "train.max_steps=2", model=str(workshop / "t5"), method="full")
    derived = api.extract_lora(run, 8, tmp_path / "out", keep_rest=True, evaluate=["none"])["derived"]
    reasons = {part["part"]: part["why"] for part in derived["left_out"]}
    assert reasons.keys() == {"embeddings and other matrices"}
    assert "it shares its values with" in reasons["embeddings and other matrices"]
    assert {part["part"] for part in derived["kept"]} >= {"norms"}


def test_at_full_rank_nothing_of_the_linear_layers_is_lost(tuned: Path, tmp_path: Path) -> None:
    results = api.extract_lora(tuned, 16, tmp_path / "out", evaluate=["none"])
    assert results["derived"]["relative_error"] < 1e-6


def test_gpt2_whose_weights_are_turned_around(workshop: Path, train: Train, tmp_path: Path) -> None:
    save_tiny(workshop / "gpt2", "gpt2")
    run = train("gpt2-full", "train.max_steps=2", model=str(workshop / "gpt2"), method="full")
    results = api.extract_lora(run, 16, tmp_path / "out", evaluate=["none"])
    assert results["derived"]["relative_error"] < 1e-6
    tuned_model, merged = ftkit.load(run).bare_model, ftkit.load(tmp_path / "out").prepared.model.merge_and_unload()
    name = "transformer.h.0.mlp.c_fc.weight"
    torch.testing.assert_close(
        dict(merged.named_parameters())[name], dict(tuned_model.named_parameters())[name], atol=1e-6, rtol=1e-5
    )


def test_what_a_user_does_wrong(
    tuned: Path, first: Path, on_other_base: Path, train: Train, workshop: Path, tmp_path: Path
) -> None:
    def refused(run: Path, rank: int = 2, **more: Any) -> str:
        with pytest.raises(FtkitError) as caught:
            api.extract_lora(run, rank, tmp_path / "out", **{"evaluate": ["none"], **more})
        assert caught.value.exit_code == 2
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "17 is above 16, the full rank of" in refused(tuned, 17)
    assert "lora trained an adapter beside the model" in refused(first)
    probe = train("probe", "train.max_steps=1", method="linear-probe")
    assert "there is no update to extract" in refused(probe) or "beside the model" in refused(probe)
    save_tiny(workshop / "wider", "bert", hidden_size=32)
    assert "the base has no bert.embeddings.word_embeddings.weight of this shape" in refused(tuned, base=str(workshop / "wider"))
    assert "nowhere" in refused(tuned, base=str(workshop / "nowhere"))
    assert "neither a run folder" in refused(workshop)
    assert "no 'dev' split" in refused(tuned, evaluate=["dev"])


def test_another_base(tuned: Path, workshop: Path, tmp_path: Path, on_other_base: Path) -> None:
    other = workshop / "other-bert"
    results = api.extract_lora(tuned, 16, tmp_path / "out", base=str(other), evaluate=["none"])
    assert Path(results["model"]).name == "other-bert"
    assert api.list_adapters([tmp_path / "out"], base=str(other))[0]["base_matches"] == "yes"
    assert len(list(ftkit.load(tmp_path / "out").predict(TEXTS))) == 3
