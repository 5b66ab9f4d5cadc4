"""A tiny Llama as GGUF, written by hand."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

VOCABULARY = ["<s>", "</s>", "ab", *"abcdefghijklmnopq"]
WIDTH, INNER = 32, 64
_U32, _F32, _STRING, _ARRAY = 4, 6, 8, 9
_ALIGNMENT = 32


def gguf_bytes() -> bytes:
    """A GGUF file (version 3) of a Llama with one block, random float32 weights and a byte-pair tokenizer."""
    metadata: list[tuple[str, int, Any]] = [
        ("general.architecture", _STRING, "llama"),
        ("llama.embedding_length", _U32, WIDTH),
        ("llama.block_count", _U32, 1),
        ("llama.context_length", _U32, 64),
        ("llama.feed_forward_length", _U32, INNER),
        ("llama.attention.head_count", _U32, 2),
        ("llama.attention.head_count_kv", _U32, 2),
        ("llama.attention.layer_norm_rms_epsilon", _F32, 1e-5),
        ("llama.vocab_size", _U32, len(VOCABULARY)),
        ("tokenizer.ggml.model", _STRING, "gpt2"),
        ("tokenizer.ggml.tokens", _ARRAY, (_STRING, VOCABULARY)),
        ("tokenizer.ggml.token_type", _ARRAY, (_U32, [3, 3] + [1] * (len(VOCABULARY) - 2))),
        ("tokenizer.ggml.merges", _ARRAY, (_STRING, ["a b"])),
        ("tokenizer.ggml.bos_token_id", _U32, 0),
        ("tokenizer.ggml.eos_token_id", _U32, 1),
    ]
    tensors = _tensors()
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_text(key) + struct.pack("<I", kind) + _value(kind, value) for key, kind, value in metadata)
    body = b""
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        head += (
            _text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0, len(body))
        )
        body += _padded(tensor.tobytes())
    return _padded(head) + body


def _tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(VOCABULARY), WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (INNER, WIDTH), "blk.0.ffn_up": (INNER, WIDTH), "blk.0.ffn_down": (WIDTH, INNER)}
    shapes |= {"blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,)}
    return {f"{name}.weight": generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    if kind == _ARRAY:
        item, items = value
        return struct.pack("<IQ", item, len(items)) + b"".join(_value(item, entry) for entry in items)
    return struct.pack("<I" if kind == _U32 else "<f", value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
