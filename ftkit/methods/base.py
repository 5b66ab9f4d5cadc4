"""The contract of a tuning method: it knows parameters, nothing of data.

A method is one file in this folder (or a plug-in) with one subclass of `Method`. Nothing here imports torch:
`ftkit validate`, `ftkit methods` and `ftkit schema` read methods without it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from ftkit.errors import Problem
from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout
    from ftkit.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a method comes from."""

    title: str
    authors: str
    year: int
    url: str


@dataclass(frozen=True, kw_only=True)
class Default:
    """A value for a recipe key left at `auto`, and where it comes from (a paper, a measurement)."""

    value: Any
    source: str


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What can be done with what the method trains. `validate` refuses recipes that ask for more.

    adapter: the trained part can be saved apart from the model, as a PEFT adapter.
    merge: the trained part can be folded into a plain model.
    quantized: the base may be quantized.
    checkpointing: gradient checkpointing works.
    from_scratch: makes sense on a model with random weights, since it trains all of them.
    trains: something is trained at all; where not, a run evaluates and exports.
    shardable: the base may be divided over processes (`train.sharding`).
    fusable: trained adapters of it can be members of an AdapterFusion (`member_types`).
    """

    adapter: bool
    merge: bool
    quantized: bool = False
    checkpointing: bool = True
    from_scratch: bool = False
    trains: bool = True
    shardable: bool = True
    fusable: bool = False


@dataclass(frozen=True, kw_only=True)
class Combination:
    """How several adapters become one, in the words of PEFT's `add_weighted_adapter`.

    weights: one for each adapter. rank: of the result, where singular values decide (`svd`). density: share of the values that is kept,
    where some are dropped (`ties`, `dare_linear` ...).
    """

    name: str
    weights: Sequence[float]
    rank: int | None = None
    density: float | None = None


class NoOptions(Strict):
    """A method without options."""


class Method(ABC):
    """One tuning method.

    name: as written in recipes; equals the file name with `-` for `_`.
    summary: one line for tables.
    update_rule: what is trained and how it enters the forward pass, one line of mathematics.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    update_rule: ClassVar[str]
    paper: ClassVar[Paper | None] = None
    capabilities: Capabilities
    """Of the class: with default options. A method whose options decide sets its own in `__init__`."""
    Options: ClassVar[type[Strict]] = NoOptions
    needs: ClassVar[tuple[str, ...]] = ()
    """Options that have no usable default: a recipe must give them, and `refusal` says so if it does not."""
    known_to_peft: ClassVar[bool] = True
    """Whether plain PEFT loads this method's adapters; those of ftkit's own tuners need `import ftkit.tuners` first."""

    combinations: ClassVar[tuple[str, ...]] = ()
    """Ways in which several adapters of this method become one (PEFT's `combination_type`), that by default first; () where none does."""

    path_options: ClassVar[frozenset[str]] = frozenset()
    """Options that name local folders, as a text or a list of texts; the plan makes them absolute."""

    adapter_options: ClassVar[frozenset[str]] = frozenset()
    """Those of them that name trained adapters, or the runs that exported them: a run refuses those of another base."""

    def __init__(self, options: Strict) -> None:
        self.options: Any = options

    @abstractmethod
    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        """Values for `auto`, by recipe key (`train.learning_rate`, `method.alpha` ...), for this kind and size of model.

        Must give `train.learning_rate`; may give `train.epochs`, `train.weight_decay`, `train.warmup_ratio` and own options.
        """

    def refusal(self, facts: ModelFacts) -> str:
        """Why this method cannot tune this model ('' if it can), as far as the model's config tells."""
        return ""

    def member_types(self) -> Mapping[str, str]:
        """PEFT's type of each trained adapter that the method fuses, by its folder as the options name it.

        The plan refuses those whose method is not `fusable`; a method's name is PEFT's type in small letters.
        """
        return {}

    def task_refusal(self, task: Task, facts: ModelFacts) -> str:
        """Why this method cannot serve this task on this model ('' if it can), by what the task says of itself (`pretrained_head`)."""
        return ""

    def positions_taken(self, facts: ModelFacts) -> int:
        """How many of the model's positions the method takes for itself (a prompt): the task's texts have that many less."""
        return 0

    @property
    def source_column(self) -> str | None:
        """The data column that says which of several sources (data sets, tasks) a row is from, where the method treats them differently.

        The task then reads it, freezes the names in the training rows and hands the model `source_ids` (`ftkit.models.row_sources`).
        """
        return None

    def take_sources(self, names: Sequence[str]) -> None:  # noqa: B027 - an optional hook
        """Called before `apply` if there is a `source_column`: the names of the sources by their numbers."""

    def take_processor(self, processor: Any) -> None:  # noqa: B027 - an optional hook
        """Called before `apply` with the model's tokenizer or image processor."""

    @abstractmethod
    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        """The model with exactly this method's parameters trainable.

        Returns the same model (whole-model methods) or a `peft.PeftModel` around it.
        Raises ModelError if nothing in the model fits.
        """

    @abstractmethod
    def declares(self, name: str, layout: ModelLayout) -> bool:
        """Whether the parameter `name` (as in `named_parameters()` of what `apply` returned) is one that this method trains."""

    def parameter_count(self, layout: ModelLayout) -> int | None:
        """How many parameters train, by the method's formula; None where there is no closed form."""
        return None

    def learning_rate_factor(self, name: str, layout: ModelLayout) -> float:
        """What the learning rate is multiplied by for the trained parameter `name` (LoRA+ trains B faster than A)."""
        return 1.0

    def training_begins(self, model: nn.Module, total_steps: int) -> None:  # noqa: B027 - an optional hook
        """Called once for each run, resumed ones too, before `prepare` and `restore`: how many optimizer steps the whole run has."""

    def batches_before_training(self) -> int:
        """How many training batches `prepare` wants to see."""
        return 0

    def prepare(self, model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> None:  # noqa: B027 - an optional hook
        """Called once before the first step of a run, if `batches_before_training` asks for batches; model in evaluation mode.

        losses: one function for each batch, which runs the model forward on it and returns the mean loss with its graph.
        May change values of parameters and buffers (a start found in the data, a mask), but replace no parameter.
        """

    def state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """What the method itself carries from step to step beside trained parameters: masks, running importance. For checkpoints."""
        return {}

    def restore(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - an optional hook
        """Takes up what `state` gave, after the trained parameters were loaded. Called for best weights, too."""

    def extra_loss(self, model: nn.Module) -> Tensor | None:
        """A scalar added to the mean training loss of each optimizer step, or None."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: B027 - an optional hook
        """Called after backward and the optimizer's update, before gradients are cleared. `step` counts from 1."""

    @classmethod
    def holds_low_rank(cls, config: Mapping[str, Any]) -> bool:
        """Whether adapters of this method with this adapter_config.json change weights by s B A alone, named as PEFT's LoRA names them."""
        return False

    def combination_refusal(self, others: Sequence[Method], how: Combination) -> Problem | None:
        """Why adapters of this method and of `others`, which have the same name, do not combine in this way; None if they do."""
        return None

    def combine(self, wrapped: Any, names: Sequence[str], target: str, how: Combination) -> None:
        """Adds the adapter `target` to a PeftModel that holds those called `names`. Only for methods with `combinations`."""
        raise NotImplementedError(f"{self.name} has no combinations")

    def combined_options(self, others: Sequence[Method], config: Any, layers: Sequence[str]) -> Strict:
        """Options under which `apply` makes room for a combined adapter. config: PEFT's, of the result. layers: paths that it adapts."""
        return self.options

    def save_adapter(self, model: Any, folder: Path) -> None:
        """Writes the adapter of the `PeftModel` that `apply` returned: it must load onto the untouched base and compute the same."""
        # "auto" would look the base model up on the hub to see whether its vocabulary was resized; ftkit never resizes it.
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)


class AdapterMethod(Method):
    """A method whose `apply` returns a `peft.PeftModel`, made with `ftkit.tuners.wrap.wrap`.

    prefix: how PEFT starts the names of the method's trained parameters (`lora_`).
    """

    prefix: ClassVar[str]

    def declares(self, name: str, layout: ModelLayout) -> bool:
        """The adapter's own parameters and the copies of head modules that PEFT trains beside them."""
        return f".{self.prefix}" in name or ".modules_to_save." in name


def _valid_ranges(ranges: list[str | int]) -> list[str | int]:
    for text in ranges:
        block_numbers([text])
    return ranges


BlockRanges = Annotated[list[str | int], Field(min_length=1), AfterValidator(_valid_ranges)]
"""Option type: blocks by number and range, `[0-3, 10]`. Counted from 0, those of the encoder before those of the decoder."""


MOST_BLOCKS = 10_000


def block_numbers(ranges: Sequence[str | int]) -> list[int]:
    """The block numbers that ranges name, sorted. Raises ValueError for what is no number or range."""
    numbers: set[int] = set()
    for text in ranges:
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(text))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if first > last or last > MOST_BLOCKS:
            raise ValueError(f"{text!r} is no block number (`3`) or range (`0-3`)")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def range_refusal(ranges: Sequence[str | int], block_count: int) -> str:
    """Why a model of so many blocks does not have the named ones; '' if it does or their number is not known (0)."""
    last = block_numbers(ranges)[-1]
    if not block_count or last < block_count:
        return ""
    return f"there is no block {last}: the model has {block_count} blocks, counted from 0 to {block_count - 1}"


@dataclass(frozen=True)
class _Published:
    learning_rate: float
    epochs: float | None
    weight_decay: float | None
    warmup_ratio: float | None
    source: str


_MINIATURES = "BERT miniatures (Turc et al. 2019), model card: of 3e-4, 1e-4, 5e-5, 3e-5, the middle"
_BERT = "BERT (Devlin et al. 2019), appendix A.3 and run_classifier.py"
_BERT_LARGE = "BERT (Devlin et al. 2019), appendix A.3: the lowest of 5e-5, 3e-5, 2e-5; large models are unstable (section 4.1)"
_GPT = "GPT (Radford et al. 2018), section 4.1"
_ALPACA = "Stanford Alpaca (Taori et al. 2023), README: LLaMA-7B"
_T5 = "transformers' T5 page, training: 1e-4 and 3e-4 work well for most problems"
_BART = "BART (Lewis et al. 2020), fairseq's recipe for XSum and CNN/DailyMail"
_VIT = "transformers' image classification guide: ViT-Base on Food-101"


def _published(facts: ModelFacts) -> _Published:
    """Published settings for training pretrained weights themselves, by kind and width of the model."""
    # A pair of encoders (`model.decoder`) holds BERT's weights, not BART's, and learns like those.
    if facts.kind == "encoder-decoder" and facts.model_type != "encoder-decoder":
        if "t5" in facts.model_type:
            return _Published(3e-4 if facts.hidden_size <= 512 else 1e-4, None, None, None, _T5)
        return _Published(3e-5, None, 0.01, None, _BART)
    if facts.kind == "decoder":
        if facts.hidden_size <= 1024:
            return _Published(6.25e-5, 3.0, 0.01, 0.002, _GPT)
        return _Published(2e-5, 3.0, 0.0, 0.03, _ALPACA)
    if facts.kind == "vision":
        return _Published(5e-5, 3.0, None, 0.1, _VIT)
    if 0 < facts.hidden_size <= 512:
        return _Published(1e-4, 4.0, 0.01, 0.1, _MINIATURES)
    return _Published(2e-5, 3.0, 0.01, 0.1, _BERT_LARGE) if facts.hidden_size >= 1024 else _Published(5e-5, 3.0, 0.01, 0.1, _BERT)


def weight_training_defaults(facts: ModelFacts) -> dict[str, Default]:
    """Defaults of methods that train pretrained weights themselves."""
    published = _published(facts)
    names = ("learning_rate", "epochs", "weight_decay", "warmup_ratio")
    values = {name: getattr(published, name) for name in names}
    return {f"train.{name}": Default(value=value, source=published.source) for name, value in values.items() if value is not None}


def encoder_epochs(facts: ModelFacts) -> dict[str, Default]:
    """On encoders, the passes of methods that train few weights beside the model's own: they take more than full tuning."""
    source = "AdapterHub's training guide: BERT base on GLUE; 25 to 80 for LoRA in Hu et al. 2022, table 9"
    return {"train.epochs": Default(value=10.0, source=source)} if facts.kind == "encoder" else {}
