"""What each linear layer of a Transformer block does: attention input, attention output, feed-forward.

Queries, keys and values cannot be told apart by structure, so their names are a table. All else is structure: the output
projection is what lies beside them, the feed-forward layers are the rest of the block, told apart by their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

ATTENTION_INPUTS = ("query", "key", "value", "qkv")
ROLES = (*ATTENTION_INPUTS, "attention_out", "ffn_in", "ffn_out")

_INPUT_NAMES = {
    "query": (
        "query",
        "q_proj",
        "q_lin",
        "q",
        "query_proj",
        "q_head",
        "q_attn",
        "wq",
        "to_q",
        "query_global",
        "q_a_proj",
        "q_b_proj",
    ),
    "key": ("key", "k_proj", "k_lin", "k", "key_proj", "k_head", "wk", "to_k", "key_global"),
    "value": ("value", "v_proj", "v_lin", "v", "value_proj", "v_head", "wv", "to_v", "value_global"),
    "qkv": (
        "c_attn",
        "query_key_value",
        "qkv_proj",
        "Wqkv",
        "qkv",
        "att_proj",
        "in_proj",
        "W_pack",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
    ),
}
_ROLE_OF_NAME = {name: role for role, names in _INPUT_NAMES.items() for name in names}
# Helpers inside an attention module that are none of the projections (DeBERTa's positions, ConvBERT's convolution), and routers.
_HELPERS = frozenset({"pos_key_proj", "pos_query_proj", "pos_proj", "pos_q_proj", "conv_kernel_layer", "conv_out_layer"})
_ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a matrix product: nn.Linear and its subclasses, or transformers' Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(input width, output width) of a linear layer, right for quantized ones too, whose weight has another shape."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return int(module.nx), int(module.nf)  # type: ignore[arg-type]


def has_attention(module: nn.Module) -> bool:
    """Whether attention input projections lie inside the module."""
    return any(role in ATTENTION_INPUTS for role in _attention_inputs("", module).values())


def classify_block(name: str, block: nn.Module) -> dict[str, str]:
    """Role of each linear layer of a block by module path, in module order; '' for one that has none of the roles.

    name: module path of the block, put in front of the paths.
    """
    linears = {path: module for path, module in _named_linears(name, block).items()}
    roles = _attention_inputs(name, block)
    scopes = {_attention_scope(path, name, linears, roles) for path, role in roles.items() if role in ATTENTION_INPUTS}
    width = next((linear_shape(linears[path])[0] for path, role in roles.items() if role in ATTENTION_INPUTS), None)
    for path in linears:
        if path not in roles and any(path.startswith(f"{scope}.") for scope in scopes):
            roles[path] = "attention_out"
    rest = {path: module for path, module in linears.items() if path not in roles}
    roles |= _feed_forward_roles(rest, width)
    return {path: roles[path] for path in linears}


def _named_linears(name: str, block: nn.Module) -> dict[str, nn.Module]:
    prefix = f"{name}." if name else ""
    return {f"{prefix}{path}": module for path, module in block.named_modules() if is_linear(module)}


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _attention_inputs(name: str, block: nn.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    prefix = f"{name}." if name else ""
    classes = {f"{prefix}{path}": type(module).__name__ for path, module in block.named_modules()}
    for path in _named_linears(name, block):
        leaf = _leaf(path)
        if leaf in _HELPERS:
            found[path] = ""
        # State-space mixers have an in_proj too; it is a fused query, key and value only inside an attention module.
        elif leaf in _ROLE_OF_NAME and (leaf != "in_proj" or "attention" in classes.get(path.rpartition(".")[0], "").lower()):
            found[path] = _ROLE_OF_NAME[leaf]
    return found


def _attention_scope(path: str, block: str, linears: Mapping[str, nn.Module], inputs: Mapping[str, str]) -> str:
    """The innermost module around an attention input that also holds a linear layer which is none; never the block itself."""
    scope = innermost = path.rpartition(".")[0]
    while scope and scope != block:
        if any(other.startswith(f"{scope}.") and other not in inputs for other in linears):
            return scope
        scope = scope.rpartition(".")[0]
    return innermost if innermost != block else path


def _feed_forward_roles(linears: Mapping[str, nn.Module], width: int | None) -> dict[str, str]:
    roles = {path: "" for path in linears if _leaf(path) in _ROUTERS}
    undecided: list[str] = []
    for path, module in linears.items():
        if path in roles or width is None:
            continue
        inward, outward = linear_shape(module)
        if inward == outward:
            undecided.append(path)
        elif inward == width:
            roles[path] = "ffn_in"
        elif outward == width:
            roles[path] = "ffn_out"
    # Inner width equal to the model's: the shapes say nothing, but the way back is always the last layer.
    for path in undecided:
        roles[path] = "ffn_out" if path == undecided[-1] and "ffn_out" not in roles.values() else "ffn_in"
    return {path: roles.get(path, "") for path in linears}
