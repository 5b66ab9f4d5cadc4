"""Bottleneck adapters as the AdapterHub library (`adapters`) writes them: settings, places and names, and what of it ftkit has, too.

A folder has adapter_config.json ({`config`: the settings, `name`, `model_type`, `model_name`, `hidden_size`, `version`}) and the weights,
adapter.safetensors. A tensor is called BLOCK PLACE `.adapters.NAME.` INNER, as in
    bert.encoder.layer.0.output.adapters.NAME.adapter_down.0.weight
Sources: https://docs.adapterhub.ml/methods.html#bottleneck-adapters, and the library's BnConfig, Adapter and ParallelAdapter (1.3.0).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftkit.models.layout import ModelLayout

WEIGHTS, PICKLED, VERSION = "adapter.safetensors", "pytorch_adapter.bin", "adapters.1.3.0"
ATTENTION, CROSS, OUTPUT = "attention", "cross", "output"
"""After attention, after attention to the encoder, after the feed-forward part."""

_INSIDE = {ATTENTION: ".attention.output", OUTPUT: ".output"}
_BESIDE = {ATTENTION: ".attention_adapters", CROSS: ".cross_attention_adapters", OUTPUT: ".output_adapters"}


@dataclass(frozen=True)
class Names:
    """How the library calls blocks and places of one type of model. block: with the number, and the stack where there are two."""

    block: str
    places: Mapping[str, str]

    def place(self, sublayer: str, stack: str) -> str:
        """What follows a block's name at the adapter of a sublayer."""
        if self.places:
            return self.places[sublayer]
        # T5's blocks are lists of sublayers.
        return f".layer.{ {ATTENTION: 0, CROSS: 1, OUTPUT: 2 if stack == 'decoder' else 1}[sublayer] }"


MODELS: Mapping[str, Names] = {
    **{kind: Names(f"{kind}.encoder.layer.{{index}}", _INSIDE) for kind in ("bert", "roberta", "electra", "deberta")},
    "xlm-roberta": Names("roberta.encoder.layer.{index}", _INSIDE),
    "deberta-v2": Names("deberta.encoder.layer.{index}", _INSIDE),
    "distilbert": Names("distilbert.transformer.layer.{index}", _BESIDE),
    **{kind: Names("transformer.h.{index}", _BESIDE) for kind in ("gpt2", "gptj")},
    **{kind: Names("model.layers.{index}", _BESIDE) for kind in ("llama", "mistral")},
    **{kind: Names("model.{stack}.layers.{index}", _BESIDE) for kind in ("bart", "mbart", "plbart")},
    "vit": Names("vit.encoder.layer.{index}", {**_BESIDE, OUTPUT: ".output.output_adapters"}),
    **{kind: Names("transformer.{stack}.block.{index}", {}) for kind in ("t5", "mt5")},
}
"""By transformers' name of the architecture. Others are refused: where the library puts adapters there is not known here."""

# --- settings ----------------------------------------------------------------------------------------------------------

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_new", "swish": "silu", "silu": "silu", "tanh": "tanh"}
OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
"""What files without a `version` mean by these names."""

INITS = {"normal": "bert", "truncated": "houlsby", "zero-up": "mam_adapter"}
MUST_BE: Mapping[str, tuple[Any, str]] = {
    "output_adapter": (True, "adapters after the feed-forward part are at every place that ftkit knows"),
    "original_ln_after": (True, "the model's own norm would be left out behind the adapter"),
    "use_gating": (False, "gates"),
    "phm_layer": (False, "Compacter's Kronecker products"),
    "inv_adapter": (None, "invertible adapters of the embeddings"),
    "invertible_adapter": (None, "invertible adapters of the embeddings"),
    "stochastic_depth": (0.0, "stochastic depth"),
    "residual_before_ln": (True, "a residual taken after the norm"),
    "architecture": (None, "another kind of adapter than a bottleneck"),
}
"""Settings that ftkit has in one value only, with what another one would mean."""

WITHOUT_EFFECT = frozenset(
    """
    init_weights init_weights_seed inv_adapter_reduction_factor phm_dim factorized_phm_W shared_W_phm shared_phm_rule factorized_phm_rule
    phm_c_init phm_init_range learn_phm hypercomplex_nonlinearity phm_rank phm_bias reduction_factor leave_out
    """.split()
)
"""Starts, and settings of what is off; sizes and left-out blocks are read off the tensors."""

READ = frozenset(
    """
    mh_adapter cross_adapter is_parallel original_ln_before non_linearity ln_before ln_after adapter_residual_before_ln scaling dropout
    """.split()
)


def unsupported(config: Mapping[str, Any]) -> Iterator[str]:
    """What of the library's settings ftkit cannot express, setting by setting."""
    for name, value in config.items():
        if name in MUST_BE and value != MUST_BE[name][0] and not (value is None and not MUST_BE[name][0]):
            yield f"{name}: {value!r} ({MUST_BE[name][1]})"
        if name not in MUST_BE and name not in WITHOUT_EFFECT and name not in READ:
            yield f"{name}: {value!r} (not a setting of a bottleneck adapter that is known here)"
    attention, parallel, before = (bool(config.get(name)) for name in ("mh_adapter", "is_parallel", "original_ln_before"))
    if parallel and attention:
        yield "mh_adapter: True with is_parallel (parallel adapters beside attention)"
    if not parallel and attention == before:
        where = "with" if attention else "without"
        yield f"original_ln_before: {before} {where} mh_adapter (Houlsby's has False with it, Pfeiffer's True without it)"
    if config.get("cross_adapter") and not attention:
        yield "cross_adapter: True without mh_adapter"
    if config.get("ln_before") and config.get("ln_after"):
        yield "ln_after: True with ln_before (two norms)"
    if config.get("ln_after") and config.get("adapter_residual_before_ln"):
        yield "adapter_residual_before_ln: True (a norm of the sum with the residual)"
    if str(config.get("non_linearity", "")).lower() not in {*ACTIVATIONS, *OLD_ACTIVATIONS}:
        yield f"non_linearity: {config.get('non_linearity')!r} (ftkit has {', '.join(ACTIVATIONS)})"
    scaling = config.get("scaling", 1.0)
    if scaling != "learned" and not (isinstance(scaling, (int, float)) and scaling > 0):
        yield f"scaling: {scaling!r} (ftkit has a factor above zero, or `learned`)"


def options_of(config: Mapping[str, Any], *, old: bool) -> dict[str, Any]:
    """Options of the method `adapter` but for its size and blocks. old: the file has no `version`. For settings that are supported."""
    activation = str(config["non_linearity"]).lower()
    scaling = config.get("scaling", 1.0)
    return {
        "placement": "parallel" if config.get("is_parallel") else "houlsby" if config.get("mh_adapter") else "pfeiffer",
        "activation": ACTIVATIONS[OLD_ACTIVATIONS.get(activation, activation) if old else activation],
        "layer_norm": "before" if config.get("ln_before") else "after" if config.get("ln_after") else "none",
        "scaling": scaling if scaling == "learned" else float(scaling),
        "dropout": float(config.get("dropout") or 0.0),
        "cross_attention": bool(config.get("cross_adapter")),
    }


def settings_of(config: Mapping[str, Any], width: int, size: int, left_out: list[int], *, cross: bool) -> dict[str, Any]:
    """The library's settings for an adapter of ftkit. config: adapter_config.json. width, size: of its adapters."""
    placement, norm, scaling = config["placement"], config["layer_norm"], config["scaling"]
    return {
        "mh_adapter": placement == "houlsby",
        "output_adapter": True,
        "cross_adapter": cross,
        "is_parallel": placement == "parallel",
        "original_ln_before": placement == "pfeiffer",
        "original_ln_after": True,
        "residual_before_ln": True,
        "adapter_residual_before_ln": False,
        "reduction_factor": reduction_factor(width, size),
        "non_linearity": "swish" if config["activation"] == "silu" else config["activation"],
        "ln_before": norm == "before",
        "ln_after": norm == "after",
        "init_weights": INITS[config["init"]],
        "scaling": scaling if isinstance(scaling, str) else float(scaling),
        "dropout": float(config["dropout"]),
        "leave_out": left_out,
        **{
            name: value
            for name, (value, _) in MUST_BE.items()
            if name in ("use_gating", "phm_layer", "inv_adapter", "stochastic_depth")
        },
    }


def reduction_factor(width: int, size: int) -> float:
    """The factor from which the library computes this size: int(width // factor)."""
    exact = width / size
    return exact if int(width // exact) == size else width / (size + 0.5)


# --- names -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """An adapter of a model: the module that holds it in ftkit, and what it is called by the library."""

    path: str
    block: int
    hub: str
    width: int


def places_of(layout: ModelLayout, model_type: str, placement: str) -> list[Place]:
    """Every place that adapters of a placement can have in a model, cross-attention included. Raises ModelError if there is none."""
    from ftkit.models.sublayers import attention_outputs, feed_forwards

    names, starts = MODELS[model_type], dict[str, int]()
    for block in layout.blocks:
        starts.setdefault(block.stack, block.index)

    def place(path: str, index: int, sublayer: str, width: int) -> Place:
        block = layout.blocks[index]
        called = names.block.format(index=index - starts[block.stack], stack=block.stack)
        return Place(path, index, called + names.place(sublayer, block.stack), width)

    found = []
    if placement == "houlsby":
        for attention in attention_outputs(layout):
            sublayer = CROSS if attention.cross else ATTENTION
            found.append(place(attention.output, attention.block, sublayer, attention.width))
    for forward in feed_forwards(layout):
        path = forward.norm if placement == "pfeiffer" and forward.norm else forward.output
        found.append(place(path, forward.block, OUTPUT, forward.width))
    return found


def inner_names(layer_norm: str, scaling: Any) -> dict[str, list[str]]:
    """Names inside an adapter: ftkit's, and the library's (several where it stores a tensor twice)."""
    linear = 1 if layer_norm == "before" else 0
    names = {f"down.{kind}": [f"adapter_down.{linear}.{kind}"] for kind in ("weight", "bias")}
    names |= {f"up.{kind}": [f"adapter_up.{kind}"] for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        if layer_norm == "before":
            names[f"norm.{kind}"] = [f"adapter_norm_before.{kind}", f"adapter_down.0.{kind}"]
        elif layer_norm == "after":
            names[f"norm.{kind}"] = [f"adapter_norm_after.{kind}"]
    return {**names, "scale": ["scaling"]} if scaling == "learned" else names


def adapter_name(keys: Mapping[str, Any] | list[str]) -> set[str]:
    """The names of the adapters that tensors belong to."""
    return {match[1] for key in keys if (match := re.search(r"\.adapters\.([^.]+)\.", key))}


def without_prefix(key: str, known: str) -> bool:
    """Whether a key names a place: the same, or the same in a model without a head, whose names have no first part."""
    return key == known or key == known.partition(".")[2]
