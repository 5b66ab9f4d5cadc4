from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftkit.errors import ModelError
from ftkit.models.facts import facts_of_config, read_facts
from ftkit.recipe.schema import ModelSpec
from tests.models.gguf_files import gguf_bytes
from tests.tiny import DECODERS, ENCODER_DECODERS, ENCODERS, FAMILIES, HIDDEN_SIZE, MAX_POSITIONS, VISION, VOCAB_SIZE, save_tiny

KINDS = {
    **dict.fromkeys(ENCODERS, "encoder"),
    **dict.fromkeys(DECODERS, "decoder"),
    **dict.fromkeys(ENCODER_DECODERS, "encoder-decoder"),
    **dict.fromkeys(VISION, "vision"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_of_every_family(family: str, tmp_path: Path) -> None:
    facts = read_facts(ModelSpec(name=str(save_tiny(tmp_path, family))))
    assert (facts.kind, facts.model_type, facts.hidden_size) == (KINDS[family], family, HIDDEN_SIZE)
    assert facts.block_count == (4 if family in ENCODER_DECODERS else 2)
    assert facts.max_positions == (None if family in ("t5", "vit") else MAX_POSITIONS)
    assert facts.vocab_size == (None if family == "vit" else VOCAB_SIZE)
    assert facts.path == tmp_path.resolve()


SIZES = {"hidden_size": 8, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "llama"}, "decoder"),
        ({"model_type": "somenew", "architectures": ["SomeNewForCausalLM"]}, "decoder"),
        ({"model_type": "xlm", "architectures": ["XLMWithLMHeadModel"]}, "encoder"),
        ({"model_type": "opt"}, "decoder"),
        ({"model_type": "swin", "image_size": 8}, "vision"),
        ({"model_type": "clip", "vision_config": {}}, "multimodal"),
        ({"model_type": "wav2vec2", "conv_dim": [1]}, "audio"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "t5", "is_encoder_decoder": False}, "encoder"),
        ({"model_type": "modernbert"}, "encoder"),
    ],
)
def test_kind(config: dict[str, Any], kind: str) -> None:
    assert facts_of_config({**SIZES, **config}, None).kind == kind


def test_roberta_positions_start_after_the_padding_id() -> None:
    config = {**SIZES, "model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert facts_of_config(config, None).max_positions == 512
    assert facts_of_config({**config, "model_type": "bert"}, None).max_positions == 514


def test_sizes_of_hierarchical_and_nested_configs() -> None:
    swin = facts_of_config({"model_type": "swin", "image_size": 8, "embed_dim": 96, "depths": [2, 2, 6, 2]}, None)
    assert (swin.hidden_size, swin.block_count) == (768, 12)
    nested = {"model_type": "gemma3", "text_config": {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 7}}
    assert facts_of_config(nested, None).hidden_size == 32


@pytest.mark.parametrize(("config", "missing"), [({}, "model_type"), ({"model_type": "bert"}, "hidden_size")])
def test_config_that_says_too_little(config: dict[str, Any], missing: str) -> None:
    with pytest.raises(ModelError, match=missing):
        facts_of_config(config, None)


def test_hub_id_that_is_not_here_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    facts = read_facts(ModelSpec(name="owner/never-downloaded"))
    assert (facts.kind, facts.path) == ("unknown", None)


def test_hub_id_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "a" * 40
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({**SIZES, "model_type": "bert"}))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert read_facts(ModelSpec(name="owner/name", revision=commit)).path == snapshot


def test_text_that_is_no_hub_id() -> None:
    with pytest.raises(ModelError, match="neither a file or folder here nor a hub id"):
        read_facts(ModelSpec(name="not a model!"))


def test_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes())
    facts = read_facts(ModelSpec(name=str(path)))
    assert (facts.kind, facts.model_type, facts.hidden_size, facts.block_count) == ("decoder", "llama", 32, 1)
    assert (facts.max_positions, facts.vocab_size, facts.path) == (64, 20, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04", "is not a GGUF file"),
        (gguf_bytes()[:60], "cut short"),
        (b"GGUF\x01\x00\x00\x00", "has GGUF version 1"),
        (b"GGUF\x03\x00\x00\x00" + bytes(8) + b"\xff" * 8, "metadata entries"),
        (b"GGUF\x03\x00\x00\x00" + bytes(16), "names no general.architecture"),
    ],
)
def test_damaged_gguf(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_facts(ModelSpec(name=str(path)))


def test_facts_need_neither_torch_nor_transformers(tmp_path: Path) -> None:
    code = (
        "import sys; from ftkit.models.facts import read_facts; from ftkit.recipe.schema import ModelSpec;"
        "read_facts(ModelSpec(name=sys.argv[1])); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(save_tiny(tmp_path, "bert"))], check=False).returncode == 0


@pytest.mark.parametrize("tied", [True, False, None])
def test_tied_output_layer_as_far_as_the_config_says(tied: bool | None) -> None:
    stated = {} if tied is None else {"tie_word_embeddings": tied}
    assert facts_of_config({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, **stated}, None).tied is tied


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        (["BertForMaskedLM"], True),
        (["GPT2LMHeadModel"], True),
        (["BertModel"], True),
        (["BertForSequenceClassification"], False),
        (["BertForMaskedLM", "BertForTokenClassification"], False),
        (None, False),
    ],
)
def test_a_checkpoint_straight_from_pretraining(architectures: list[str] | None, expected: bool) -> None:
    config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "architectures": architectures}
    assert facts_of_config(config, None).only_pretrained is expected
