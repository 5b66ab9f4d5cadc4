"""Sequence-to-sequence models out of two pretrained ones (Rothe et al. 2020, https://arxiv.org/abs/1907.12461).

The decoder looks at what the encoder says through cross-attention, which neither model brings along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ftkit.errors import ModelError, Problem

if TYPE_CHECKING:
    from torch import nn

Load = Callable[[str, Any], "tuple[Any, dict[str, Any]]"]
"""Loads a model by auto class and config; returns it and transformers' loading info."""


def pair_config(encoder: Any, decoder: Any, processor: Any) -> Any:
    """The config of a pair of which `encoder` and `decoder` are the configs; its texts start and end with the tokenizer's own tokens.

    Raises ModelError if the tokenizer has none, or more tokens than the decoder.
    """
    from transformers import EncoderDecoderConfig

    encoder.is_decoder = encoder.add_cross_attention = False
    start = _first(processor.cls_token_id, processor.bos_token_id)
    end = _first(processor.sep_token_id, processor.eos_token_id)
    if start is None or end is None:
        message = "the tokenizer has no token that begins or none that ends a text (cls or bos, sep or eos)"
        raise ModelError(Problem(message=message, key="model.decoder", hint="Choose models with another tokenizer"))
    if len(processor) > decoder.vocab_size:
        message = f"the tokenizer has {len(processor)} tokens, the decoder only {decoder.vocab_size}"
        raise ModelError(Problem(message=message, key="model.decoder", hint="Choose two models with the same vocabulary"))
    ids = {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": processor.pad_token_id}
    return EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **ids)


def load_pair(config: Any, load_encoder: Load, load_decoder: Load) -> tuple[Any, dict[str, Any]]:
    """The pair with its pretrained weights, and the loading info of both with names as in the pair."""
    from transformers import EncoderDecoderModel

    encoder, encoder_info = load_encoder("AutoModel", config.encoder)
    decoder, decoder_info = load_decoder("AutoModelForCausalLM", config.decoder)
    # transformers makes the projection between models of different widths in float32.
    model = EncoderDecoderModel(config=config, encoder=encoder, decoder=decoder).to(decoder.dtype).eval()
    for part in (config.encoder, config.decoder, model.config.encoder, model.config.decoder):
        # transformers would write where the models lay on this machine into each export.
        part._name_or_path = ""
    mismatched = [
        (f"{part}.{entry[0]}", *entry[1:])
        for part, info in (("encoder", encoder_info), ("decoder", decoder_info))
        for entry in info["mismatched_keys"]
    ]
    missing = {f"encoder.{name}" for name in encoder_info["missing_keys"]}
    missing |= {f"decoder.{name}" for name in decoder_info["missing_keys"]}
    # That projection belongs to neither.
    missing |= {name for name, _ in model.named_parameters() if not name.startswith(("encoder.", "decoder."))}
    _retire_fresh_pooler(model, missing)
    return model, {"missing_keys": missing - _neutral(model, missing), "mismatched_keys": mismatched}


def finish_pair(model: Any) -> None:
    """What transformers leaves undone in a pair that is new or loaded from one folder.

    The generation config gets the ids that the config names; transformers makes it before it knows them.
    The encoder's pooler gets buffers for parameters: nothing in a pair reads its output, so nothing can train it. It stays in the
    model, because transformers expects it in the folder of an export.
    """
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        if getattr(model.generation_config, name) is None:
            setattr(model.generation_config, name, getattr(model.config, name))
    for module in model.encoder.pooler.modules() if getattr(model.encoder, "pooler", None) is not None else ():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.data)


def _retire_fresh_pooler(model: Any, missing: set[str]) -> None:
    fresh = {name for name in missing if name.startswith("encoder.pooler.")}
    if fresh:
        model.encoder.pooler = None
        missing -= fresh


def _neutral(model: nn.Module, missing: set[str]) -> set[str]:
    """Biases of zero beside a weight that is not new: what the checkpoint computes without one."""
    tensors = model.state_dict()
    return {
        name
        for name in missing
        if name.endswith("bias") and f"{name.removesuffix('bias')}weight" not in missing and not bool(tensors[name].any())
    }


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
