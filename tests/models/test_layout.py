from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ftkit.errors import ModelError
from ftkit.models.layout import ModelLayout
from ftkit.models.naming import matches
from ftkit.models.roles import ROLES
from tests.tiny import DECODERS, ENCODER_DECODERS, FAMILIES, tiny_config, tiny_model

BERT_LIKE = {
    "query": ["query"],
    "key": ["key"],
    "value": ["value"],
    "qkv": [],
    "attention_out": ["attention.output.dense"],
    "ffn_in": ["intermediate.dense"],
    "ffn_out": ["0.output.dense", "1.output.dense"],
}
LLAMA_LIKE = {
    "query": ["q_proj"],
    "key": ["k_proj"],
    "value": ["v_proj"],
    "qkv": [],
    "attention_out": ["o_proj"],
    "ffn_in": ["gate_proj", "up_proj"],
    "ffn_out": ["down_proj"],
}
SUFFIXES: dict[str, dict[str, list[str]]] = {
    "bert": BERT_LIKE,
    "roberta": BERT_LIKE,
    "deberta-v2": {**BERT_LIKE, "query": ["query_proj"], "key": ["key_proj"], "value": ["value_proj"]},
    "distilbert": {
        "query": ["q_lin"],
        "key": ["k_lin"],
        "value": ["v_lin"],
        "qkv": [],
        "attention_out": ["out_lin"],
        "ffn_in": ["lin1"],
        "ffn_out": ["lin2"],
    },
    "gpt2": {
        "query": [],
        "key": [],
        "value": [],
        "qkv": ["c_attn"],
        "attention_out": ["attn.c_proj"],
        "ffn_in": ["c_fc"],
        "ffn_out": ["mlp.c_proj"],
    },
    "llama": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "t5": {"query": ["q"], "key": ["k"], "value": ["v"], "qkv": [], "attention_out": ["o"], "ffn_in": ["wi"], "ffn_out": ["wo"]},
    # `out_proj` alone would also match the classification head's.
    "bart": {
        **LLAMA_LIKE,
        "attention_out": ["self_attn.out_proj", "encoder_attn.out_proj"],
        "ffn_in": ["fc1"],
        "ffn_out": ["fc2"],
    },
    "vit": {**LLAMA_LIKE, "ffn_in": ["fc1"], "ffn_out": ["fc2"]},
}
HEADS = {
    "bert": ["classifier"],
    "roberta": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "deberta-v2": ["pooler", "classifier"],
    "gpt2": ["score"],
    "llama": ["score"],
    "qwen2": ["score"],
    "t5": ["classification_head"],
    "bart": ["classification_head"],
    "vit": ["classifier"],
}
# Parts of each block's 16-wide attention and 32-wide (GPT-2: 64) feed-forward; encoder-decoders add cross-attention.
NORMS = {"llama": 5, "qwen2": 5, "t5": 12, "bart": 12}
BIASES = {
    "bert": 18,
    "roberta": 17,
    "distilbert": 17,
    "deberta-v2": 21,
    "gpt2": 13,
    "llama": 0,
    "qwen2": 6,
    "t5": 0,
    "bart": 44,
    "vit": 18,
}
EMBEDDINGS = {
    "bert": ["word_embeddings", "position_embeddings", "token_type_embeddings"],
    "gpt2": ["wte", "wpe"],
    "llama": ["embed_tokens"],
    "t5": ["shared", "embed_tokens", "embed_tokens"],
    "vit": ["projection"],
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def layout(family: str) -> ModelLayout:
    return ModelLayout(tiny_model(family))


def test_roles_and_their_suffixes(family: str, layout: ModelLayout) -> None:
    assert {role: layout.suffixes(layout.linears(role)) for role in ROLES} == SUFFIXES[family]


def test_each_linear_of_the_blocks_is_in_all_exactly_once(layout: ModelLayout) -> None:
    names = [block.name for block in layout.blocks]
    expected = [
        name
        for name, module in layout.model.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and name.startswith(tuple(f"{block}." for block in names))
    ]
    assert sorted(layout.linears("all")) == sorted(expected)
    by_role = [name for role in ROLES for name in layout.linears(role)]
    assert len(by_role) == len(set(by_role))
    extra = {name.rpartition(".")[2] for name in set(expected) - set(by_role)}
    assert extra <= {"pos_key_proj", "pos_query_proj"}


def test_blocks_in_order(family: str, layout: ModelLayout) -> None:
    assert [block.index for block in layout.blocks] == list(range(4 if family in ENCODER_DECODERS else 2))
    stacks = ["encoder", "encoder", "decoder", "decoder"] if family in ENCODER_DECODERS else ["", ""]
    assert [block.stack for block in layout.blocks] == stacks
    assert all(layout.model.get_submodule(block.name) is block.module for block in layout.blocks)


def test_heads(family: str, layout: ModelLayout) -> None:
    assert layout.head_modules() == HEADS[family]
    parameters = dict(layout.model.named_parameters())
    inside = [name for name in parameters if name.split(".")[0] in HEADS[family]]
    assert layout.head_parameters() == inside


def test_embeddings_norms_biases(family: str, layout: ModelLayout) -> None:
    if family in EMBEDDINGS:
        assert [name.rpartition(".")[2] for name in layout.embeddings()] == EMBEDDINGS[family]
    assert len(layout.norms()) == NORMS.get(family, 5)
    assert len(layout.biases()) == BIASES[family]
    assert not {*layout.biases(), *layout.embedding_parameters()} & set(layout.head_parameters())
    assert layout.hidden_size == 16


def test_vit_embedding_parameters_include_the_bare_ones() -> None:
    names = ModelLayout(tiny_model("vit")).embedding_parameters()
    assert {name.removeprefix("vit.embeddings.") for name in names} == {
        "cls_token",
        "position_embeddings",
        "patch_embeddings.projection.weight",
        "patch_embeddings.projection.bias",
    }


def test_depth_rises_from_embeddings_to_head(layout: ModelLayout) -> None:
    top = len(layout.blocks) + 1
    assert {layout.depth(name) for name in layout.embedding_parameters()} == {0}
    assert {layout.depth(name) for name in layout.head_parameters()} == {top}
    for block in layout.blocks:
        inside = [name for name, _ in layout.model.named_parameters() if name.startswith(f"{block.name}.")]
        assert {layout.depth(name) for name in inside} == {block.index + 1}
    assert {layout.depth(name) for name, _ in layout.model.named_parameters()} == set(range(top + 1))


@pytest.mark.parametrize(
    ("family", "name", "depth"),
    [
        ("bert", "bert.embeddings.LayerNorm.weight", 0),
        ("bert", "bert.pooler.dense.weight", 2),
        ("gpt2", "transformer.ln_f.weight", 2),
        ("t5", "transformer.encoder.final_layer_norm.weight", 2),
        ("t5", "transformer.decoder.final_layer_norm.weight", 4),
        ("t5", "transformer.decoder.embed_tokens.weight", 0),
        ("bart", "model.decoder.layernorm_embedding.weight", 0),
        ("deberta-v2", "deberta.encoder.rel_embeddings.weight", 0),
        ("vit", "vit.layernorm.bias", 2),
        ("bert", "prompt_encoder.default.embedding.weight", 0),
    ],
)
def test_depth_between_the_blocks(family: str, name: str, depth: int) -> None:
    assert ModelLayout(tiny_model(family)).depth(name) == depth


def test_fresh_pooler_belongs_to_the_head() -> None:
    model = tiny_model("bert")
    fresh = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]
    layout = ModelLayout(model, fresh)
    assert layout.head_modules() == ["classifier", "bert.pooler"]
    assert layout.depth("bert.pooler.dense.weight") == 3
    assert "bert.pooler.dense.bias" not in layout.biases()
    assert ModelLayout(model, fresh[:1]).head_modules() == ["classifier"], "a pooler that is half there is no head"


@pytest.mark.parametrize(
    ("family", "auto_class", "head"),
    [
        ("gpt2", "AutoModelForCausalLM", []),
        ("llama", "AutoModelForCausalLM", ["lm_head"]),
        ("t5", "AutoModelForSeq2SeqLM", []),
        ("bart", "AutoModelForSeq2SeqLM", []),
        ("t5", "AutoModelForQuestionAnswering", ["qa_outputs"]),
        ("t5", "AutoModelForTokenClassification", ["classifier"]),
        ("bert", "AutoModelForQuestionAnswering", ["qa_outputs"]),
        ("bert", "AutoModelForMaskedLM", ["cls.predictions.transform"]),
        ("bert", "AutoModel", []),
        ("t5", "AutoModel", []),
    ],
)
def test_heads_of_other_tasks(family: str, auto_class: str, head: list[str]) -> None:
    layout = ModelLayout(tiny_model(family, auto_class))
    assert layout.head_modules() == head
    if auto_class == "AutoModelForMaskedLM":
        assert "cls.predictions.bias" in layout.head_parameters()


def test_tied_names_are_one_parameter() -> None:
    layout = ModelLayout(tiny_model("gpt2", "AutoModelForCausalLM"), fresh=["lm_head.weight"])
    assert layout.canonical("lm_head.weight") == "transformer.wte.weight"
    assert layout.depth("lm_head.weight") == 0
    assert layout.fresh == {"transformer.wte.weight"}


def _lora(family: str, **options: Any) -> tuple[ModelLayout, nn.Module]:
    from peft import LoraConfig, get_peft_model

    model = tiny_model(family)
    layout = ModelLayout(model)
    targets = layout.suffixes(layout.linears("all"))
    fan_in_fan_out = family == "gpt2"
    config = LoraConfig(
        r=2, target_modules=targets, modules_to_save=layout.head_modules(), fan_in_fan_out=fan_in_fan_out, **options
    )
    return layout, get_peft_model(model, config)


def test_canonical_and_depth_inside_a_peft_model(family: str) -> None:
    layout, wrapped = _lora(family)
    plain = {name for name, _ in tiny_model(family).named_parameters()}
    adapted: set[str] = set()
    seen: set[str] = set()
    for name, _ in wrapped.named_parameters():
        canonical = layout.canonical(name)
        if "lora_" in name:
            adapted.add(canonical)
            block = next(block for block in layout.blocks if canonical.startswith(f"{block.name}."))
            assert layout.depth(name) == block.index + 1
        else:
            seen.add(canonical)
            assert layout.depth(name) == layout.depth(canonical)
    assert adapted == set(layout.linears("all"))
    assert seen == plain
    assert {layout.depth(name) for name, _ in wrapped.named_parameters() if "modules_to_save" in name} == {len(layout.blocks) + 1}


def test_peft_targets_exactly_what_suffixes_name(family: str) -> None:
    layout, wrapped = _lora(family)
    found = {name for name, module in wrapped.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert found == set(layout.linears("all"))


@pytest.mark.parametrize("family", DECODERS)
def test_canonical_inside_a_prompt_model(family: str) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = tiny_model(family)
    layout = ModelLayout(model)
    wrapped = get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    names = [name for name, _ in wrapped.named_parameters() if "prompt_encoder" not in name]
    assert names
    assert all(layout.is_parameter(layout.canonical(name)) for name in names)
    assert all(layout.depth(name) == 0 for name, _ in wrapped.named_parameters() if "prompt_encoder" in name)


def test_suffixes_of_some_blocks_are_a_regular_expression(layout: ModelLayout) -> None:
    last = layout.blocks[-1].name
    paths = [path for path in layout.linears("all") if path.startswith(f"{last}.")]
    target = layout.suffixes(paths)
    assert [name for name, _ in layout.model.named_modules() if matches(target, name)] == sorted(
        paths, key=[name for name, _ in layout.model.named_modules()].index
    )


def test_wrong_requests_are_errors() -> None:
    layout = ModelLayout(tiny_model("bert"))
    with pytest.raises(ValueError, match="unknown roles"):
        layout.linears("querry")
    with pytest.raises(ValueError, match="no modules of BertForSequenceClassification"):
        layout.suffixes(["bert.nothing"])
    assert layout.suffixes([]) == []


def test_model_without_blocks_is_refused() -> None:
    class Plain(nn.Module):
        base_model_prefix = ""

        def __init__(self) -> None:
            super().__init__()
            self.config = tiny_config("bert")
            self.layer = nn.Linear(4, 4)

    with pytest.raises(ModelError, match="Plain: could not find the list of Transformer blocks"):
        ModelLayout(Plain())


def test_slices_through_the_blocks_are_not_taken_for_blocks() -> None:
    from transformers import AutoModelForSequenceClassification, XLMConfig

    config = XLMConfig(vocab_size=64, emb_dim=16, n_layers=2, n_heads=2, pad_token_id=0, mask_token_id=6)
    with pytest.raises(ModelError, match="could not find the list of Transformer blocks"):
        ModelLayout(AutoModelForSequenceClassification.from_config(config))


def test_parts_that_are_not_linear_layers_are_refused_by_role() -> None:
    from transformers import AutoModelForSequenceClassification, MixtralConfig

    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    layout = ModelLayout(
        AutoModelForSequenceClassification.from_config(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=2))
    )
    assert len(layout.linears("query")) == 2
    with pytest.raises(ModelError, match="MixtralForSequenceClassification: could not find feed-forward parts"):
        layout.linears("ffn_in")


def test_stages_of_swin_are_flattened_to_blocks() -> None:
    from transformers import AutoModelForImageClassification, SwinConfig

    config = SwinConfig(image_size=32, patch_size=4, num_channels=1, embed_dim=16, depths=[1, 2], num_heads=[2, 2])
    layout = ModelLayout(AutoModelForImageClassification.from_config(config))
    assert [block.name.removeprefix("swin.encoder.layers.") for block in layout.blocks] == [
        "0.blocks.0",
        "1.blocks.0",
        "1.blocks.1",
    ]
    assert len(layout.linears("ffn_out")) == 3
    assert layout.depth("swin.encoder.layers.0.downsample.reduction.weight") == 1
    assert layout.hidden_size == 32


def test_inner_width_equal_to_the_models() -> None:
    from transformers import AutoModelForSequenceClassification

    config = tiny_config("bert", intermediate_size=16)
    layout = ModelLayout(AutoModelForSequenceClassification.from_config(config))
    assert layout.suffixes(layout.linears("ffn_in")) == ["intermediate.dense"]
    assert all(name.endswith("output.dense") for name in layout.linears("ffn_out"))


def test_gated_t5_and_shared_albert() -> None:
    from transformers import AlbertConfig, AutoModelForSequenceClassification

    gated = tiny_config("t5", feed_forward_proj="gated-gelu")
    layout = ModelLayout(AutoModelForSequenceClassification.from_config(gated))
    assert layout.suffixes(layout.linears("ffn_in")) == ["wi_0", "wi_1"]
    albert = AlbertConfig(
        vocab_size=64, embedding_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    layout = ModelLayout(AutoModelForSequenceClassification.from_config(albert))
    assert len(layout.blocks) == 1, "ALBERT's layers share one set of weights"
    assert [len(layout.linears(role)) for role in ("query", "attention_out", "ffn_in", "ffn_out")] == [1, 1, 1, 1]


def test_layout_does_not_touch_the_model() -> None:
    model = tiny_model("bert")
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in model.named_parameters()}
    ModelLayout(model)
    assert all(
        torch.equal(tensor, before[name][0]) and tensor.requires_grad == before[name][1]
        for name, tensor in model.named_parameters()
    )
