"""Where the input of a model becomes a sequence of vectors, and where its attention is: the places of soft prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ftkit.errors import ModelError
from ftkit.models.facts import facts_of_config
from ftkit.models.layout import Block, ModelLayout
from ftkit.models.roles import linear_shape
from ftkit.models.sequences import CHANGING_LENGTH, PLAIN_VISION, WITHOUT_CACHE


@dataclass(frozen=True)
class InputPlace:
    """Module paths in the plain model.

    target: a stack that takes token ids, or the module that embeds images. width: of what it makes of them. causal: whether each
    position of it sees those before it only.
    output: where the sequence ends, before anything pools it; None where a decoder reads it instead.
    decoder: the stack that reads it by cross-attention, None where there is none.
    """

    target: str
    width: int
    causal: bool
    output: str | None
    decoder: str | None


def input_place(layout: ModelLayout) -> InputPlace:
    """Where vectors can be put in front of what the model reads (the encoder of an encoder-decoder).

    Raises ModelError if the model's input is not one sequence.
    """
    config: Any = layout.model.config
    if config.model_type in WITHOUT_CACHE | CHANGING_LENGTH:
        raise ModelError(f"{layout.architecture} does not keep its input in one sequence", hint="Use `method: lora`")
    causal = facts_of_config(config.to_dict(), None).kind == "decoder"
    decoders = [block for block in layout.blocks if block.stack == "decoder"]
    readers = [block for block in layout.blocks if block.stack != "decoder"]
    path = _stack_around(layout, readers[0])
    stack: Any = layout.model.get_submodule(path)
    if any(not block.name.startswith(f"{path}.") for block in readers) or not path:
        raise ModelError(f"{layout.architecture} reads its input in several stacks", hint="Choose another method, such as `lora`")
    decoder = _stack_around(layout, decoders[0]) if decoders else None
    output = None if decoders else _sequence_end(layout, path, readers[0])
    if stack.main_input_name == "pixel_values":
        return InputPlace(_image_embedding(layout, path), layout.hidden_size, causal, output, decoder)
    return InputPlace(path, int(stack.get_input_embeddings().weight.shape[1]), causal, output, decoder)


def _stack_around(layout: ModelLayout, block: Block) -> str:
    """The innermost transformers model around a block that is not the whole."""
    path = block.name
    while path and not isinstance(layout.model.get_submodule(path), PreTrainedModel):
        path = path.rpartition(".")[0]
    return path


def _sequence_end(layout: ModelLayout, path: str, block: Block) -> str:
    """The module between blocks and poolers: what runs the blocks, or the stack itself if that does and does not pool."""
    name = block.name.removeprefix(f"{path}.").partition(".")[0]
    if not isinstance(layout.model.get_submodule(f"{path}.{name}"), nn.ModuleList):
        return f"{path}.{name}"
    if getattr(layout.model.get_submodule(path), "pooler", None) is not None:
        raise ModelError(
            f"{layout.architecture} pools its sequence where nothing can be taken out of it", hint="Use `method: lora`"
        )
    return path


def _image_embedding(layout: ModelLayout, path: str) -> str:
    config: Any = layout.model.config
    if config.model_type not in PLAIN_VISION:
        raise ModelError(f"{layout.architecture} does not keep its patches in one sequence", hint="Use `method: lora`")
    # Where the blocks are a transformers model of their own (DINOv2), the embedding lies beside it.
    owners = [path.rpartition(".")[0], path]
    return next(f"{owner}.embeddings" for owner in owners if owner and hasattr(layout.model.get_submodule(owner), "embeddings"))


# --- attention -------------------------------------------------------------------------------------------------------------


def attention_widths(layout: ModelLayout, blocks: Sequence[Block]) -> dict[str, int]:
    """Attention modules of these blocks that take a prefix, by path in order of the model, and the numbers in a key of all their heads.

    What is new in a pair of models (cross-attention) trains as a whole and is left out. Raises ModelError if a block has none, or one
    whose keys and values differ in width.
    """
    from ftkit.tuners.prefixed_attention import attends

    found: dict[str, int] = {}
    for block in blocks:
        paths = [f"{block.name}.{name}" for name, module in block.module.named_modules() if name and attends(module)]
        if not paths:
            message = f"{layout.architecture} computes attention in a way of its own, which takes no prefix"
            raise ModelError(message, hint="Use `prompt-tuning` or `lora`")
        pretrained = [path for path in paths if not any(f"{path}.".startswith(f"{head}.") for head in layout.head_modules())]
        found |= {path: _key_width(layout, path) for path in pretrained}
    return found


def _key_width(layout: ModelLayout, path: str) -> int:
    def widths(role: str) -> set[int]:
        linears: list[Any] = [layout.model.get_submodule(name) for name in layout.linears(role) if name.startswith(f"{path}.")]
        return {linear_shape(getattr(linear, "base_layer", linear))[1] for linear in linears}

    keys, values = widths("key"), widths("value")
    if not keys and not values:
        return _fused_width(layout.model.get_submodule(path))
    if len(keys) != 1 or keys != values:
        raise ModelError(f"keys and values of {path} differ in width, and a prefix needs them equal", hint="Use `method: lora`")
    return keys.pop()


def _fused_width(module: Any) -> int:
    """Of a module that makes query, key and value in one layer: by its config."""
    config = module.config
    heads = config.num_attention_heads
    size = getattr(module, "head_dim", None) or config.hidden_size // heads
    return int(size * (getattr(config, "num_key_value_heads", None) or heads))
