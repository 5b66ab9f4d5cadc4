from __future__ import annotations

from typing import Any

import pytest

from ftkit.errors import ModelError
from ftkit.models.layout import ModelLayout
from ftkit.models.stacks import InputPlace, attention_widths, input_place
from tests.tiny import tiny_model
from tests.tuners.prompted import plain_model

VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_channels": 1}


def model_of(model_type: str, auto_class: str, **sizes: Any) -> Any:
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **sizes)
    config.architectures = []
    return getattr(transformers, auto_class).from_config(config)


@pytest.mark.parametrize(
    ("family", "auto", "place"),
    [
        ("bert", "ForTokenClassification", InputPlace("bert", 16, False, "bert.encoder", None)),
        ("distilbert", "ForSequenceClassification", InputPlace("distilbert", 16, False, "distilbert.transformer", None)),
        ("gpt2", "ForCausalLM", InputPlace("transformer", 16, True, "transformer", None)),
        ("llama", "ForSequenceClassification", InputPlace("model", 16, True, "model", None)),
        ("t5", "ForSeq2SeqLM", InputPlace("encoder", 16, False, None, "decoder")),
        ("t5", "ForTokenClassification", InputPlace("transformer.encoder", 16, False, "transformer.encoder", None)),
        ("bart", "ForSequenceClassification", InputPlace("model.encoder", 16, False, None, "model.decoder")),
        ("bert + bert", "", InputPlace("encoder", 16, False, None, "decoder.bert")),
        ("vit", "", InputPlace("vit.embeddings", 16, False, "vit", None)),
    ],
)
def test_where_inputs_become_vectors(family: str, auto: str, place: InputPlace) -> None:
    model = plain_model(family, auto) if "+" in family else tiny_model(family, f"AutoModel{auto}")
    assert input_place(ModelLayout(model)) == place


def test_image_embeddings_may_lie_beside_the_stack() -> None:
    place = input_place(ModelLayout(model_of("dinov2", "AutoModelForImageClassification", **VISION)))
    assert place == InputPlace("dinov2.embeddings", 16, False, "dinov2.encoder", None)


def test_narrower_embeddings_count() -> None:
    sizes = {"hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    assert input_place(ModelLayout(model_of("electra", "AutoModelForTokenClassification", **sizes))).width == 8


@pytest.mark.parametrize(
    ("model_type", "auto", "sizes"),
    [
        ("mamba", "AutoModelForCausalLM", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 64}),
        (
            "swin",
            "AutoModelForImageClassification",
            {
                "image_size": 16,
                "patch_size": 2,
                "num_channels": 1,
                "embed_dim": 8,
                "depths": [1, 1],
                "num_heads": [2, 2],
                "window_size": 2,
            },
        ),
        ("beit", "AutoModelForImageClassification", VISION),
    ],
)
def test_inputs_that_are_no_sequence_are_refused(model_type: str, auto: str, sizes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"one sequence|pools its sequence"):
        input_place(ModelLayout(model_of(model_type, auto, **sizes)))


def test_widths_of_keys() -> None:
    def widths(family: str) -> set[int]:
        layout = ModelLayout(tiny_model(family, "AutoModelForSequenceClassification"))
        return set(attention_widths(layout, layout.blocks).values())

    assert {family: widths(family) for family in ("bert", "gpt2", "llama", "qwen2", "t5")} == {
        "bert": {16},
        "gpt2": {16},
        "llama": {16},
        "qwen2": {8},
        "t5": {16},
    }
