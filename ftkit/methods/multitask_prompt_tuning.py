"""Multitask prompt tuning: a prompt that tasks share, scaled by two vectors of each task.

    logits = model([P_t; E(x)]),   P_t = S * (u_t v_t^T) elementwise,   S: k x width, u_t: k, v_t: width, all trained

Source training (`source_column`): the rows are of several tasks t, and each is read behind the prompt of its own. S learns what they
share. Parameters, for T tasks: k width + T (k + width), and the head.
Transfer to one task: a single u and v; with `sources`, S, u and v start from what earlier tasks learned: S and the means of u_t and v_t of
an adapter of several sources, or several saved prompts taken apart into one S and their own u and v by least squares
(`ftkit.tuners.prompt_transfer`), whose means are the start. Parameters: k width + k + width, and the head.
The paper also distills a teacher for each source task (section 3.1, losses on logits and hidden states); here each source's prompt learns
from its rows alone. Which source is seen how often is decided by the rows (`weight` of a data source), not by a mixing rate.
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
    """Length of the prompt, the tasks it comes from and those it is trained on."""

    length: Length = Field(
        "auto", description="Virtual tokens k. They take up positions of the model. auto: 100 for encoder-decoders, else 20."
    )
    sources: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="Folders of adapters that earlier runs of prompt-tuning, p-tuning or this method exported, with the same base and "
        "length; those trained with `source_column` count with all of their sources. Default: embeddings of tokens drawn at random, for "
        "images random numbers.",
    )
    source_column: str | None = Field(
        None,
        min_length=1,
        description="Column of the data that names the source (data set, task) of each row. Each source that the training rows name gets a "
        "prompt of its own out of the shared one; rows to evaluate and predict must name one of them. Default: one prompt for all rows.",
    )


class MultitaskPromptTuning(PromptMethod):
    """A prompt of a shared part and two vectors of each task."""

    name = "multitask-prompt-tuning"
    summary = (
        "A prompt that tasks share, scaled by two vectors of each; learned from several sources, or started from earlier ones."
    )
    update_rule = (
        "logits = model([S * (u_t v_t^T); E(x)]), t: source of x; E and the model are frozen, S (k x width), u_t, v_t are trained"
    )
    paper = Paper(
        title="Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning",
        authors="Wang, Panda, Karlinsky, Feris, Sun, Kim",
        year=2023,
        url="https://arxiv.org/abs/2303.02861",
    )
    Options = Options
    path_options = adapter_options = frozenset({"sources"})
    encoder = "factorized"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        return {**prompt_train_defaults(facts), "method.length": length_default(facts)}

    def prompt_parameters(self, width: int) -> int:
        return self.length * width + max(1, len(self.sources)) * (self.length + width)

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
