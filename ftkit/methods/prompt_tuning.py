"""Prompt tuning: trained vectors in front of the embedded text; the model itself is frozen.

    logits = model([P; E(x)]),   P: k x width, trained,   P = rows of E at first

The positions of the prompt are taken out again before poolers and heads, so that outputs stay aligned with the input. Images get
the prompt after their position embeddings (visual prompt tuning, VPT-shallow). In an encoder-decoder the encoder gets it, and the
decoder looks at it. Parameters: k width, and the head.
Sources: Lester, Al-Rfou & Constant 2021, https://arxiv.org/abs/2104.08691; Jia et al. 2022 (VPT), https://arxiv.org/abs/2203.12119.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ftkit.methods.base import Default, Paper
from ftkit.methods.parts.prompts import Length, PromptMethod, length_default, prompt_train_defaults
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.stacks import InputPlace


class Options(Strict):
    """Length and start of the prompt."""

    length: Length = Field(
        "auto", description="Virtual tokens k. They take up positions of the model. auto: 100 for encoder-decoders, else 20."
    )
    init: Literal["random", "vocabulary", "text"] | Auto = Field(
        "auto",
        description="What the prompt is at first. vocabulary: embeddings of tokens drawn at random. text: those of `init_text`. random: "
        "normal numbers as large as embeddings are, for images uniform ones. auto: vocabulary, for images random.",
    )
    init_text: str | None = Field(
        None,
        min_length=1,
        description="init: text. Its tokens, without special ones, over and over until the prompt is full. Names of labels do well.",
    )

    @model_validator(mode="after")
    def _text_where_it_counts(self) -> Options:
        if self.init == "text" and self.init_text is None:
            raise ValueError("init: text needs `init_text`")
        if self.init != "text" and self.init_text is not None:
            raise ValueError("init_text has no effect without `init: text`")
        return self


class PromptTuning(PromptMethod):
    """A trained prompt."""

    name = "prompt-tuning"
    summary = "Trained vectors in front of the embedded input."
    update_rule = "logits = model([P; E(x)]): E and the model are frozen, P (k x width) is trained, rows of E at first"
    paper = Paper(
        title="The Power of Scale for Parameter-Efficient Prompt Tuning",
        authors="Lester, Al-Rfou, Constant",
        year=2021,
        url="https://arxiv.org/abs/2104.08691",
    )
    Options = Options
    encoder = "none"

    _processor: Any = None

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        start = Default(value="vocabulary", source="Lester et al. 2021, section 3.2: better than random at every size below XXL")
        if facts.kind == "vision":
            start = Default(value="random", source="Jia et al. 2022 (VPT), the authors' vit_prompt/vit.py")
        return {**prompt_train_defaults(facts), "method.length": length_default(facts), "method.init": start}

    def refusal(self, facts: ModelFacts) -> str:
        if facts.kind == "vision" and self.options.init in ("vocabulary", "text"):
            return f"init: {self.options.init} takes embeddings of tokens, and images have none; use `init: random`"
        return super().refusal(facts)

    def take_processor(self, processor: Any) -> None:
        self._processor = processor

    def prompt_parameters(self, width: int) -> int:
        return self.length * width

    def start(self, model: nn.Module, place: InputPlace) -> Tensor:
        import torch

        from ftkit.methods.parts.prompts import embedding_count, embedding_rows, sampled_start

        count = embedding_count(model, place)
        if count is None or self.options.init not in ("text", "random"):
            return sampled_start(model, place, self.length)
        if self.options.init == "text":
            return embedding_rows(model, place, self._text_tokens())
        spread = embedding_rows(model, place, torch.arange(min(count, 5000))).std()
        return torch.randn(self.length, place.width) * spread

    def _text_tokens(self) -> Tensor:
        """Ids of `init_text`, as many as the prompt is long."""
        import torch

        from ftkit.errors import ModelError, Problem

        if self._processor is None:
            raise ModelError("init: text needs the model's tokenizer", hint="Call take_processor(tokenizer) before apply")
        ids = self._processor(self.options.init_text, add_special_tokens=False)["input_ids"]
        if not ids:
            message = f"the tokenizer makes no token of {self.options.init_text!r}"
            raise ModelError(Problem(message=message, key="method.init_text", hint="Write words"))
        return torch.tensor((ids * -(-self.length // len(ids)))[: self.length])
