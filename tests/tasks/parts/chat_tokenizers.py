"""Byte-level tokenizers, built in memory, that know the control tokens a test needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CONTROLS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
]


def byte_tokenizer(
    *,
    controls: Sequence[str] = CONTROLS,
    merges: Sequence[tuple[str, str]] = (),
    divides: bool = True,
    adds_bos: bool = False,
    template: str | None = None,
) -> Any:
    """A token for each byte, `<s>`, `</s>`, `<pad>` and the control tokens.

    merges: pairs of byte-level texts that become one token (a space is written `Ġ`, a line break `Ċ`).
    divides: whether text is divided into words first, so that nothing merges across them. adds_bos: put `<s>` before each text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<s>", "</s>", *controls, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=divides)
    backend.decoder = decoders.ByteLevel()
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(controls),
        chat_template=template,
    )
