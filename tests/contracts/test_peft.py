"""What ftkit relies on in PEFT: the calls, the names of parameters and files, and what comes back."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper, PeftType, register_peft_method
from peft.utils.incremental_pca import IncrementalPCA
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from tests.tiny import tiny_model

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def lora(**options: Any) -> Any:
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query"], modules_to_save=["classifier"], **options
    )
    return get_peft_model(tiny_model("bert"), config)


def test_names_and_shapes_of_a_lora() -> None:
    model = lora()
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert parameters[f"{QUERY}.lora_A.default.weight"].shape == (2, 16)
    assert parameters[f"{QUERY}.lora_B.default.weight"].shape == (16, 2)
    assert {name.split(".")[2] for name in parameters} == {"bert", "classifier"}
    assert isinstance(model.get_submodule(QUERY), LoraLayer | BaseTunerLayer)
    assert model.get_submodule(QUERY).scaling == {"default": 2.0}
    assert isinstance(model.base_model.model.classifier, ModulesToSaveWrapper)
    assert isinstance(model, PeftModel)
    assert model.get_nb_trainable_parameters()[0] == sum(value.numel() for value in parameters.values())


def test_the_state_of_an_adapter_comes_back(tmp_path: Path) -> None:
    model = lora()
    torch.nn.init.normal_(model.get_parameter(f"{QUERY}.lora_B.default.weight"))
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert f"{QUERY}.lora_A.weight" in state
    assert "base_model.model.classifier.weight" in state
    model.save_pretrained(tmp_path, safe_serialization=True, save_embedding_layers=False)
    assert (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME) == ("adapter_config.json", "adapter_model.safetensors")
    assert load_file(tmp_path / SAFETENSORS_WEIGHTS_NAME).keys() == state.keys()
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)
    assert type(PeftConfig.from_pretrained(str(tmp_path))) is peft.LoraConfig
    again = lora()
    set_peft_model_state_dict(again, load_file(tmp_path / SAFETENSORS_WEIGHTS_NAME))
    ids = torch.tensor([[2, 7, 3]])
    loaded = PeftModel.from_pretrained(tiny_model("bert"), str(tmp_path))
    for other in (again, loaded):
        torch.testing.assert_close(other.eval()(ids).logits, model.eval()(ids).logits)


def test_merging_keeps_what_is_computed() -> None:
    model, ids = lora(), torch.tensor([[2, 7, 3]])
    torch.nn.init.normal_(model.get_parameter(f"{QUERY}.lora_B.default.weight"))
    expected = model.eval()(ids).logits
    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged).__name__ == "BertForSequenceClassification"
    torch.testing.assert_close(merged(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_adapters_can_be_switched_off() -> None:
    model, ids = lora(), torch.tensor([[2, 7, 3]])
    torch.nn.init.normal_(model.get_parameter(f"{QUERY}.lora_B.default.weight"))
    with model.disable_adapter():
        off = model.eval()(ids).logits
    assert not torch.equal(off, model(ids).logits)


@pytest.mark.parametrize(
    "name", ["LoraConfig", "AdaLoraConfig", "LoHaConfig", "LoKrConfig", "VeraConfig", "OFTConfig", "BOFTConfig", "IA3Config"]
)
def test_configs_have_the_settings_of_a_linear_layer(name: str) -> None:
    parameters = inspect.signature(getattr(peft, name)).parameters
    assert {"target_modules", "modules_to_save", "task_type", "inference_mode"} <= set(parameters)


def test_settings_of_lora() -> None:
    settings = "r lora_alpha lora_dropout use_rslora use_dora init_lora_weights rank_pattern alpha_pattern lora_bias bias"
    assert set(settings.split()) <= set(inspect.signature(peft.LoraConfig).parameters)


def test_places_that_tuners_of_others_are_registered_at() -> None:
    assert {"name", "config_cls", "model_cls", "prefix", "is_mixed_compatible"} <= set(
        inspect.signature(register_peft_method).parameters
    )
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LORA] is peft.LoraConfig
    assert callable(check_adapters_to_merge)
    assert {"inject_adapter", "_create_and_replace"} <= set(dir(BaseTuner))
    assert {"set_adapter", "merge", "unmerge", "get_base_layer", "adapter_layer_names"} <= set(dir(BaseTunerLayer))
    assert get_pattern_key(["query", "key"], "bert.layer.0.query") == "query"


def test_incremental_pca_takes_batches() -> None:
    pca = IncrementalPCA(n_components=2)
    pca.partial_fit(torch.randn(8, 4))
    assert pca.components_.shape == (2, 4)
