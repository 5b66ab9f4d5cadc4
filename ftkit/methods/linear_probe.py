"""Linear probe: the pretrained model is frozen and only the task head trains.

    y = head(f(x)),  head <- head - lr * AdamW(dL/dhead),  f frozen

The head is everything the task put on the backbone, and whatever else the checkpoint has no values for (BERT's pooler in many
checkpoints), so it is one linear layer or a small network as the model's class has it. Dropout stays as the model sets it.
Source: Alain & Bengio 2016, https://arxiv.org/abs/1610.01644
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ftkit.methods.base import Capabilities, Default, Method, Paper

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout
    from ftkit.tasks.base import Task

ADVICE = "A linear probe needs a task with a head (classification, tagging, span extraction); here use `lora`"


class LinearProbe(Method):
    """Only the task head trains."""

    name = "linear-probe"
    summary = "Only the task head trains."
    update_rule = "y = head(f(x)); head <- head - lr * AdamW(dL/dhead), the pretrained f is frozen"
    paper = Paper(
        title="Understanding intermediate layers using linear classifier probes",
        authors="Alain, Bengio",
        year=2016,
        url="https://arxiv.org/abs/1610.01644",
    )
    capabilities = Capabilities(adapter=False, merge=True)

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        measured = "measured: all-MiniLM-L6-v2, 1,200 BBC articles, batch 16, accuracy after 10 epochs "
        rates = "0.825 at 1e-3, 0.880 at 3e-3, 0.908 at 1e-2; the middle, as heads of several layers bear less"
        epochs = "at 3e-3 0.880, after 3 epochs 0.817"
        return {
            "train.learning_rate": Default(value=3e-3, source=measured + rates),
            "train.epochs": Default(value=10.0, source=measured + epochs),
            "train.weight_decay": Default(value=0.0, source="ftkit: a probe has few parameters and needs no penalty"),
        }

    def task_refusal(self, task: Task, facts: ModelFacts) -> str:
        if not (task.pretrained_head and facts.tied):
            return ""
        return f"{facts.model_type} as a language model has no head of its own: its output layer is its token embeddings. {ADVICE}"

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.errors import ModelError
        from ftkit.models.trainable import train_only

        names = layout.head_parameters()
        if not names:
            raise ModelError(
                f"{layout.architecture} has no head of its own: its output layer shares its weights with the embeddings",
                hint=ADVICE,
            )
        return train_only(model, names, layout)

    def declares(self, name: str, layout: ModelLayout) -> bool:
        return name in layout.head_parameters()

    def parameter_count(self, layout: ModelLayout) -> int:
        sizes = {name: parameter.numel() for name, parameter in layout.model.named_parameters()}
        return sum(sizes[name] for name in layout.head_parameters())
