"""AdapterFusion: attention over the outputs of several adapters, each trained on a task of its own; they and the model are frozen.

    F(x) = sum_k p_k V A_k(x),   p = softmax_k((Q x + b) . K A_k(x))

F stands where each member's A stands: with placement pfeiffer x is the (normed) output of the feed-forward part. V starts as the identity
and is held near it: the loss gets lambda |V - I|^2, summed over all places. Heads of the members are not used; a new one is trained.
Count: at each place 3 d^2 + d for a width of d.
Source: Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247, section 3.2; lambda, bias and starts as in AdapterHub.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from ftkit.methods.base import AdapterMethod, Capabilities, Default, Paper, encoder_epochs
from ftkit.paths import home_expanded
from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout
    from ftkit.tuners.fusion_members import Member

CONFIG_FILE = "adapter_config.json"
IN_RUN = PurePath("export", "adapter")
MEMBERS = ".members."
FIELDS: dict[tuple[str, ...], tuple[type | tuple[type, ...], str]] = {
    ("peft_type", "placement", "activation", "layer_norm"): (str, "a name"),
    ("bottleneck", "kronecker_terms", "rank"): (int, "a whole number"),
    ("reduction_factor",): ((int, float), "a number"),
    ("scaling",): ((int, float, str), "a number or `learned`"),
    ("target_modules", "output_modules", "around_modules", "carry_modules"): ((list, str), "names of modules"),
}
"""Fields of a member's config that a fusion reads, and what they hold. Each may be missing or null."""


def _at_least_two(paths: list[str]) -> list[str]:
    if len(paths) < 2:
        raise ValueError(f"a fusion needs two adapters or more, not {len(paths)}")
    return paths


class Options(Strict):
    """Which adapters are fused."""

    adapters: Annotated[list[Annotated[str, Field(min_length=1)]], AfterValidator(_at_least_two)] = Field(
        default_factory=list,
        description="Two or more trained adapters (methods adapter and compacter) of the same placement on the same base: folders of "
        "exported adapters, or of runs that exported one.",
    )
    regularization: float = Field(0.01, ge=0, description="Weight lambda of |V - I|^2 in the loss.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the attention scores.")


class AdapterFusion(AdapterMethod):
    """Attention over trained adapters."""

    name = "adapter-fusion"
    summary = "Attention over several trained, frozen adapters of other tasks."
    update_rule = "y = h + sum_k softmax_k(Q x . K A_k(x)) V A_k(x): Q, K, V are trained, the adapters A_k and the model are frozen"
    paper = Paper(
        title="AdapterFusion: Non-Destructive Task Composition for Transfer Learning",
        authors="Pfeiffer, Kamath, Rücklé, Cho, Gurevych",
        year=2021,
        url="https://arxiv.org/abs/2005.00247",
    )
    capabilities = Capabilities(shardable=False, adapter=True, merge=False, quantized=True)
    Options = Options
    needs = ("adapters",)
    path_options = adapter_options = frozenset({"adapters"})
    known_to_peft = False
    prefix = "adapter_fusion_"

    def declares(self, name: str, layout: ModelLayout) -> bool:
        """The attention and the head, not the members."""
        return super().declares(name, layout) and MEMBERS not in name

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        if facts.narrow_encoder:
            small = "ftkit: better than 5e-5 by validation, MiniLM (width 384) on 512 rows of BBC News, 48 steps"
            return {"train.learning_rate": Default(value=1e-3, source=small), **encoder_epochs(facts)}
        source = "Pfeiffer et al. 2021, section 4"
        return {"train.learning_rate": Default(value=5e-5, source=source), "train.epochs": Default(value=10.0, source=source)}

    def refusal(self, facts: ModelFacts) -> str:
        if not self.options.adapters:
            return "it fuses trained adapters and none are named; give `adapters: [folder, folder]`"
        return next(_problems(self.options.adapters), "")

    def member_types(self) -> Mapping[str, str]:
        found = {text: _config_of(text)[1] for text in self.options.adapters}
        return {
            text: str(fields["peft_type"]) for text, fields in found.items() if not isinstance(fields, str) and _is_named(fields)
        }

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.tuners.fusion_members import check_places, fill_members, fusion_config
        from ftkit.tuners.wrap import wrap

        members = self._members()
        check_places(model, members)
        wrapped = wrap(model, layout, fusion_config(members, self.options.dropout), self.declares)
        fill_members(wrapped, members)
        return wrapped

    def parameter_count(self, layout: ModelLayout) -> int:
        """3 d^2 + d at each place, and the head."""
        from ftkit.tuners.wrap import head_parameter_count

        widths = [weights["up.bias"].numel() for weights in self._members()[0].weights.values()]
        return sum(3 * width**2 + width for width in widths) + head_parameter_count(layout)

    def extra_loss(self, model: nn.Module) -> Tensor | None:
        from ftkit.tuners.adapter_fusion import fusions

        if not self.options.regularization:
            return None
        distances: Any = sum(fusion.distance_from_identity() for fusion in fusions(model))
        return self.options.regularization * distances

    def state(self, model: nn.Module) -> Mapping[str, Tensor]:
        return {name: parameter.detach() for name, parameter in model.named_parameters() if _is_member(name)}

    def restore(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        # The files the members came from may have changed since.
        for name, parameter in model.named_parameters():
            if _is_member(name) and name in state:
                parameter.data.copy_(state[name])

    def _members(self) -> list[Member]:
        from ftkit.errors import ModelError, Problem
        from ftkit.tuners.fusion_members import read_member
        from ftkit.tuners.registration import register_tuners

        if problems := list(_problems(self.options.adapters)):
            raise ModelError([Problem(message=text, key="method.adapters") for text in problems])
        register_tuners()
        found = [_config_of(text) for text in self.options.adapters]
        return [read_member(folder, fields) for folder, fields in found if folder is not None and not isinstance(fields, str)]


def _is_named(fields: Mapping[str, Any]) -> bool:
    return isinstance(fields.get("peft_type"), str)


def _is_member(name: str) -> bool:
    return f".{AdapterFusion.prefix}" in name and MEMBERS in name


def _problems(paths: Sequence[str]) -> Iterator[str]:
    """What is wrong with the named adapters, as far as their configs tell."""
    first: dict[str, Any] | None = None
    for text in paths:
        folder, fields = _config_of(text)
        if folder is None:
            yield f"{text} is neither an exported adapter nor a run that exported one; `ftkit export {text} --format adapter` makes one"
        elif isinstance(fields, str):
            yield f"{folder / CONFIG_FILE} {fields}; export that adapter again"
        elif wrong := _wrong_fields(fields):
            yield f"{folder / CONFIG_FILE}: {wrong}; export that adapter again"
        elif fields.get("norm_modules"):
            yield f"{text} has trained norms of its own, which do not fuse; train it with `norms: false`"
        else:
            first = first or fields
            yield from _conflicts(text, fields, first)


def _wrong_fields(fields: Mapping[str, Any]) -> str:
    """What is no value for a field of an adapter's config, '' if nothing."""
    from ftkit.models.folder import shown

    for names, (types, expected) in FIELDS.items():
        for name in names:
            value = fields.get(name)
            if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
                return f"`{name}` is {shown(value)}, expected {expected}"
    return "" if "peft_type" in fields else "it has no `peft_type`"


def _conflicts(text: str, fields: Mapping[str, Any], first: Mapping[str, Any]) -> Iterator[str]:
    if fields.get("placement") != first.get("placement"):
        yield f"{text} has the placement {fields.get('placement')}, the first adapter {first.get('placement')}"
    bases = [PurePath(str(each.get("base_model_name_or_path") or "")).name for each in (fields, first)]
    if all(bases) and bases[0] != bases[1]:
        yield f"{text} was trained on {bases[0]}, the first adapter on {bases[1]}"


def _config_of(text: str) -> tuple[Path | None, dict[str, Any] | str]:
    """The adapter folder that an option names, None if there is none, and what its config says, or in words why it cannot be read."""
    from ftkit.errors import ModelError
    from ftkit.models.folder import read_json

    for folder in (home_expanded(text), home_expanded(text) / IN_RUN):
        if (folder / CONFIG_FILE).is_file():
            try:
                return folder, read_json(folder / CONFIG_FILE)
            except ModelError as error:
                return folder, error.problems[0].message
    return None, ""
