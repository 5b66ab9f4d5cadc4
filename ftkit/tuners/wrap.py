"""The one way a model becomes a PEFT model in ftkit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from peft import (
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import Tensor, nn

from ftkit.errors import ModelError, Problem
from ftkit.models.trainable import SHOWN_PROBLEMS, check_fresh, hold_in_float32, shortened
from ftkit.tuners.registration import register_tuners

if TYPE_CHECKING:
    from ftkit.models.layout import ModelLayout

TASK_TYPES = {
    "ForSequenceClassification": TaskType.SEQ_CLS,
    "ForTokenClassification": TaskType.TOKEN_CLS,
    "ForCausalLM": TaskType.CAUSAL_LM,
    "LMHeadModel": TaskType.CAUSAL_LM,
    "ForConditionalGeneration": TaskType.SEQ_2_SEQ_LM,
    "MTModel": TaskType.SEQ_2_SEQ_LM,
    "EncoderDecoderModel": TaskType.SEQ_2_SEQ_LM,
}
"""PEFT's task type by the ending of the model class. PEFT has none for images, masked language models and the like.

Question answering goes without: PEFT 0.21's wrapper of that type does not hand `token_type_ids` on, so that an adapter of a BERT would
be trained without them and the merged model compute something else."""


def task_type(model: nn.Module) -> TaskType | None:
    """What PEFT calls the task of a transformers model class, None where it has no word for it."""
    name = type(model).__name__
    return next((kind for ending, kind in TASK_TYPES.items() if name.endswith(ending)), None)


def wrap(
    model: nn.Module,
    layout: ModelLayout,
    config: PeftConfig,
    declares: Callable[[str, ModelLayout], bool],
    *,
    constants: str = "",
    whole: Sequence[str] = (),
    **arguments: Any,
) -> PeftModel:
    """The model inside a PeftModel that trains exactly what `declares` says, head included, in float32.

    Sets the config's task type, its `modules_to_save` (PEFT by itself knows only heads of the usual names) and the name of
    the base, which is never a path of this machine. constants: part of the names of parameters that the tuner never trains, though
    PEFT may mark them so. whole: paths of modules that train as a whole beside the head. arguments: passed on to `get_peft_model`.
    Raises ModelError if another set of parameters would train, or if a newly initialized one would be left as it is.
    """
    register_tuners()
    config.task_type = task_type(model)
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = [*adapted_heads(layout), *whole] or None
    wrapped = get_peft_model(model, config, **arguments)
    for name, parameter in wrapped.named_parameters():
        if constants and constants in name:
            parameter.requires_grad_(False)
    config.base_model_name_or_path = portable_name(getattr(model, "name_or_path", ""))
    hold_in_float32(wrapped, layout)
    _check(wrapped, config, layout, declares, whole)
    return wrapped


def load_adapter(model: nn.Module, layout: ModelLayout, folder: Path) -> PeftModel:
    """The model with a saved adapter (`adapter_config.json`, `adapter_model.safetensors`), frozen, its weights as they were saved.

    Stricter than PEFT, which only warns. Raises ModelError if the folder is no adapter or its keys are not those of this model.
    """
    register_tuners()
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        raise ModelError(f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}", hint="Give the folder of an exported adapter")
    try:
        wrapped, saved = _wrapped(model, folder), load_file(file)
    except MemoryError:
        raise
    # A config with values of wrong types fails wherever PEFT first computes with them.
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        problem = Problem(message=f"is no adapter for this model ({type(error).__name__}: {reason})", place=str(folder))
        raise ModelError(problem) from error
    expected = adapter_state(wrapped)
    problems = [f"{name} is missing" for name in sorted(expected.keys() - saved.keys())]
    problems += [f"{name} belongs to nothing in this model" for name in sorted(saved.keys() - expected.keys())]
    problems += [
        f"{name} is of the shape {list(value.shape)}, expected {list(expected[name].shape)}"
        for name, value in saved.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if problems:
        raise ModelError([Problem(message=text, place=str(file)) for text in problems[:SHOWN_PROBLEMS]])
    # Before the values arrive: in modules of a half-precision base's type they would be rounded.
    hold_in_float32(wrapped, layout)
    set_peft_model_state_dict(wrapped, saved)
    return wrapped.requires_grad_(False).eval()


def _wrapped(model: nn.Module, folder: Path) -> PeftModel:
    """The model with a new adapter of the settings that a folder states."""
    config = PeftConfig.from_pretrained(str(folder))
    base_name, config.base_model_name_or_path = config.base_model_name_or_path, None
    config.inference_mode = config.is_prompt_learning
    with warnings.catch_warnings():
        # AdaLoRA's rank pattern names parameters; PEFT checks it as if it named modules, and applies it later all the same.
        warnings.filterwarnings("ignore", "The following rank_pattern keys did not match", RuntimeWarning)
        wrapped: PeftModel = get_peft_model(model, config)
    config.base_model_name_or_path, config.inference_mode = base_name, True
    return wrapped


def adapter_state(wrapped: PeftModel) -> dict[str, Tensor]:
    """The tensors of the active adapter by the names in its file."""
    with lora_biases_allowed():
        found: dict[str, Tensor] = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    return found


@contextmanager
def lora_biases_allowed() -> Iterator[None]:
    """While this lasts, PEFT 0.21 does not take the biases of `lora_bias` for parts of matrices that DeepSpeed has divided."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Adapter '.*': \d+ LoRA tensor\(s\) have invalid shape: \S*\.lora_B\.bias:")
        yield


def merge(wrapped: PeftModel) -> nn.Module:
    """The plain model with the active adapter folded into its weights. Changes and uses up `wrapped`.

    Raises NotImplementedError or AttributeError where the method has no such form, ValueError for weights that are not finite.
    """
    # Most PEFT tuners can unload only heads that are a single layer, so the trained heads are put in place first.
    for path, module in list(wrapped.base_model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent = wrapped.base_model.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], module.modules_to_save[module.active_adapters[0]])
    return wrapped.merge_and_unload(safe_merge=True)


def adapted_heads(layout: ModelLayout) -> list[str]:
    """Head modules that train beside an adapter: all of a task head, but of a language model's head only what is new.

    A pretrained output layer is as large as the vocabulary, and no adapter method's paper trains it.
    """
    output = getattr(layout.model, "get_output_embeddings", lambda: None)()
    if output is None:
        return layout.head_modules()
    return [head for head in layout.head_modules() if any(name.startswith(f"{head}.") for name in layout.fresh)]


def head_parameter_count(layout: ModelLayout) -> int:
    """Number of parameters of `adapted_heads`."""
    sizes = {layout.canonical(name): parameter.numel() for name, parameter in layout.model.named_parameters()}
    return sum(sizes[name] for name in adapted_head_parameters(layout))


def adapted_head_parameters(layout: ModelLayout) -> list[str]:
    """Names (in the plain model) of the parameters of `adapted_heads`."""
    heads = tuple(f"{head}." for head in adapted_heads(layout))
    return [name for name in layout.head_parameters() if name.startswith(heads)]


def portable_name(name: str) -> str | None:
    """A model's name as it may stand in a file that travels: of an absolute path only the last part."""
    return (PurePath(name).name if PurePath(name).is_absolute() else name) or None


def _check(
    wrapped: nn.Module,
    config: PeftConfig,
    layout: ModelLayout,
    declares: Callable[[str, ModelLayout], bool],
    whole: Sequence[str],
) -> None:
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    declared = {name for name, _ in wrapped.named_parameters() if declares(name, layout)}
    if trained != declared:
        raise ModelError(f"the method declares other parameters than those that train: {shortened(trained ^ declared)}")
    copies = {layout.canonical(name) for name in trained if ".modules_to_save." in name}
    inside = tuple(f"{path}." for path in whole)
    wanted = {
        *adapted_head_parameters(layout),
        *(name for name in map(layout.canonical, dict(wrapped.named_parameters())) if name.startswith(inside)),
    }
    if hasattr(config, "modules_to_save") and copies != wanted:
        raise ModelError(f"PEFT would not train the head of this model as a whole: {shortened(copies ^ wanted)}")
    check_fresh(layout, {layout.canonical(name) for name in trained})
