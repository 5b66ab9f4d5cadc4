from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType

from ftkit.errors import ModelError
from ftkit.models.layout import ModelLayout
from ftkit.tuners.wrap import adapted_heads, load_adapter, merge, portable_name, task_type, wrap
from tests.methods.cases import fresh_model, logits_of
from tests.tiny import tiny_model


def lora_only(name: str, layout: ModelLayout) -> bool:
    return ".lora_" in name or ".modules_to_save." in name


@pytest.mark.parametrize(
    ("family", "auto_class", "expected"),
    [
        ("bert", "AutoModelForSequenceClassification", TaskType.SEQ_CLS),
        ("bert", "AutoModelForTokenClassification", TaskType.TOKEN_CLS),
        ("bert", "AutoModelForQuestionAnswering", None),
        ("bert", "AutoModelForMaskedLM", None),
        ("gpt2", "AutoModelForCausalLM", TaskType.CAUSAL_LM),
        ("llama", "AutoModelForCausalLM", TaskType.CAUSAL_LM),
        ("t5", "AutoModelForSeq2SeqLM", TaskType.SEQ_2_SEQ_LM),
        ("bart", "AutoModelForSeq2SeqLM", TaskType.SEQ_2_SEQ_LM),
        ("vit", "", None),
    ],
)
def test_task_types_follow_the_model_class(family: str, auto_class: str, expected: TaskType | None) -> None:
    assert task_type(tiny_model(family, auto_class)) == expected


def test_a_pretrained_output_layer_is_not_copied_but_a_new_one_is() -> None:
    model = tiny_model("llama", "AutoModelForCausalLM")
    assert ModelLayout(model).head_modules() == ["lm_head"]
    assert adapted_heads(ModelLayout(model)) == []
    assert adapted_heads(ModelLayout(model, ["lm_head.weight"])) == ["lm_head"]


def test_another_declaration_than_what_trains_is_refused() -> None:
    model, layout = fresh_model("bert")
    with pytest.raises(ModelError, match=r"declares other parameters.*modules_to_save"):
        wrap(model, layout, LoraConfig(target_modules=["query"]), lambda name, _: ".lora_" in name)


def test_fresh_parameters_outside_the_head_are_refused() -> None:
    model = tiny_model("bert")
    layout = ModelLayout(model, ["bert.embeddings.position_embeddings.weight"])
    with pytest.raises(ModelError, match=r"no values for bert.embeddings.position_embeddings.weight.*`full`"):
        wrap(model, layout, LoraConfig(target_modules=["query"]), lora_only)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("org/model", "org/model"), ("package:demo/model", "package:demo/model"), ("/home/me/models/mine", "mine"), ("", None)],
)
def test_names_that_travel_hold_no_absolute_path(name: str, kept: str | None) -> None:
    assert portable_name(name) == kept


def test_a_bfloat16_base_gets_the_float32_head_back(tmp_path: Path) -> None:
    model, layout = fresh_model("roberta", dtype=torch.bfloat16)
    wrapped = wrap(model, layout, LoraConfig(target_modules=["query"]), lora_only)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 1e-3)
    expected = logits_of(wrapped, "roberta")
    wrapped.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = load_adapter(*fresh_model("roberta", head_seed=8, dtype=torch.bfloat16), tmp_path)
    assert expected.dtype == torch.float32
    assert torch.equal(logits_of(loaded, "roberta"), expected)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    model, layout = fresh_model("bert")
    wrapped = wrap(model, layout, LoraConfig(target_modules=["query"], layers_to_transform=[0]), lora_only)
    wrapped.save_pretrained(tmp_path, save_embedding_layers=False)
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace('"layers_to_transform": [\n    0\n  ]', '"layers_to_transform": [1]'))
    with pytest.raises(ModelError, match="belongs to nothing in this model"):
        load_adapter(*fresh_model("bert"), tmp_path)
    with pytest.raises(ModelError, match=r"holds no adapter_model.safetensors"):
        load_adapter(*fresh_model("bert"), tmp_path / "nowhere")


def test_merging_weights_that_are_not_finite_is_refused() -> None:
    model, layout = fresh_model("bert")
    wrapped = wrap(model, layout, LoraConfig(target_modules=["query"]), lora_only)
    with torch.no_grad():
        next(p for name, p in wrapped.named_parameters() if ".lora_B." in name).fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        merge(wrapped)
