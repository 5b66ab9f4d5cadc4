"""Which linear layers a method adapts: by role, by name, by pattern, in some blocks. Shared by all methods with `targets`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from ftkit.methods.base import AdapterMethod, BlockRanges, Default, block_numbers, range_refusal
from ftkit.patterns import check_pattern, matching

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

    from ftkit.errors import Problem
    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

__all__ = [
    "BLOCKS_TEXT",
    "BlockRanges",
    "TargetChoice",
    "TargetedMethod",
    "all_conv1d",
    "check_divisible",
    "chosen_layers",
    "largest_divisor",
    "query_and_value_or_all",
    "targets_text",
]

ROLES = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")
FUSED = {"query": "qkv", "key": "qkv", "value": "qkv"}
REGEX = "re:"

CONV1D_MODELS = frozenset({"clvp", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"})
"""Model types whose layers are transformers' Conv1D, a linear layer with the weight turned around."""


def _patterns_compile(targets: list[str]) -> list[str]:
    for target in targets:
        if target.startswith(REGEX):
            check_pattern(target.removeprefix(REGEX))
    return targets


TargetList = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), AfterValidator(_patterns_compile)]
TargetChoice = Literal["auto", "all-linear"] | TargetList
"""Option type of `targets`."""

BLOCKS_TEXT = "Only in these blocks: numbers and ranges, `[0-3, 10]`, from 0; decoder blocks follow encoder blocks."
"""Description of the option `blocks`."""


def targets_text(auto: str) -> str:
    """Description of the option `targets`. auto: what `auto` stands for, in words."""
    return (
        f"Layers with an update. auto: {auto}. all-linear: every linear layer of the blocks. Or a list of roles "
        f"({', '.join(ROLES)}), module names, and `re:` followed by a regular expression that matches whole module paths."
    )


def chosen_layers(layout: ModelLayout, targets: str | Sequence[str], blocks: Sequence[str | int] | None) -> list[str]:
    """Module paths of the linear layers inside blocks that `targets` and `blocks` name, in order of the model.

    targets: `all-linear` or a list. Raises ModelError for each target that the model lacks, and if nothing is left.
    """
    from ftkit.errors import ModelError, Problem

    linears = layout.linears("all")
    chosen = set(linears) if isinstance(targets, str) else _targeted(layout, targets, linears)
    if blocks is not None:
        if reason := range_refusal(blocks, len(layout.blocks)):
            raise ModelError(Problem(message=reason, key="method.blocks"))
        prefixes = tuple(f"{layout.blocks[number].name}." for number in block_numbers(blocks))
        chosen = {path for path in chosen if path.startswith(prefixes)}
    if not chosen:
        message = f"no layer of {layout.architecture} is both a target and in `blocks`"
        raise ModelError(Problem(message=message, key="method.blocks"))
    return [path for path in linears if path in chosen]


def _targeted(layout: ModelLayout, targets: Sequence[str], linears: list[str]) -> set[str]:
    from ftkit.errors import ModelError

    found = {target: _matches(target, layout, linears) for target in targets}
    if missed := [target for target, paths in found.items() if not paths]:
        raise ModelError([_missed(target, layout, linears) for target in missed])
    return {path for paths in found.values() for path in paths}


def _matches(target: str, layout: ModelLayout, linears: list[str]) -> list[str]:
    if target.startswith(REGEX):
        return matching(target.removeprefix(REGEX), linears, whole=True, key="method.targets")
    if target in ROLES:
        # A model that computes query, key and value in one layer has that layer in all three roles.
        return layout.linears(target) or (layout.linears(FUSED[target]) if target in FUSED else [])
    return [path for path in linears if path == target or path.endswith(f".{target}")]


def _missed(target: str, layout: ModelLayout, linears: list[str]) -> Problem:
    from ftkit.errors import Problem

    names = list(dict.fromkeys(path.rpartition(".")[2] for path in linears))
    near = get_close_matches(target.removeprefix(REGEX), [*names, *ROLES], n=3, cutoff=0.5) or names
    return Problem(
        message=f"no linear layer in the blocks of {layout.architecture} fits {target!r}",
        key="method.targets",
        hint=f"Close names: {', '.join(near)}. Roles: {', '.join(ROLES)}",
    )


def all_conv1d(layout: ModelLayout, paths: Sequence[str]) -> bool:
    """Whether the layers are transformers' Conv1D, whose weight is in x out: PEFT's `fan_in_fan_out`."""
    return all(_is_conv1d(layout.model.get_submodule(path)) for path in paths)


def _is_conv1d(module: nn.Module) -> bool:
    return type(getattr(module, "base_layer", module)).__name__ == "Conv1D"


def query_and_value_or_all(facts: ModelFacts) -> Default:
    """The usual default of `targets`: query and value, in decoders every linear layer."""
    if facts.kind == "decoder":
        source = "Dettmers et al. 2023 (QLoRA), figure 2: all linear layers are needed to match full tuning"
        return Default(value="all-linear", source=source)
    return Default(value=["query", "value"], source="Hu et al. 2022, section 7.1 and table 5: query and value")


class TargetedMethod(AdapterMethod):
    """An adapter method of PEFT that replaces linear layers. Its options have `targets` and `blocks`.

    adapts_conv1d: whether the tuner knows transformers' Conv1D (GPT-2).
    constants: part of the names of parameters that the tuner holds but never trains.
    """

    adapts_conv1d: bool = True
    constants: ClassVar[str] = ""

    @abstractmethod
    def config(self, layout: ModelLayout, paths: list[str]) -> PeftConfig:
        """PEFT's config for an adapter of the layers at `paths`; `target_modules` are filled in afterwards."""

    def layer_count(self, inward: int, outward: int) -> int | None:
        """Number of trained parameters beside a layer of `inward` inputs and `outward` outputs; None if there is no formula."""
        return None

    def default_targets(self) -> str | list[str]:
        """What `targets: auto` stands for where no plan has replaced it."""
        return ["query", "value"]

    def target_defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        """The sourced default of `targets`, by recipe key."""
        return {"method.targets": query_and_value_or_all(facts)}

    def refusal(self, facts: ModelFacts) -> str:
        if not self.adapts_conv1d and facts.model_type in CONV1D_MODELS:
            return f"the layers of {facts.model_type} are of a kind (Conv1D) that {self.name} cannot adapt; use `lora`"
        return range_refusal(self.options.blocks, facts.block_count) if self.options.blocks is not None else ""

    def paths(self, layout: ModelLayout) -> list[str]:
        """Module paths of the adapted layers. Raises ModelError for each target that the model lacks."""
        targets = self.default_targets() if self.options.targets == "auto" else self.options.targets
        return chosen_layers(layout, targets, self.options.blocks)

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.tuners.wrap import wrap

        paths = self.paths(layout)
        self._check_kinds(layout, paths)
        config: Any = self.config(layout, paths)
        config.target_modules = layout.suffixes(paths)
        return wrap(model, layout, config, self.declares, constants=self.constants, whole=self.whole_modules(layout))

    def whole_modules(self, layout: ModelLayout) -> list[str]:
        """Paths of modules that train as a whole, beside the adapted layers and the head."""
        return []

    def _check_kinds(self, layout: ModelLayout, paths: list[str]) -> None:
        from ftkit.errors import ModelError

        if self.adapts_conv1d:
            return
        if turned := [path for path in paths if _is_conv1d(layout.model.get_submodule(path))]:
            raise ModelError(f"{self.name} cannot adapt {turned[0]}, which is a Conv1D", hint="Use `lora` for this model")

    def parameter_count(self, layout: ModelLayout) -> int | None:
        """`layer_count` of each adapted layer, the head, and what else trains as a whole."""
        from ftkit.tuners.wrap import head_parameter_count

        counts = [self.layer_count(*shape) for shape in layer_shapes(layout, self.paths(layout))]
        known = [count for count in counts if count is not None]
        inside = tuple(f"{path}." for path in self.whole_modules(layout))
        # Where it is wrapped already, the model has each of them twice.
        sizes = {layout.canonical(name): parameter.numel() for name, parameter in layout.model.named_parameters()}
        beside = sum(size for name, size in sizes.items() if inside and name.startswith(inside))
        return head_parameter_count(layout) + beside + sum(known) if len(known) == len(counts) else None


def largest_divisor(width: int, limit: int) -> int:
    """The largest divisor of a width that is at most `limit` and above 1; 0 if there is none (or no width)."""
    return next((number for number in range(min(limit, width), 1, -1) if width % number == 0), 0)


def check_divisible(layout: ModelLayout, paths: Sequence[str], block: int, key: str) -> None:
    """Raises ModelError if the input of an adapted layer cannot be cut into blocks of this width."""
    from math import gcd

    from ftkit.errors import ModelError, Problem

    widths = {path: inward for path, (inward, _) in zip(paths, layer_shapes(layout, paths), strict=True)}
    if odd := [path for path, width in widths.items() if width % block]:
        common = gcd(*widths.values())
        message = f"{odd[0]} has {widths[odd[0]]} inputs, which blocks of {block} do not divide"
        divisors = [str(number) for number in range(2, min(common, 64) + 1) if common % number == 0]
        hint = f"All adapted layers can be cut into blocks of {', '.join(divisors)}" if divisors else "Choose other `targets`"
        raise ModelError(Problem(message=message, key=key, hint=hint))


def layer_shapes(layout: ModelLayout, paths: Sequence[str]) -> list[tuple[int, int]]:
    """(inputs, outputs) of each layer, also when an adapter has been put around it."""
    from ftkit.models.roles import linear_shape

    modules: list[Any] = [layout.model.get_submodule(path) for path in paths]
    return [linear_shape(getattr(module, "base_layer", module)) for module in modules]
