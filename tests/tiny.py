"""Tiny models and tokenizers, built in memory: nothing is downloaded. Shared by all tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftkit.models.quiet import quiet_libraries

quiet_libraries()

FAMILIES = ["bert", "roberta", "distilbert", "deberta-v2", "gpt2", "llama", "qwen2", "t5", "bart", "vit"]
ENCODERS = ["bert", "roberta", "distilbert", "deberta-v2"]
DECODERS = ["gpt2", "llama", "qwen2"]
ENCODER_DECODERS = ["t5", "bart"]
VISION = ["vit"]

HIDDEN_SIZE = 16
VOCAB_SIZE = 64
MAX_POSITIONS = 64
IMAGE_SIZE = 8
SPECIAL_TOKENS = ["<pad>", "<unk>", "<cls>", "<sep>", "<s>", "</s>", "<mask>"]
WORDS = [f"w{number}" for number in range(41)]
TOKENS = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *WORDS])}

_SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 4, "eos_token_id": 5}
_USUAL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": MAX_POSITIONS,
}
_SIZES: dict[str, dict[str, Any]] = {
    "bert": _USUAL,
    # RoBERTa counts positions from pad_token_id + 1.
    "roberta": {**_USUAL, "max_position_embeddings": MAX_POSITIONS + 1},
    "distilbert": {"vocab_size": 64, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64},
    "deberta-v2": {**_USUAL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 16},
    "gpt2": {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": MAX_POSITIONS},
    "llama": {**_USUAL, "num_key_value_heads": 2},
    "qwen2": {**_USUAL, "num_key_value_heads": 1},
    "t5": {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2},
    "bart": {
        "vocab_size": VOCAB_SIZE,
        "d_model": HIDDEN_SIZE,
        "max_position_embeddings": MAX_POSITIONS,
        **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")},
        "forced_eos_token_id": None,
    },
    "vit": {
        **{name: size for name, size in _USUAL.items() if name not in ("vocab_size", "max_position_embeddings")},
        "image_size": IMAGE_SIZE,
        "patch_size": 4,
        "num_channels": 1,
    },
}


def tiny_config(family: str, **changes: Any) -> Any:
    """Config of a model of width 16 with 2 blocks (2 + 2 for encoder-decoders) and 64 tokens."""
    from transformers import AutoConfig

    special = {} if family in VISION else dict(_SPECIAL_IDS)
    if family in ENCODER_DECODERS:
        special["decoder_start_token_id"] = 0
    return AutoConfig.for_model(family, **{**_SIZES[family], **special, **changes})


def tiny_model(
    family: str, auto_class: str = "AutoModelForSequenceClassification", num_labels: int = 3, seed: int = 0, **changes: Any
) -> Any:
    """A random model in evaluation mode. ViT gets an image classification head whatever `auto_class` says. changes: of the config."""
    import torch
    import transformers

    if family in VISION:
        auto_class = "AutoModelForImageClassification"
    config = tiny_config(family, **changes)
    config.num_labels = num_labels
    torch.manual_seed(seed)
    return getattr(transformers, auto_class).from_config(config).eval()


def tiny_tokenizer(family: str = "bert") -> Any:
    """A fast word-level tokenizer: words w0 .. w40 and special tokens, placed as the family places them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(TOKENS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single, pair = _templates(family)
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, TOKENS[token]) for token in SPECIAL_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_POSITIONS,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<cls>",
        sep_token="<sep>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
    )


def _templates(family: str) -> tuple[str, str]:
    if family in DECODERS:
        return "$A", "$A $B"
    if family == "t5":
        return "$A </s>", "$A </s> $B </s>"
    if family in ("roberta", "bart"):
        return "<s> $A </s>", "<s> $A </s> </s> $B </s>"
    return "<cls> $A <sep>", "<cls> $A <sep> $B:1 <sep>:1"


def save_tiny(
    folder: Path,
    family: str,
    auto_class: str = "AutoModelForSequenceClassification",
    num_labels: int = 3,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Writes a complete model folder (config.json, model.safetensors, tokenizer or image processor); returns it."""
    tiny_model(family, auto_class, num_labels, seed, **changes).save_pretrained(folder)
    if family in VISION:
        settings = {
            "image_processor_type": "ViTImageProcessor",
            "do_normalize": True,
            "image_mean": [0.5],
            "image_std": [0.5],
            "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    else:
        tiny_tokenizer(family).save_pretrained(folder)
    return folder
