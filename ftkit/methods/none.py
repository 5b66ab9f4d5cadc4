"""No tuning: the model as it was published, evaluated like any other run. The baseline that every method has to beat.

    y = f(x),  nothing is trained

What can be had by words alone goes into the task's own options: `system` and few-shot examples of instruction tuning, `prefix` of seq2seq.
Source: the zero-shot setting of Brown et al. 2020 (GPT-3), section 2, https://arxiv.org/abs/2005.14165
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


class Untuned(Method):
    """Nothing trains."""

    name = "none"
    summary = "Nothing trains: the untouched model, as a baseline."
    update_rule = "y = f(x); nothing is trained"
    paper = Paper(
        title="Language Models are Few-Shot Learners",
        authors="Brown, Mann, Ryder, Subbiah et al.",
        year=2020,
        url="https://arxiv.org/abs/2005.14165",
    )
    capabilities = Capabilities(adapter=False, merge=True, quantized=True, trains=False)

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        return {"train.learning_rate": Default(value=1.0, source="ftkit: nothing is trained, so no rate is used")}

    def task_refusal(self, task: Task, facts: ModelFacts) -> str:
        if facts.decoder_path is not None:
            return "nothing is trained, and the cross-attention between the two models of `model.decoder` is new and random"
        if facts.only_pretrained and not task.pretrained_head:
            names = ", ".join(facts.architectures)
            return f"nothing is trained, and a head for {task.name} would be random: the checkpoint is a {names}. Use one that has the head"
        return ""

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.models.trainable import check_fresh

        check_fresh(layout, ())
        return model.requires_grad_(False)

    def declares(self, name: str, layout: ModelLayout) -> bool:
        return False

    def parameter_count(self, layout: ModelLayout) -> int:
        """0."""
        return 0
