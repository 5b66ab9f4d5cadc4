"""`ftkit adapters convert`: bottleneck adapters from AdapterHub's library to ftkit and back.

No value is changed, only names and settings; see `ftkit.adapters.adapterhub`. Heads are not converted: the library's are other networks
than those of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ftkit.adapters import adapterhub as hub
from ftkit.adapters.portable import Portable, of_folder, of_predictor
from ftkit.adapters.sources import CONFIG, RUN, Trained, read_trained, refuse_output
from ftkit.adapters.sources import WEIGHTS as OWN_WEIGHTS
from ftkit.data.aside import written_whole
from ftkit.errors import ModelError, Problem, RecipeError, RunFolderError
from ftkit.files import read_json, write_json
from ftkit.models.facts import ModelFacts, read_facts
from ftkit.recipe.schema import ModelSpec
from ftkit.registry import METHODS
from ftkit.run.folder import readable
from ftkit.tasks.base import Head

if TYPE_CHECKING:
    from torch import Tensor

    from ftkit.models.layout import ModelLayout

OWN, HUB = "ftkit", "adapterhub"
METHOD, PEFT_TYPE = "adapter", "ADAPTER"
CONTAINER = ".bottleneck_parts.adapter."
WRAPPED = "base_model.model."
HEADED = {
    "encoder": "AutoModelForSequenceClassification",
    "decoder": "AutoModelForCausalLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    "vision": "AutoModelForImageClassification",
}
"""The class whose module names an adapter gets, by the kind of the base."""


def convert(source: Path, to: str, output: Path, *, base: str | None, name: str, allow_code: bool) -> dict[str, Any]:
    """See `ftkit.convert_adapter`."""
    if to not in (OWN, HUB):
        raise RecipeError(Problem(message=f"unknown format {to!r}", place="--to", hint=f"Known: {OWN}, {HUB}"))
    refuse_output(output, [source])
    if name and to == OWN:
        raise RecipeError(Problem(message="ftkit gives adapters no names", place="--name", hint="Leave it out"))
    if to == OWN:
        return _to_own(source, output, base, allow_code)
    return _to_hub(source, output, base, name or source.absolute().name, allow_code)


# --- from AdapterHub ---------------------------------------------------------------------------------------------------


def _to_own(source: Path, output: Path, base: str | None, allow_code: bool) -> dict[str, Any]:
    described, tensors = _read_hub(source)
    config = described["config"]
    if wrong := list(hub.unsupported(config)):
        problems = [Problem(message=f"ftkit cannot express {text}", place=str(source / CONFIG)) for text in wrong]
        raise RecipeError(problems)
    options = hub.options_of(config, old="version" not in described)
    facts, layout = _base(base or str(described.get("model_name") or ""), described.get("model_type"), allow_code)
    found = _own_names(tensors, hub.places_of(layout, facts.model_type, options["placement"]), options, source)
    options |= _size_and_blocks(found, layout, source)
    _save_own(layout, options, {f"{WRAPPED}{name}": tensor for name, tensor in found.items()}, source, output, base, described)
    heads = [name for name in ("head_config.json",) if (source / name).is_file()]
    settings = {key: value for key, value in options.items() if value is not None}
    return _report(output, OWN, str(described.get("name") or ""), settings, len(found), heads)


def _read_hub(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not (source / CONFIG).is_file():
        hint = "Give the folder that the library's `save_adapter` wrote"
        raise RunFolderError(Problem(message=f"is no adapter folder (it has no {CONFIG})", place=str(source), hint=hint))
    with readable(source / CONFIG):
        described = dict(read_json(source / CONFIG))
    if "peft_type" in described or not isinstance(described.get("config"), Mapping):
        hint = f"An adapter of ftkit is converted with --to {HUB}" if "peft_type" in described else "Save it again with the library"
        message = "is no adapter of AdapterHub (`config` holds no settings)"
        raise RecipeError(Problem(message=message, place=str(source / CONFIG), hint=hint))
    return described, _read_tensors(source)


def _read_tensors(source: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = source / hub.WEIGHTS
    if not file.is_file() and (source / hub.PICKLED).is_file():
        message = f"{hub.PICKLED} is a pickle, which runs code when it is read; ftkit reads {hub.WEIGHTS} only"
        hint = "Load it once with the library and save it again: model.save_adapter(folder, name, use_safetensors=True)"
        raise RunFolderError(Problem(message=message, place=str(source), hint=hint))
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(Problem(message=f"cannot be read: {error}", place=str(file))) from error


def _own_names(
    tensors: Mapping[str, Tensor], places: list[hub.Place], options: Mapping[str, Any], source: Path
) -> dict[str, Tensor]:
    """The tensors by ftkit's names. Raises ModelError for names that have no place in the base, and for adapters that are not whole."""
    names = hub.adapter_name(list(tensors))
    if len(names) != 1:
        raise ModelError(Problem(message=f"holds {len(names)} adapters, expected one", place=str(source / hub.WEIGHTS)))
    mark, inner = f".adapters.{names.pop()}.", hub.inner_names(options["layer_norm"], options["scaling"])
    theirs = {called: own for own, several in inner.items() for called in several}
    found: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        holder, _, rest = key.partition(mark)
        place = next((place for place in places if hub.without_prefix(holder, place.hub)), None)
        if place is None or rest not in theirs:
            unknown.append(key)
        else:
            found[f"{place.path}{CONTAINER}{theirs[rest]}"] = tensor
    used = {name.partition(CONTAINER)[0] for name in found}
    missing = [f"{path}{CONTAINER}{own}" for path in used for own in inner if f"{path}{CONTAINER}{own}" not in found]
    problems = [f"{key} has no place in this base under these settings" for key in unknown] + [
        f"{name} is missing" for name in missing
    ]
    if problems:
        raise ModelError([Problem(message=text, place=str(source / hub.WEIGHTS)) for text in problems[:20]])
    return found


def _size_and_blocks(found: Mapping[str, Tensor], layout: ModelLayout, source: Path) -> dict[str, Any]:
    sizes = {int(tensor.shape[0]) for name, tensor in found.items() if name.endswith(f"{CONTAINER}down.weight")}
    if len(sizes) != 1:
        message = f"reduction_factor: its adapters have the sizes {sorted(sizes)}; ftkit has one size for all"
        raise RecipeError(Problem(message=message, place=str(source / CONFIG)))
    blocks = sorted({layout.depth(name.partition(CONTAINER)[0]) - 1 for name in found})
    return {"bottleneck": sizes.pop(), "blocks": None if len(blocks) == len(layout.blocks) else blocks}


def _save_own(
    layout: ModelLayout,
    options: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    source: Path,
    output: Path,
    base: str | None,
    described: Any,
) -> None:
    """Writes the folder. The method itself makes its config, and says which names it expects."""
    from safetensors.torch import save_file

    method_class = METHODS.get(METHOD)
    method = method_class(method_class.Options(**options))
    wrapped: Any = method.apply(layout.model, layout)
    _refuse_misfit(wrapped, tensors, source)
    with TemporaryDirectory(prefix="ftkit-convert-") as folder:
        method.save_adapter(wrapped, Path(folder))
        config = read_json(Path(folder) / CONFIG)
    called = str(base or described.get("model_name") or "")
    with written_whole(output.absolute(), "--output") as folder:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / OWN_WEIGHTS, metadata={"format": "pt"})
        write_json(folder / CONFIG, {**config, "modules_to_save": None, "task_type": None, "base_model_name_or_path": called})


def _refuse_misfit(wrapped: Any, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raises ModelError if these are not exactly the adapter's weights that a model has room for."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    expected = {name: tensor for name, tensor in state.items() if CONTAINER in name}
    wrong = sorted(expected.keys() ^ tensors.keys())
    wrong = wrong or sorted(name for name in expected if expected[name].shape != tensors[name].shape)
    if wrong:
        message = f"the adapter does not fit this base or its own settings; the first of {len(wrong)} names: {wrong[0]}"
        raise ModelError(Problem(message=message, place=str(source), hint="Give its own --base, or export it again"))


# --- to AdapterHub -----------------------------------------------------------------------------------------------------


def _to_hub(source: Path, output: Path, base: str | None, name: str, allow_code: bool) -> dict[str, Any]:
    if not re.fullmatch(r"[\w-]+", name):
        hint = "Give letters, digits, _ and -"
        raise RecipeError(Problem(message=f"{name!r} cannot be part of a tensor's name", place="--name", hint=hint))
    found = read_trained(source)
    _refuse_for_hub(found)
    adapter, facts, layout = _loaded(found, base, allow_code)
    if adapter.config.get("norm_modules"):
        message = "AdapterHub cannot express trained norms of the model (`norms: true`)"
        raise RecipeError(Problem(message=message, place=str(source), hint="Train it with `norms: false`"))
    config = adapter.config
    places = {place.path: place for place in hub.places_of(layout, facts.model_type, config["placement"])}
    inner = hub.inner_names(config["layer_norm"], config["scaling"])
    tensors: dict[str, Tensor] = {}
    used: dict[str, hub.Place] = {}
    heads = {name.removeprefix(WRAPPED).rpartition(".")[0] for name in adapter.heads}
    for key, tensor in _without_heads(adapter).items():
        path, _, own = key.removeprefix(WRAPPED).partition(CONTAINER)
        if path not in places or own not in inner:
            message = f"{key} has no place in {facts.model_type} of AdapterHub"
            raise ModelError(Problem(message=message, place=str(source), hint="Give the base of the adapter with --base"))
        used[path] = places[path]
        for called in inner[own]:
            tensors[f"{places[path].hub}.adapters.{name}.{called}"] = tensor.clone().contiguous()
    settings = _hub_settings(config, used, layout, adapter)
    _save_hub(output, name, settings, tensors, facts, found.base, layout)
    return _report(output, HUB, name, settings, len(tensors), sorted(heads))


def _refuse_for_hub(found: Trained) -> None:
    if found.method != METHOD:
        message = f"{found.method} is no bottleneck adapter that AdapterHub has in this form"
        raise RecipeError(
            Problem(message=message, place=str(found.path), hint="Only runs and adapters of the method `adapter` convert")
        )


def _loaded(found: Trained, base: str | None, allow_code: bool) -> tuple[Portable, ModelFacts, ModelLayout]:
    if found.kind == RUN and base is None:
        from ftkit.run.predictor import load_predictor

        predictor = load_predictor(found.path, allow_code=allow_code)
        _refuse_unknown_type(predictor.plan.facts)
        return of_predictor(predictor), predictor.plan.facts, predictor.prepared.layout
    adapter = of_folder(found)
    if adapter is None:
        hint = "Leave out --base: a run knows its own"
        raise RecipeError(Problem(message="the run has exported no adapter", place=str(found.path), hint=hint))
    facts, layout = _base(base or found.base, None, allow_code)
    folder = found.path / "export" / "adapter" if found.kind == RUN else found.path
    _refuse_misfit(_room_for(adapter, layout, folder), _without_heads(adapter), found.path)
    return adapter, facts, layout


def _without_heads(adapter: Portable) -> dict[str, Tensor]:
    heads = set(adapter.heads)
    return {name: tensor for name, tensor in adapter.tensors.items() if name not in heads}


def _room_for(adapter: Portable, layout: ModelLayout, folder: Path) -> Any:
    """The base with an untrained adapter as this one's config describes it. Raises ModelError for a config that describes none."""
    from dataclasses import replace

    from peft import get_peft_model

    from ftkit.tuners.fusion_members import member_config
    from ftkit.tuners.registration import register_tuners

    register_tuners()
    config = replace(member_config(adapter.config, folder / CONFIG), modules_to_save=None, task_type=None, inference_mode=False)
    try:
        return get_peft_model(layout.model, config)
    except ValueError as error:
        message = f"does not fit this base: {error}"
        raise ModelError(Problem(message=message, place=str(folder), hint="Give its own --base")) from error


def _hub_settings(
    config: Mapping[str, Any], used: Mapping[str, hub.Place], layout: ModelLayout, adapter: Portable
) -> dict[str, Any]:
    blocks = {place.block for place in used.values()}
    left_out = [block.index for block in layout.blocks if block.index not in blocks]
    first = next(iter(used.values()))
    size = int(adapter.tensors[f"{WRAPPED}{first.path}{CONTAINER}down.weight"].shape[0])
    cross = any(place.hub.endswith(".cross_attention_adapters") for place in used.values()) or _has_cross(used, layout)
    return hub.settings_of(config, first.width, size, left_out, cross=cross)


def _has_cross(used: Mapping[str, hub.Place], layout: ModelLayout) -> bool:
    from ftkit.models.sublayers import attention_outputs

    return any(attention.cross and attention.output in used for attention in attention_outputs(layout))


def _save_hub(
    output: Path,
    name: str,
    settings: dict[str, Any],
    tensors: Mapping[str, Tensor],
    facts: ModelFacts,
    base: str,
    layout: ModelLayout,
) -> None:
    from safetensors.torch import save_file

    described = {
        "config": settings,
        "hidden_size": facts.hidden_size,
        "model_class": layout.architecture,
        "model_name": base,
        "model_type": facts.model_type,
        "name": name,
        "version": hub.VERSION,
    }
    with written_whole(output.absolute(), "--output") as folder:
        save_file(dict(tensors), folder / hub.WEIGHTS)
        write_json(folder / CONFIG, described)


# --- both --------------------------------------------------------------------------------------------------------------


def _base(name: str, model_type: Any, allow_code: bool) -> tuple[ModelFacts, ModelLayout]:
    """The base with the usual head of its kind. model_type: what the adapter was made for, where that is known."""
    if not name:
        raise RecipeError(Problem(message="the adapter does not name its base", place="--base", hint="Give the model folder"))
    spec = ModelSpec(name=name)
    facts = read_facts(spec)
    if facts.path is None:
        hint = "Give the folder of the base model with --base"
        raise ModelError(Problem(message=f"{name!r} is not on this machine", place="--base", hint=hint))
    if model_type and model_type != facts.model_type:
        message = f"the adapter was made for {model_type}, this model is {facts.model_type}"
        raise ModelError(Problem(message=message, place="--base", hint="Give the model that it was trained on"))
    _refuse_unknown_type(facts)
    from ftkit.models.load import load_model

    head = Head(auto_class=HEADED[facts.kind], peft_task_type=None)
    return facts, load_model(spec, head, seed=0, allow_remote_code=allow_code).layout


def _refuse_unknown_type(facts: ModelFacts) -> None:
    if facts.model_type not in hub.MODELS:
        message = f"where AdapterHub's library puts adapters in {facts.model_type} is not known here"
        raise RecipeError(Problem(message=message, hint=f"Known: {', '.join(hub.MODELS)}"))


def _report(output: Path, to: str, name: str, settings: Mapping[str, Any], count: int, left_out: list[str]) -> dict[str, Any]:
    return {
        "path": str(output.absolute()),
        "to": to,
        "name": name,
        "settings": dict(settings),
        "tensors": count,
        "left_out": left_out,
    }
