"""Multitask prompt tuning, the transfer to one task: a prompt that tasks share, scaled by two vectors of this task.

    logits = model([P; E(x)]),   P = S * (u v^T) elementwise,   S: k x width, u: k, v: width, all trained

With `sources`, S, u and v start from what earlier tasks learned: the factors of one saved adapter, or several saved prompts taken
apart into one S and their own u and v, whose means are the start. The paper learns S on all source tasks at once, by distilling
prompts of each into it; a recipe has one task, so this step is a least-squares fit to finished prompts instead
(`ftkit.tuners.prompt_transfer`). Parameters: k width + k + width, and the head.
Source: Wang et al. 2023, https://arxiv.org/abs/2303.02861, sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ftkit.methods.base import Default, Paper
from ftkit.methods.parts.prompts import Length, PromptMethod, length_default, prompt_train_defaults
from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.stacks import InputPlace


class Options(Strict):
    """Length of the prompt and the tasks it comes from."""

    length: Length = Field(
        "auto", description="Virtual tokens k. They take up positions of the model. auto: 100 for encoder-decoders, else 20."
    )
    sources: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="Folders of adapters that earlier runs of prompt-tuning, p-tuning or this method exported, with the same base and "
        "length. Default: embeddings of tokens drawn at random, for images random numbers.",
    )


class MultitaskPromptTuning(PromptMethod):
    """A prompt of a shared part and two vectors of the task."""

    name = "multitask-prompt-tuning"
    summary = "A shared prompt, scaled by two vectors of the task; starts from prompts of earlier tasks."
    update_rule = "logits = model([S * (u v^T); E(x)]): E and the model are frozen, S (k x width), u and v are trained"
    paper = Paper(
        title="Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning",
        authors="Wang, Panda, Karlinsky, Feris, Sun, Kim",
        year=2023,
        url="https://arxiv.org/abs/2303.02861",
    )
    Options = Options
    path_options = frozenset({"sources"})
    encoder = "factorized"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        return {**prompt_train_defaults(facts), "method.length": length_default(facts)}

    def prompt_parameters(self, width: int) -> int:
        return self.length * width + self.length + width

    def start(self, model: nn.Module, place: InputPlace) -> Tensor:
        from ftkit.methods.parts.prompts import sampled_start

        return sampled_start(model, place, self.length)

    def training_begins(self, model: nn.Module, total_steps: int) -> None:
        """Sources are read here and not in `apply`, because a finished run must load without them."""
        import torch

        from ftkit.methods.parts.prompts import prompt_of
        from ftkit.tuners.prompt_transfer import factors_to_start_from

        if self.options.sources is None:
            return
        prompt: Any = prompt_of(model)
        values = factors_to_start_from(self.options.sources, prompt.length, prompt.width)
        with torch.no_grad():
            for parameter, value in zip((prompt.shared, prompt.rows, prompt.columns), values, strict=True):
                parameter.copy_(value)
