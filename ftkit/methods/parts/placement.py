"""Where adapters sit and how wide they are: options and behavior that the methods with bottleneck adapters share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ftkit.methods.base import AdapterMethod, BlockRanges, range_refusal
from ftkit.methods.parts.targets import BLOCKS_TEXT
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout
    from ftkit.tuners.places import Places

Placement = Literal["houlsby", "pfeiffer", "parallel"]
Activation = Auto | Literal["relu", "gelu", "gelu_new", "silu", "tanh"]
Size = Annotated[int, Field(ge=1)] | Auto | None
Factor = Annotated[float, Field(gt=0)] | Auto | None

PLACEMENT_TEXT = (
    "houlsby: after attention and after the feed-forward part, before the residual sum and the norm. pfeiffer: after the feed-forward "
    "part, around its norm. parallel: beside the feed-forward part."
)
NO_SIZE = "one of bottleneck and reduction_factor must be a number"
EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")


class PlacementOptions(Strict):
    """Place and width of adapters. Subclasses give `placement` its default."""

    placement: Placement
    bottleneck: Size
    reduction_factor: Factor
    activation: Activation
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's output.")
    cross_attention: bool = Field(
        False, description="With placement houlsby: adapters after the decoder's attention to the encoder, too."
    )
    blocks: BlockRanges | None = Field(
        None, description=f"{BLOCKS_TEXT} Without the lowest blocks this is specialized AdapterDrop: faster, little is lost."
    )
    norms: bool

    @model_validator(mode="after")
    def _fit_together(self) -> PlacementOptions:
        refuse_two_sizes(self.bottleneck, self.reduction_factor)
        if self.sizes() == (None, None):
            raise ValueError(NO_SIZE)
        if self.cross_attention and self.placement != "houlsby":
            raise ValueError(f"cross_attention needs placement houlsby; {self.placement} has no adapters after attention")
        return self

    def preset_sizes(self) -> tuple[int | None, float | None]:
        """What `bottleneck: auto` and `reduction_factor: auto` stand for if neither is given."""
        raise NotImplementedError

    def sizes(self) -> tuple[int | None, float | None]:
        """Bottleneck and reduction factor, one of them None: a given one overrides what `auto` stands for."""
        if isinstance(self.bottleneck, int):
            return self.bottleneck, None
        if isinstance(self.reduction_factor, float):
            return None, self.reduction_factor
        bottleneck, factor = self.preset_sizes()
        return bottleneck if self.bottleneck == "auto" else None, factor if self.reduction_factor == "auto" else None


class PlacedMethod(AdapterMethod):
    """A method that puts bottleneck adapters at the places of `PlacementOptions`."""

    known_to_peft: ClassVar[bool] = False

    @abstractmethod
    def preset(self, name: str) -> Any:
        """The value of an option that is `auto`."""

    @abstractmethod
    def config(self, fields: dict[str, Any]) -> PeftConfig:
        """The PEFT config; fields: where the parts go, and the options that all methods with adapters have."""

    @abstractmethod
    def adapter_size(self, width: int) -> int:
        """Number of trained parameters of one adapter in a residual stream of this width."""

    def shared_size(self) -> int:
        """Number of trained parameters that all adapters share."""
        return 0

    def value(self, name: str) -> Any:
        """An option, with `auto` replaced."""
        given = getattr(self.options, name)
        return self.preset(name) if given == "auto" else given

    def refusal(self, facts: ModelFacts) -> str:
        if reason := expert_refusal(facts):
            return reason
        return range_refusal(self.options.blocks, facts.block_count) if self.options.blocks is not None else ""

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.tuners.wrap import wrap

        places = self._places(layout)
        bottleneck, factor = self.options.sizes()
        fields = {
            **places.config(layout),
            "placement": self.options.placement,
            "bottleneck": bottleneck,
            "reduction_factor": factor,
            "activation": self.value("activation"),
            "dropout": self.options.dropout,
        }
        return wrap(model, layout, self.config(fields), self.declares)

    def parameter_count(self, layout: ModelLayout) -> int:
        """`adapter_size` of each adapter, what they share, the gains and biases of trained norms, and the head."""
        from ftkit.tuners.places import norm_parameter_count
        from ftkit.tuners.wrap import head_parameter_count

        places = self._places(layout)
        adapters = sum(self.adapter_size(width) for width in places.widths) + self.shared_size()
        return adapters + norm_parameter_count(layout, places.norms) + head_parameter_count(layout)

    def _places(self, layout: ModelLayout) -> Places:
        from ftkit.tuners.places import find_places

        options = self.options
        return find_places(
            layout, options.placement, blocks=options.blocks, cross_attention=options.cross_attention, norms=options.norms
        )


def refuse_two_sizes(bottleneck: Size, reduction_factor: Factor) -> None:
    """Raises ValueError if both options state a size."""
    if isinstance(bottleneck, int) and isinstance(reduction_factor, float):
        raise ValueError("bottleneck and reduction_factor say the same; give one of them")


def bottleneck_field(auto: str) -> Any:
    """The option `bottleneck`. auto: what it stands for, in words."""
    return Field("auto", description=f"Size of the bottleneck. auto: {auto}.")


def factor_field(auto: str) -> Any:
    """The option `reduction_factor`. auto: what it stands for, in words."""
    return Field("auto", description=f"Instead of `bottleneck`: the width of the model divided by its size. auto: {auto}.")


def expert_refusal(facts: ModelFacts) -> str:
    """Why adapters cannot go beside the feed-forward parts of a model, as far as its config tells; '' if they can."""
    config = _config(facts)
    if any(config.get(key) for key in EXPERT_KEYS):
        return "adapters need one feed-forward part in each block, and this model is a mixture of experts; use `lora`"
    return ""


def _config(facts: ModelFacts) -> dict[str, Any]:
    """The model's config.json; empty where it is not at hand."""
    from ftkit.models.folder import read_json

    path = facts.path / "config.json" if facts.path else None
    return read_json(path) if path and path.is_file() else {}
