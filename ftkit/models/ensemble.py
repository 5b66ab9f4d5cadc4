"""Several trained states of one model that answer together (Lester et al. 2021, section 6: prompt ensembling).

The base is in memory once; what was trained is put in place for each member in turn, which for prompts is a few kilobytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftkit.models.trainable import load_trainable

TIE = 1e-3
"""Weight of the mean probability beside votes: it orders classes with equally many votes and no others."""


class Ensemble(nn.Module):
    """A model whose logits are those of its members together.

    model: in evaluation mode. states: of each member what `trainable_state` gave; another set of names or shapes raises ModelError when
    it is put in place. votes: whether each member has one vote for a class (the last dimension of `logits`) instead of its logits
    being averaged; softmax of the result is then the share of the votes.
    """

    def __init__(self, model: nn.Module, states: Sequence[Mapping[str, Tensor]], *, votes: bool) -> None:
        super().__init__()
        self.model, self.states, self.votes = model, states, votes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the last member, with the logits (`logits`, `start_logits` ...) of all."""
        members = []
        for state in self.states:
            load_trainable(self.model, state)
            members.append(self.model(*args, **kwargs))
        together = members[-1]
        for name in [name for name in together if name.endswith("logits")]:
            logits = torch.stack([outputs[name].float() for outputs in members])
            together[name] = voted(logits) if self.votes else logits.mean(0)
        return together

    def __getattr__(self, name: str) -> Any:
        """What tasks ask of a model (its config) is that of the members."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)


def voted(logits: Tensor) -> Tensor:
    """Logits (members, ..., classes) as the logarithm of the share of votes for each class (..., classes)."""
    probabilities = logits.softmax(-1)
    votes = nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(probabilities.dtype)
    return ((votes.mean(0) + TIE * probabilities.mean(0)) / (1 + TIE)).log()
