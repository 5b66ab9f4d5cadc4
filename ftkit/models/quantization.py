"""Quantized base models: the linear layers of the blocks hold 4- or 8-bit numbers, everything else stays as it was.

nf4, fp4: QLoRA's data types (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314), blocks of 64 weights with one scale each; with
double quantization the scales are 8-bit numbers themselves, which comes to 4.127 bits a weight (section 3).
int8: LLM.int8() (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339); its products round the inputs, too.
bitsandbytes does the work, on GPUs and on CPUs. Heads, embeddings and norms are left alone: they train, or are small.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ftkit.errors import ModelError, Problem
from ftkit.models.roles import is_linear, linear_shape

if TYPE_CHECKING:
    from ftkit.models.layout import ModelLayout
    from ftkit.recipe.schema import QuantizationSpec

BLOCK_SIZE = 64
"""4-bit weights that share a scale; the default of bitsandbytes and of the paper."""

FLAGS = {4: "is_loaded_in_4bit", 8: "is_loaded_in_8bit"}
"""What PEFT asks a model before it treats the layers as quantized."""


def target_device() -> torch.device:
    """Where the model will be trained: bitsandbytes quantizes on the device that a layer is moved to."""
    forced_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if torch.cuda.is_available() and not forced_cpu:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def loading_arguments(spec: QuantizationSpec, unquantized: list[str]) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantize a checkpoint while it is read, so that it is never whole in memory.

    unquantized: paths of linear layers to leave alone.
    """
    import transformers

    if spec.bits == 8:
        config = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=unquantized)
    else:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=spec.type,
            bnb_4bit_use_double_quant=spec.double,
            bnb_4bit_compute_dtype=getattr(torch, spec.compute_dtype),
            llm_int8_skip_modules=unquantized,
        )
    return {"quantization_config": config, "device_map": {"": target_device()}}


def unquantized_linears(layout: ModelLayout) -> list[str]:
    """Paths of the linear layers that stay as they are: all outside the blocks, and new ones."""
    inside = set(_linears_of_blocks(layout))
    return [path for path, module in layout.model.named_modules() if is_linear(module) and path not in inside]


def check_widths(layout: ModelLayout, spec: QuantizationSpec) -> None:
    """Raises ModelError where bitsandbytes would compute nonsense: 4-bit layers on a CPU whose width is no multiple of 64.

    bitsandbytes 0.50 reads rows there that share a block of 64 weights with the next row from wrong places.
    """
    if spec.bits != 4 or target_device().type != "cpu":
        return
    for path in _linears_of_blocks(layout):
        width = linear_shape(layout.model.get_submodule(path))[0]
        if width % BLOCK_SIZE:
            message = f"4-bit layers on a CPU need widths that are multiples of {BLOCK_SIZE}; {path} has {width}"
            raise ModelError(Problem(message=message, key="model.quantization", hint="Use `quantization: int8`, or a GPU"))


def keep_trainable(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    Packed for good, they compute in bfloat16 and hand no gradients on when training continues (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def quantize(layout: ModelLayout, spec: QuantizationSpec) -> None:
    """Quantizes the linear layers of the blocks of a model that is in memory (made from a GGUF file, or of two models)."""
    check_widths(layout, spec)
    device = target_device()
    for path in _linears_of_blocks(layout):
        parent, _, name = path.rpartition(".")
        setattr(layout.model.get_submodule(parent), name, _quantized(layout.model.get_submodule(path), spec).to(device))
    layout.model.to(device)
    setattr(layout.model, FLAGS[spec.bits], True)


def dequantize_into(plain: nn.Module, layout: ModelLayout) -> None:
    """Gives the linear layers of `plain` the values that the quantized ones of the layout's model, adapted or not, stand for."""
    for name, layer in layout.model.named_modules():
        if isinstance(layer, nn.Linear) and is_quantized(layer):
            path = layout.canonical(f"{name}.weight").removesuffix(".weight")
            weight = plain.get_submodule(path).get_parameter("weight")
            values = dequantized(layer).to(weight.device, weight.dtype)
            weight.data.copy_(values.t() if type(plain.get_submodule(path)).__name__ == "Conv1D" else values)


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a quantized linear layer."""
    return type(getattr(module, "weight", None)).__name__ in ("Params4bit", "Int8Params")


def dequantized(layer: Any) -> torch.Tensor:
    """The weight (out x in, float32) that a quantized layer computes with."""
    import bitsandbytes

    weight = layer.weight
    if type(weight).__name__ == "Params4bit":
        found: torch.Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return found.float()
    scales = weight.SCB if weight.SCB is not None else layer.state.SCB
    return weight.data.float() * scales.float().unsqueeze(1) / 127.0


def weight_count(parameter: nn.Parameter) -> int:
    """How many weights a parameter stands for; two 4-bit weights share a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


def weight_bytes(parameter: nn.Parameter) -> int:
    """Bytes of a parameter with the scales of its quantization."""
    size = parameter.numel() * parameter.element_size()
    state = getattr(parameter, "quant_state", None)
    scales = getattr(parameter, "SCB", None)
    if state is not None:
        scales = state.absmax
        # Double quantization: 8-bit scales, and a second level of scales for each 256 of them.
        if state.nested:
            size += state.state2.absmax.numel() * state.state2.absmax.element_size()
    return size if scales is None else size + scales.numel() * scales.element_size()


def _linears_of_blocks(layout: ModelLayout) -> list[str]:
    return [path for path in layout.linears("all") if not any(name.startswith(f"{path}.") for name in layout.fresh)]


def _quantized(layer: Any, spec: QuantizationSpec) -> Any:
    import bitsandbytes

    weight = layer.weight.data.t().contiguous() if type(layer).__name__ == "Conv1D" else layer.weight.data
    outward, inward = weight.shape
    layers: Any = bitsandbytes.nn
    if spec.bits == 8:
        found = layers.Linear8bitLt(inward, outward, bias=layer.bias is not None, has_fp16_weights=False, threshold=6.0)
        found.weight = layers.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    else:
        found = layers.Linear4bit(
            inward,
            outward,
            bias=layer.bias is not None,
            compute_dtype=getattr(torch, spec.compute_dtype),
            compress_statistics=spec.double,
            quant_type=spec.type,
        )
        found.weight = layers.Params4bit(weight.clone(), requires_grad=False, compress_statistics=spec.double, quant_type=spec.type)
    found.bias = layer.bias
    return found
