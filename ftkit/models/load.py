"""Loads a pretrained model with the head that a task needs, and says what the checkpoint did not provide."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.errors import ModelError, Problem
from ftkit.models.facts import ModelFacts, decoder_spec, encoder_spec, read_facts
from ftkit.models.folder import locate
from ftkit.models.naming import unusual_backbone
from ftkit.models.processor import align_padding, load_processor, processor_key
from ftkit.models.quiet import quiet_libraries
from ftkit.recipe.schema import ModelSpec

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.layout import ModelLayout
    from ftkit.tasks.base import Head

__all__ = ["LoadedModel", "align_padding", "load_model", "load_processor", "processor_key", "trainable_report"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHOWN = 5
PAIR_CLASS = "AutoModelForSeq2SeqLM"


@dataclass
class LoadedModel:
    """A model with its head, in evaluation mode.

    fresh: names of the parameters that the checkpoint did not provide.
    """

    model: nn.Module
    layout: ModelLayout
    facts: ModelFacts
    fresh: frozenset[str]


def load_model(spec: ModelSpec, head: Head, *, seed: int, base: Path | None = None, allow_remote_code: bool = False) -> LoadedModel:
    """The model that a recipe names, with the head of a task; fresh weights are a function of `seed` alone.

    base: folder that relative paths are tried against after the working folder.
    allow_remote_code: the user said --trust-remote-code; the recipe must say so too.
    A head of another shape than the checkpoint's is initialized anew. Raises ModelError if the model cannot be loaded, has
    no such head, or lacks weights of its own body.
    """
    check_remote_code_request(spec, base, allow_remote_code)
    facts = read_facts(spec, base)
    quiet_libraries()
    import torch

    from ftkit.models import quantization
    from ftkit.models.encoder_decoder import finish_pair
    from ftkit.models.layout import ModelLayout

    source, arguments = _arguments(spec, base)
    config = _build_config(spec, source, arguments, head.config) if spec.decoder is None else _pair_config(spec, facts, head, base)
    torch.manual_seed(seed)
    if spec.weights == "random":
        model, info = _from_config(spec, head, arguments, config), dict[str, Any](missing_keys=[], mismatched_keys=[])
    elif spec.decoder is not None:
        model, info = _pair_from_pretrained(spec, base, config)
    else:
        arguments |= _quantizing(spec, arguments, head, config)
        model, info = _from_pretrained(spec, head.auto_class, source, arguments, config)
        # A class that calls the backbone by another name finds none of its weights.
        if _lacks_backbone(model, info["missing_keys"]):
            info = _fill_backbone(model, info, *_from_pretrained(spec, "AutoModel", source, arguments, config))
    if config.model_type == "encoder-decoder":
        finish_pair(model)
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    layout = ModelLayout(model, {*info["missing_keys"], *mismatched}, assembled=spec.decoder is not None)
    _check_complete(spec, layout, mismatched, head)
    _start_bias(layout, head.bias, everywhere=spec.weights == "random")
    if spec.quantization is not None and not getattr(model, quantization.FLAGS[spec.quantization.bits], False):
        quantization.quantize(layout, spec.quantization)
    quantization.keep_trainable(model)
    return LoadedModel(model=model, layout=layout, facts=facts, fresh=layout.fresh)


def _start_bias(layout: ModelLayout, values: tuple[float, ...], *, everywhere: bool) -> None:
    """Gives the outputs of a new head the bias that the task asks for. everywhere: whether all weights are new."""
    import torch

    parameters = dict(layout.model.named_parameters())
    new = [name for name in layout.head_parameters() if name.endswith("bias") and (everywhere or name in layout.fresh)]
    outputs = [parameters[name] for name in new if parameters[name].shape == (len(values),)]
    if outputs:
        with torch.no_grad():
            outputs[-1].copy_(torch.tensor(values))


def _quantizing(spec: ModelSpec, arguments: dict[str, Any], head: Head, config: Any) -> dict[str, Any]:
    """Arguments that quantize a checkpoint while it is read; none where it has to be whole in memory first (GGUF)."""
    import torch

    from ftkit.models import quantization
    from ftkit.models.layout import ModelLayout

    if spec.quantization is None or "gguf_file" in arguments:
        return {}
    with torch.device("meta"):
        sketch = _from_config(spec, head, arguments, config)
    layout = ModelLayout(sketch)
    quantization.check_widths(layout, spec.quantization)
    return quantization.loading_arguments(spec.quantization, quantization.unquantized_linears(layout))


def check_remote_code_request(spec: ModelSpec, base: Path | None, allowed: bool) -> None:
    """Raises ModelError if the recipe trusts remote code but the command line does not, or the code is not pinned."""
    if not spec.trust_remote_code:
        return
    key = "model.trust_remote_code"
    if not allowed:
        message = "the recipe asks to run code that ships with the model, the command line does not allow it"
        raise ModelError(Problem(message=message, key=key, hint="Read that code, then pass --trust-remote-code"))
    if locate(spec.name, base) is None and not _COMMIT.fullmatch(spec.revision or ""):
        message = f"code from a hub id runs only at a pinned commit; the revision is {spec.revision!r}"
        raise ModelError(Problem(message=message, key="model.revision", hint="Set `revision` to a commit hash of 40 characters"))


def _arguments(spec: ModelSpec, base: Path | None) -> tuple[str | Path, dict[str, Any]]:
    """What to hand to from_pretrained of configs and models: a folder or hub id, and its arguments."""
    path = locate(spec.name, base)
    arguments: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if path is None:
        return spec.name, {**arguments, "revision": spec.revision or "main"}
    arguments["local_files_only"] = True
    return (path.parent, {**arguments, "gguf_file": path.name}) if path.is_file() else (path, arguments)


def _build_config(spec: ModelSpec, source: str | Path, arguments: dict[str, Any], entries: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, **arguments)
    except MemoryError:
        raise
    # A config.json with values of wrong types fails wherever transformers first computes with them.
    except Exception as error:
        raise _unloadable(spec.name, error) from error
    # num_labels first: setting it makes up new label names, which those of the task then replace.
    for name in sorted(entries, key=lambda entry: entry != "num_labels"):
        setattr(config, name, entries[name])
    return config


def _pair_config(spec: ModelSpec, facts: ModelFacts, head: Head, base: Path | None) -> Any:
    from ftkit.models.encoder_decoder import pair_config

    if head.auto_class != PAIR_CLASS:
        message = f"with `decoder` the model is a sequence-to-sequence model; this task needs an {head.auto_class}"
        raise ModelError(Problem(message=message, key="model.decoder", hint="Leave it out, or choose the task seq2seq"))
    parts = (encoder_spec(spec), decoder_spec(spec))
    encoder, decoder = (_build_config(part, *_arguments(part, base), {}) for part in parts)
    config = pair_config(encoder, decoder, load_processor(spec, facts, base))
    for name, value in head.config.items():
        setattr(config, name, value)
    return config


def _pair_from_pretrained(spec: ModelSpec, base: Path | None, config: Any) -> tuple[Any, dict[str, Any]]:
    from ftkit.models.encoder_decoder import load_pair

    def load_encoder(auto_class: str, own_config: Any) -> Any:
        part = encoder_spec(spec)
        return _from_pretrained(part, auto_class, *_arguments(part, base), own_config)

    def load_decoder(auto_class: str, own_config: Any) -> Any:
        part = decoder_spec(spec)
        try:
            return _from_pretrained(part, auto_class, *_arguments(part, base), own_config)
        except ModelError as error:
            raise ModelError([replace(problem, key="model.decoder") for problem in error.problems]) from error

    try:
        return load_pair(config, load_encoder, load_decoder)
    except ValueError as error:  # transformers tells decoders without cross-attention only when it puts the two together.
        problem = _unloadable(str(spec.decoder), error).problems[0]
        raise ModelError(
            replace(problem, key="model.decoder", hint="Choose a decoder with cross-attention, such as BERT")
        ) from error


def _from_pretrained(
    spec: ModelSpec, auto_name: str, source: str | Path, arguments: dict[str, Any], config: Any
) -> tuple[Any, dict[str, Any]]:
    import transformers

    options = dict(arguments)
    if "gguf_file" in options:
        # Without this the model stays marked as quantized and can be neither saved nor merged.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = True
    if spec.attention != "auto":
        options["attn_implementation"] = spec.attention
    auto_class = getattr(transformers, auto_name)
    try:
        model, info = auto_class.from_pretrained(
            source, config=config, dtype=_dtype(spec), output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except MemoryError:
        raise
    except Exception as error:
        raise _unsuitable(spec, auto_name, config, error) from error
    if getattr(model, "_hf_peft_config_loaded", False):
        message = f"{spec.name!r} brought an adapter along, which transformers put into the model unasked"
        raise ModelError(Problem(message=message, key="model.name", hint="Name the model that the adapter belongs to"))
    return model, info


def _lacks_backbone(model: nn.Module, missing: Iterable[str]) -> bool:
    """Whether transformers looked for all weights of the backbone under another name than checkpoints use."""
    name = unusual_backbone(model)
    wanted = {f"{name}.{inner}" for inner, _ in model.get_submodule(name).named_parameters()} if name else set()
    return bool(wanted) and wanted.issubset(missing)


def _fill_backbone(model: nn.Module, info: dict[str, Any], backbone: nn.Module, backbone_info: dict[str, Any]) -> dict[str, Any]:
    """Puts the backbone, loaded by itself, into the model; returns the loading info of the whole.

    Not by `key_mapping`: transformers undoes that in `save_pretrained`, and the export could not be loaded.
    """
    name = unusual_backbone(model)
    setattr(model, name, backbone)
    missing = {key for key in info["missing_keys"] if not key.startswith(f"{name}.")}
    return {
        "missing_keys": missing | {f"{name}.{key}" for key in backbone_info["missing_keys"]},
        "mismatched_keys": [(f"{name}.{entry[0]}", *entry[1:]) for entry in backbone_info["mismatched_keys"]],
    }


def _from_config(spec: ModelSpec, head: Head, arguments: dict[str, Any], config: Any) -> Any:
    import transformers

    if "gguf_file" in arguments:
        message = f"{spec.name!r} is a file of weights; `weights: random` needs a folder with config.json"
        raise ModelError(Problem(message=message, key="model.weights", hint="Name a folder, or leave out `weights`"))
    options: dict[str, Any] = {"attn_implementation": spec.attention} if spec.attention != "auto" else {}
    auto_class = getattr(transformers, head.auto_class)
    try:
        model = auto_class.from_config(config, dtype=_dtype(spec), trust_remote_code=spec.trust_remote_code, **options)
    except MemoryError:
        raise
    except Exception as error:
        raise _unsuitable(spec, head.auto_class, config, error) from error
    return model.eval()


def _dtype(spec: ModelSpec) -> Any:
    import torch

    return torch.float32 if spec.dtype == "auto" else getattr(torch, spec.dtype)


def _unsuitable(spec: ModelSpec, auto_class: str, config: Any, error: Exception) -> ModelError:
    if "Unrecognized configuration class" in str(error):
        message = f"transformers has no {auto_class} for the architecture {config.model_type!r}"
        return ModelError(Problem(message=message, key="task", hint="Choose another model or another task"))
    return _unloadable(spec.name, error)


def _unloadable(name: str, error: Exception) -> ModelError:
    reason = str(error).strip().split("\n")[0][:300]
    hint = "Install gguf: pip install gguf" if isinstance(error, ImportError) and "gguf" in str(error).lower() else ""
    return ModelError(Problem(message=f"{name!r} cannot be loaded ({type(error).__name__}: {reason})", key="model.name", hint=hint))


def _check_complete(spec: ModelSpec, layout: ModelLayout, mismatched: set[str], head: Head) -> None:
    """Fresh parameters belong in the head (with a pooler); anywhere else the model would compute noise."""
    new = set() if head.pretrained and not layout.assembled else set(layout.head_parameters())
    lacking = [name for name in layout.model.state_dict() if layout.canonical(name) in layout.fresh - new]
    if not lacking:
        return
    if misfits := [name for name in lacking if name in mismatched]:
        message = f"{len(misfits)} weights have other shapes than config.json says: {_listed(misfits)}"
    else:
        message = f"the checkpoint lacks {len(lacking)} weights that a {layout.architecture} needs: {_listed(lacking)}"
    hint = f"The checkpoint is damaged or of another architecture than {layout.architecture}"
    raise ModelError(Problem(message=message, place=spec.name, key="model.name", hint=hint))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def trainable_report(model: nn.Module, layout: ModelLayout) -> dict[str, Any]:
    """Numbers of parameters: {trainable, total, groups: {embeddings, blocks, head, adapter: {trainable, total}}}.

    model: the layout's plain model or a PeftModel around it. `adapter` is what the plain model does not have. A part that
    PEFT trains as a copy (`modules_to_save`) is counted once, as the copy.
    """
    from ftkit.models.quantization import weight_count

    groups = {group: {"trainable": 0, "total": 0} for group in ("embeddings", "blocks", "head", "adapter")}
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue
        group = groups[_group(name, layout)]
        group["total"] += weight_count(parameter)
        group["trainable"] += parameter.numel() if parameter.requires_grad else 0
    sums = {count: sum(group[count] for group in groups.values()) for count in ("trainable", "total")}
    return {**sums, "groups": groups}


def _group(name: str, layout: ModelLayout) -> str:
    if not layout.is_parameter(layout.canonical(name)):
        return "adapter"
    depth = layout.depth(name)
    return "embeddings" if depth == 0 else "blocks" if depth <= len(layout.blocks) else "head"
