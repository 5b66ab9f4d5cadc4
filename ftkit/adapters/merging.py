"""`ftkit adapters merge`: several adapters of one base become one.

PEFT computes it (`add_weighted_adapter`). With updates U_k = s_k B_k A_k and weights w_k:
    cat                U = sum_k w_k U_k, exactly: A and B side by side; the rank is the sum of the ranks
    svd                the same sum, cut to a rank by its singular values
    linear             A = sum sqrt(w_k s_k) A_k, B likewise: cheap, with cross terms B_i A_j that no adapter learned
    ties, dare_linear, dare_ties, magnitude_prune       on A and B; with `_svd` behind on the updates themselves
Sources: task arithmetic, Ilharco et al. 2023, https://arxiv.org/abs/2212.04089; TIES, Yadav et al. 2023, https://arxiv.org/abs/2306.01708;
DARE, Yu et al. 2024, https://arxiv.org/abs/2311.03099.

Heads are no updates of anything. They are averaged by weight (h = sum w_k h_k / sum w_k), or one is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.adapters.portable import Portable, of_predictor
from ftkit.adapters.sources import Trained, plain_name, read_trained_run, refuse_other_bases, refuse_output
from ftkit.errors import ModelError, Problem, RecipeError
from ftkit.methods.base import Combination, Method
from ftkit.recipe.schema import Component
from ftkit.registry import METHODS
from ftkit.run.observer import Observer

if TYPE_CHECKING:
    from torch import Tensor

    from ftkit.run.predictor import Predictor

PRUNED = ("ties", "dare", "magnitude_prune")
AVERAGE = "average"
RESULT, MEMBER = "merged", "member_"


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
    """What to merge, and how.

    weights: () for equal ones that sum to 1. combination: '' for the method's first. head: `average`, or which run's head to take: its
    number from 1, or its folder as it was given. evaluate: splits to measure (None: validation and test; `none`: nothing).
    """

    runs: Sequence[Path]
    output: Path
    weights: Sequence[float] = ()
    combination: str = ""
    rank: int | None = None
    density: float | None = None
    head: str = AVERAGE
    evaluate: Sequence[str] | None = None
    allow_code: bool = False


def merge_adapters(request: MergeRequest, observer: Observer) -> dict[str, Any]:
    """Writes the run folder of the merged adapter and returns its results, with `derived.before` of each member.

    Raises RecipeError, ModelError or RunFolderError for what cannot be merged, before anything is loaded where that can be told.
    """
    members = [read_trained_run(path, "without it labels and data are not known") for path in request.runs]
    how = check_request(request, members)
    from ftkit.run.derived import Origin, chosen_tables, derived_plan, measured, write_derived
    from ftkit.run.predictor import load_predictor

    first = load_predictor(members[0].path, allow_code=request.allow_code)
    tables = chosen_tables(first.plan, request.evaluate, observer)
    adapters, before = [], {}
    for member in members:
        observer.stage(f"loading {member.path.name}")
        predictor = first if member is members[0] else load_predictor(member.path, allow_code=request.allow_code)
        adapters.append(of_predictor(predictor))
        before[str(member.path)] = measured(predictor, tables, observer, member.path.name)
    observer.stage("merging")
    tensors, options = _merged(first, [member.method_of_run() for member in members], adapters, how)
    tensors |= _head(adapters, how, _head_index(request))
    plan = derived_plan(first.plan, Component(name=members[0].method, options=options))
    facts = {"combination": how.name, "weights": list(how.weights), "density": how.density, "head": request.head}
    origin = Origin("merge", [member.path for member in members], facts, before)
    return write_derived(first, filled(first, plan, tensors), origin, request.output, tables, observer)


# --- checks ------------------------------------------------------------------------------------------------------------


def check_request(request: MergeRequest, members: Sequence[Trained]) -> Combination:
    """How to combine. Raises RecipeError or ModelError for what does not fit together, without torch."""
    if len(members) < 2:
        raise RecipeError(Problem(message="a merge needs two runs or more", place="command line", hint="Name another run"))
    methods = [member.method_of_run() for member in members]
    _refuse_mixture(members, methods)
    how = _combination(request, methods[0], len(members))
    if reason := methods[0].combination_refusal(methods[1:], how):
        raise RecipeError(reason)
    _head_index(request)
    refuse_other_bases(members)
    refuse_output(request.output, [member.path for member in members])
    return how


def _refuse_mixture(members: Sequence[Trained], methods: Sequence[Method]) -> None:
    able = [name for name in METHODS.names() if METHODS.get(name).combinations]
    problems = []
    for member, method in zip(members, methods, strict=True):
        if not method.combinations:
            message = f"adapters of {method.name} do not combine by weights: PEFT has no such operation for them"
            problems.append(Problem(message=message, place=str(member.path), hint=f"Methods that do: {', '.join(able)}"))
        elif method.name != methods[0].name:
            message = f"was trained with {method.name}, the first run with {methods[0].name}"
            problems.append(Problem(message=message, place=str(member.path), hint="Merge adapters of one method"))
        elif wrong := _other_task(members[0], member):
            hint = "Merge runs of one task with one label set; for others use adapter-fusion or `ftkit predict --adapter`"
            problems.append(Problem(message=wrong, place=str(member.path), hint=hint))
    if problems:
        raise RecipeError(problems)


def _other_task(first: Trained, member: Trained) -> str:
    names = [found.run_recipe.task.name for found in (first, member)]
    if names[0] != names[1]:
        return f"its task is {names[1]}, that of the first run {names[0]}"
    if first.learned() != member.learned():
        return f"its label set is another than that of {first.path}: {_shown(member.learned())}, not {_shown(first.learned())}"
    return ""


def _shown(learned: Any) -> str:
    labels = learned.get("labels", learned) if isinstance(learned, Mapping) else learned
    text = ", ".join(map(str, labels)) if isinstance(labels, list) else str(labels)
    return text if len(text) <= 80 else text[:79] + "…"


def _combination(request: MergeRequest, method: Method, count: int) -> Combination:
    name = request.combination or method.combinations[0]
    if name not in method.combinations:
        hint = f"Known: {', '.join(method.combinations)}"
        raise RecipeError(
            Problem(message=f"{name!r} is no way to combine {method.name} adapters", place="--combination", hint=hint)
        )
    weights = tuple(request.weights) or (1 / count,) * count
    if len(weights) != count:
        message = f"{len(weights)} weights for {count} adapters"
        raise RecipeError(Problem(message=message, place="--weights", hint="Give one number for each, as in --weights 0.5,0.5"))
    if not any(weights):
        raise RecipeError(Problem(message="all weights are zero", place="--weights", hint="Give one above zero"))
    prunes = name.startswith(PRUNED)
    if prunes and (request.density is None or not 0 < request.density < 1):
        given = "none was given" if request.density is None else f"not {request.density:g}"
        hint = "Give, for instance, --density 0.5"
        raise RecipeError(
            Problem(message=f"{name} needs a share of values to keep, between 0 and 1; {given}", place="--density", hint=hint)
        )
    if request.density is not None and not prunes:
        hint = "Leave it out, or choose ties, dare_linear, dare_ties or magnitude_prune"
        raise RecipeError(Problem(message=f"{name} drops no values", place="--density", hint=hint))
    if request.rank is not None and not name.endswith("svd"):
        hint = "Leave it out, or choose svd"
        raise RecipeError(Problem(message=f"the rank of {name} follows from those of the adapters", place="--rank", hint=hint))
    return Combination(name=name, weights=weights, rank=request.rank, density=request.density)


def _head_index(request: MergeRequest) -> int | None:
    """Whose head is taken, None for the average. Raises RecipeError for an unknown one."""
    given = [str(path) for path in request.runs]
    if request.head == AVERAGE:
        if request.weights and abs(sum(request.weights)) < 1e-9:
            hint = "Give --head 1 to take that of the first run"
            raise RecipeError(Problem(message="heads cannot be averaged by weights whose sum is zero", place="--head", hint=hint))
        return None
    if request.head.isdecimal() and 1 <= int(request.head) <= len(given):
        return int(request.head) - 1
    if named := [index for index, path in enumerate(request.runs) if path.resolve() == Path(request.head).resolve()]:
        return named[0]
    hint = f"Give {AVERAGE}, a number from 1 to {len(given)}, or one of the run folders"
    raise RecipeError(Problem(message=f"{request.head!r} names none of the runs", place="--head", hint=hint))


# --- arithmetic --------------------------------------------------------------------------------------------------------


def _merged(
    first: Predictor, methods: Sequence[Method], adapters: Sequence[Portable], how: Combination
) -> tuple[dict[str, Tensor], Any]:
    """The combined adapter by the names in an adapter's file, without heads, and the options that make room for it."""
    import torch
    from peft import get_peft_model_state_dict

    _refuse_different_ranks(adapters, how)
    wrapped = _together(first, adapters)
    torch.manual_seed(first.plan.recipe.seed)  # DARE draws which values it drops.
    names = [f"{MEMBER}{number}" for number in range(len(adapters))]
    try:
        methods[0].combine(wrapped, names, RESULT, how)
    except ValueError as error:
        raise ModelError(f"the adapters do not combine: {error}", hint="Try --combination svd") from error
    state = get_peft_model_state_dict(wrapped, adapter_name=RESULT, save_embedding_layers=False)
    _refuse_useless(state, how)
    layers = list(dict.fromkeys(plain_name(name).rpartition(f".{wrapped.base_model.prefix}")[0] for name in state))
    options = methods[0].combined_options(methods[1:], wrapped.peft_config[RESULT], layers)
    return {name: tensor.detach().clone() for name, tensor in state.items()}, options


def _refuse_useless(state: Mapping[str, Tensor], how: Combination) -> None:
    """Raises RecipeError if the combination overflows, or keeps nothing of what the adapters learned."""
    if not all(tensor.isfinite().all() for tensor in state.values()):
        shown = ", ".join(f"{weight:g}" for weight in how.weights)
        message = f"with {shown} the result has values that are not finite numbers"
        raise RecipeError(Problem(message=message, place="--weights", hint="Give smaller ones; they usually sum to 1"))
    if how.density is not None and not any(tensor.any() for tensor in state.values()):
        message = f"{how.density:g} keeps not a single value of these adapters"
        raise RecipeError(Problem(message=message, place="--density", hint="Give more, for instance --density 0.5"))


def _refuse_different_ranks(adapters: Sequence[Portable], how: Combination) -> None:
    ranks = [adapter.config.get("r") for adapter in adapters]
    if len(set(ranks)) > 1 and how.name != "cat" and not how.name.endswith("svd"):
        hint = "Choose --combination cat (exact) or svd"
        raise RecipeError(
            Problem(message=f"{how.name} needs one rank, these have {', '.join(map(str, ranks))}", place="--combination", hint=hint)
        )


def _together(first: Predictor, adapters: Sequence[Portable]) -> Any:
    """The base with all adapters, called member_0, member_1 ..., without their heads."""
    from peft import get_peft_model, set_peft_model_state_dict

    from ftkit.adapters.inspecting import untuned

    wrapped: Any = None
    for number, adapter in enumerate(adapters):
        config, name = _config(adapter), f"{MEMBER}{number}"
        if wrapped is None:
            wrapped = get_peft_model(untuned(first, allow_code=first.task.allow_code), config, adapter_name=name)
        else:
            wrapped.add_adapter(name, config)
        found: Any = set_peft_model_state_dict(wrapped, _updates(adapter), adapter_name=name)
        missing = [key for key in found.missing_keys if name in key.split(".")]
        if missing or found.unexpected_keys:
            raise ModelError(f"adapter {number + 1} does not fit the base: {(missing or found.unexpected_keys)[0]}")
    return wrapped


def _config(adapter: Portable) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING[adapter.config["peft_type"]]
    known = config_class.__dataclass_fields__.keys() - {"peft_type"}
    config = config_class(**{name: value for name, value in adapter.config.items() if name in known})
    config.inference_mode, config.base_model_name_or_path = False, None
    # With a task type PEFT would give each adapter a head of its own accord, and then refuse to combine them.
    config.modules_to_save = config.task_type = None
    if adapter.low_rank:
        config.init_lora_weights = True
        # Paths instead of patterns, which PEFT could not unite.
        config.target_modules = {plain_name(name).partition(".lora_")[0] for name in _updates(adapter)}
    return config


def _updates(adapter: Portable) -> dict[str, Tensor]:
    heads = set(adapter.heads)
    return {name: tensor for name, tensor in adapter.tensors.items() if name not in heads}


def _head(adapters: Sequence[Portable], how: Combination, index: int | None) -> dict[str, Tensor]:
    names = adapters[0].heads
    if index is not None:
        return {name: adapters[index].tensors[name] for name in names}
    total = sum(how.weights)
    averaged: dict[str, Any] = {}
    for name in names:
        parts = (weight / total * adapter.tensors[name].float() for weight, adapter in zip(how.weights, adapters, strict=True))
        averaged[name] = sum(parts)
    return averaged


def filled(first: Predictor, plan: Any, tensors: Mapping[str, Tensor]) -> Any:
    """A model under another plan on the same data, with these weights, given by the names in an adapter's file. Raises ModelError."""
    from peft import set_peft_model_state_dict

    from ftkit.run.wiring import prepare_model
    from ftkit.tuners.wrap import adapter_state

    prepared = prepare_model(plan, first.task, first.prepared.processor, seed=plan.recipe.seed, allow_code=first.task.allow_code)
    model: Any = prepared.model
    expected = adapter_state(model)
    if wrong := sorted(expected.keys() ^ tensors.keys()):
        raise ModelError(f"the result does not fit the model; the first of {len(wrong)} names: {wrong[0]}")
    if wrong := [name for name in expected if expected[name].shape != tensors[name].shape]:
        raise ModelError(f"the result does not fit the model: {wrong[0]} has the shape {list(tensors[wrong[0]].shape)}")
    set_peft_model_state_dict(model, dict(tensors))
    return prepared
