"""Full fine-tuning: every parameter of the model trains.

    W <- W - lr * AdamW(dL/dW)   for every W

Source: Devlin et al. 2019 (BERT), section 3.2, https://aclanthology.org/N19-1423
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ftkit.methods.base import Capabilities, Default, Method, Paper, weight_training_defaults

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout


class Full(Method):
    """Every parameter trains, except position tables that hold a formula (sinusoids)."""

    name = "full"
    summary = "Every parameter trains."
    update_rule = "W <- W - lr * AdamW(dL/dW) for every parameter W"
    paper = Paper(
        title="BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
        authors="Devlin, Chang, Lee, Toutanova",
        year=2019,
        url="https://aclanthology.org/N19-1423",
    )
    capabilities = Capabilities(adapter=False, merge=True, from_scratch=True)

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        return weight_training_defaults(facts)

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.models.trainable import fixed_parameters, train_only

        return train_only(model, {name for name, _ in model.named_parameters()} - fixed_parameters(model), layout)

    def declares(self, name: str, layout: ModelLayout) -> bool:
        from ftkit.models.trainable import fixed_parameters

        return name not in fixed_parameters(layout.model)

    def parameter_count(self, layout: ModelLayout) -> int:
        return sum(parameter.numel() for name, parameter in layout.model.named_parameters() if self.declares(name, layout))
