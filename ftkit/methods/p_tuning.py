"""P-tuning: a prompt that comes out of a small trained network, which makes its vectors depend on each other.

    logits = model([P; E(x)]),   P = f(D),   D: k x width and f trained: f an LSTM with an MLP behind it, or an MLP

Only P is saved: after training it is a prompt like that of prompt tuning. The paper puts its virtual tokens into a template that a
person writes; here they stand in front. Parameters, with h the size of the network and d the width:
    mlp    k d + (d h + h) + (h h + h) + (h d + d)
    lstm   k d + 2 * 4h (d + h + 2) + 2 * 4h (2h + h + 2) + (2h * 2h + 2h) + (2h d + d)
and the head.
Source: Liu et al. 2021 (GPT Understands, Too), https://arxiv.org/abs/2103.10385, section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from ftkit.methods.base import Default, Paper
from ftkit.methods.parts.prompts import Length, PromptMethod, length_default
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from ftkit.models.facts import ModelFacts


class Options(Strict):
    """Length of the prompt and the network that makes it."""

    length: Length = Field(
        "auto", description="Virtual tokens k. They take up positions of the model. auto: 100 for encoder-decoders, else 20."
    )
    network: Literal["lstm", "mlp"] = Field(
        "lstm", description="lstm: two bidirectional layers along the prompt and two linear ones. mlp: three linear layers."
    )
    hidden_size: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="Size of the network's hidden layers, of the LSTM in each direction. auto: lstm half the model's width, mlp all.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout between the two layers of the LSTM.")

    @model_validator(mode="after")
    def _dropout_where_it_counts(self) -> Options:
        if self.dropout and self.network == "mlp":
            raise ValueError("dropout has no effect with `network: mlp`")
        return self


class PTuning(PromptMethod):
    """A prompt out of a small network."""

    name = "p-tuning"
    summary = "A prompt in front of the embedded input, made by a small trained network."
    update_rule = (
        "logits = model([f(D); E(x)]): E and the model are frozen, D (k x width) and the network f are trained, f(D) is kept"
    )
    paper = Paper(
        title="GPT Understands, Too",
        authors="Liu, Zheng, Du, Ding, Qian, Yang, Tang",
        year=2021,
        url="https://arxiv.org/abs/2103.10385",
    )
    Options = Options

    @property
    def encoder(self) -> str:
        return str(self.options.network)

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        return {**_train_defaults(facts), "method.length": length_default(facts), **self._network_default(facts)}

    def _network_default(self, facts: ModelFacts) -> dict[str, Default]:
        if not facts.hidden_size:
            return {}
        source = "the authors' prompt_encoder.py (github.com/THUDM/P-tuning): half the model's width in each direction"
        if self.options.network == "mlp":
            source = "PEFT's method comparison, P-tuning: the model's width"
        return {"method.hidden_size": Default(value=self.network_size(facts.hidden_size), source=source)}

    def network_size(self, width: int) -> int:
        if self.options.hidden_size != "auto":
            return int(self.options.hidden_size)
        return width if self.options.network == "mlp" else max(1, width // 2)

    def prompt_parameters(self, width: int) -> int:
        hidden = self.network_size(width)
        if self.options.network == "mlp":
            network = (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width
        else:
            recurrent = 8 * hidden * (width + hidden + 2) + 8 * hidden * (3 * hidden + 2)
            network = recurrent + (2 * hidden + 1) * 2 * hidden + (2 * hidden + 1) * width
        return self.length * width + network


def _train_defaults(facts: ModelFacts) -> dict[str, Default]:
    guide = "PEFT's P-tuning guide (RoBERTa large on MRPC)"
    rate = Default(value=1e-3, source=guide)
    if facts.narrow_encoder:
        rate = Default(value=2e-2, source="ftkit: best of 1e-3, 5e-3 and 2e-2 after 36 steps, MiniLM (width 384) on BBC News")
    epochs = {} if facts.kind == "decoder" else {"train.epochs": Default(value=20.0, source=guide)}
    return {"train.learning_rate": rate, **epochs}
