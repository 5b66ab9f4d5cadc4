"""What the methods share that put trained vectors in front of the embedded input."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ftkit.methods.base import Capabilities, Default
from ftkit.methods.parts.sources import SourcedMethod
from ftkit.models.sequences import CHANGING_LENGTH, PLAIN_VISION, WITHOUT_CACHE
from ftkit.recipe.schema import Auto

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout
    from ftkit.models.stacks import InputPlace

Length = Annotated[int, Field(ge=1, le=10_000)] | Auto

LONG, SHORT = 100, 20


def length_default(facts: ModelFacts) -> Default:
    """The sourced default of `length`."""
    if facts.kind == "encoder-decoder":
        return Default(value=LONG, source="Lester et al. 2021, section 3: 100 tokens for T5")
    return Default(value=SHORT, source="Lester et al. 2021, section 3.2: beyond 20 tokens the gains are marginal")


def prompt_train_defaults(facts: ModelFacts) -> dict[str, Default]:
    """Sourced training defaults of prompts whose vectors are trained directly. Rates go by the size of embeddings; T5's are large."""

    def rate(value: float, source: str) -> dict[str, Default]:
        return {"train.learning_rate": Default(value=value, source=source)}

    if facts.kind == "encoder-decoder" and "t5" in facts.model_type:
        passes = "Lester et al. 2021, section 3: 30,000 steps of 32 rows, ten passes over the largest task (ReCoRD)"
        return {**rate(0.3, "Lester et al. 2021, section 3"), "train.epochs": Default(value=10.0, source=passes)}
    if facts.kind == "decoder" and facts.hidden_size >= 2048:
        return rate(1e-3, "PEFT's method comparison: best of its prompt tuning runs (Llama-3.2-3B, 34 % instead of 6 % at 1e-4)")
    if facts.kind == "decoder":
        return rate(3e-2, "PEFT's prompt tuning guide (bloomz-560m)")
    found = rate(3e-2, "PEFT's prompt tuning guide (bloomz-560m)")
    if facts.narrow_encoder:
        found = rate(0.1, "ftkit: best of 1e-2, 3e-2 and 1e-1 after 36 steps, MiniLM (width 384) on BBC News")
    return {**found, "train.epochs": Default(value=20.0, source="PEFT's P-tuning guide (RoBERTa large on MRPC)")}


class PromptMethod(SourcedMethod):
    """A method that trains a prompt through the tuner `ftkit.tuners.soft_prompt`. Its options have `length`.

    encoder: what gives the vectors in training, see `ftkit.tuners.prompt_encoders`.
    """

    capabilities = Capabilities(adapter=True, merge=False, quantized=True)
    known_to_peft = False
    prefix = "soft_prompt_"

    @property
    @abstractmethod
    def encoder(self) -> str:
        """What gives the vectors in training, see `ftkit.tuners.prompt_encoders`."""

    @abstractmethod
    def prompt_parameters(self, width: int) -> int:
        """How many parameters the prompt has in training, for vectors of this width."""

    def network_size(self, width: int) -> int:
        """Hidden size of the network that gives the vectors; 0 without one."""
        return 0

    def start(self, model: nn.Module, place: InputPlace) -> Tensor | None:
        """The vectors to start from, (length, width); None to leave that to the encoder. `model`: the plain model."""
        return None

    @property
    def length(self) -> int:
        """Virtual tokens."""
        return SHORT if self.options.length == "auto" else int(self.options.length)

    def refusal(self, facts: ModelFacts) -> str:
        if facts.model_type in WITHOUT_CACHE:
            return f"{facts.model_type} keeps no cache of positions, which a prompt needs for generation; use `lora`"
        if facts.model_type in CHANGING_LENGTH or (facts.kind == "vision" and facts.model_type not in PLAIN_VISION):
            return f"{facts.model_type} does not keep its input in one sequence, in front of which a prompt could go; use `lora`"
        if facts.max_positions is not None and self.positions_taken(facts) >= facts.max_positions:
            return f"length is {self.positions_taken(facts)}, but {facts.model_type} takes {facts.max_positions} tokens in all"
        return ""

    def positions_taken(self, facts: ModelFacts) -> int:
        if facts.kind == "vision":
            return 0
        return int(length_default(facts).value if self.options.length == "auto" else self.options.length)

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.models.stacks import input_place
        from ftkit.tuners.soft_prompt import SoftPromptConfig
        from ftkit.tuners.wrap import wrap

        place = input_place(layout)
        vectors = self.start(model, place)
        config = SoftPromptConfig(
            length=self.length,
            width=place.width,
            encoder=self.encoder,
            hidden_size=self.network_size(place.width),
            dropout=getattr(self.options, "dropout", 0.0),
            target_modules=layout.suffixes([place.target]),
            causal=place.causal,
            output_module=place.output,
            decoder_module=place.decoder,
            sources=self.source_names(),
        )
        wrapped = wrap(model, layout, config, self.declares)
        if vectors is not None:
            prompt_of(wrapped).start_from(vectors)
        return wrapped

    def parameter_count(self, layout: ModelLayout) -> int:
        from ftkit.models.stacks import input_place
        from ftkit.tuners.wrap import head_parameter_count

        return self.prompt_parameters(input_place(layout).width) + head_parameter_count(layout)


def prompt_of(wrapped: Any, adapter_name: str = "default") -> Any:
    """The `PromptEncoder` of an adapter of a model that `PromptMethod.apply` returned."""
    return wrapped.base_model.layer.soft_prompt_encoder[adapter_name]


def embedding_rows(model: nn.Module, place: InputPlace, ids: Tensor) -> Tensor:
    """What the model makes of token ids before positions are added: float32 (length, width)."""
    import torch

    stack: Any = model.get_submodule(place.target)
    embed = stack.get_input_embeddings()
    with torch.no_grad():
        return embed(ids.to(embed.weight.device)).float()


def embedding_count(model: nn.Module, place: InputPlace) -> int | None:
    """Tokens that the model has embeddings of, None for one that reads images."""
    stack: Any = model.get_submodule(place.target)
    return int(stack.get_input_embeddings().weight.shape[0]) if hasattr(stack, "get_input_embeddings") else None


def sampled_start(model: nn.Module, place: InputPlace, length: int) -> Tensor:
    """Embeddings of tokens drawn at random; for images uniform numbers."""
    import torch

    count = embedding_count(model, place)
    if count is None:
        return image_start(model, place, length)
    return embedding_rows(model, place, torch.randint(count, (length,)))


def image_start(model: nn.Module, place: InputPlace, length: int) -> Tensor:
    """Uniform numbers within sqrt(6 / (numbers in a patch + width)): what the authors of visual prompt tuning start from."""
    import torch

    config: Any = model.config
    patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    bound = (6.0 / (config.num_channels * patch * patch + place.width)) ** 0.5
    return torch.empty(length, place.width).uniform_(-bound, bound)
