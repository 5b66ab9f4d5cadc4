"""AdapterFusion as a PEFT tuner: at each place, attention over the outputs of several trained, frozen adapters.

    F(x) = sum_k p_k V A_k(x),   p = softmax_k((Q x + b) . K A_k(x))

F stands where a single adapter A would (see `ftkit.tuners.bottleneck`); x is the adapter's input there: with Pfeiffer's placement the
normed output of the feed-forward part. V starts as the identity (1e-6 beside the diagonal), Q and K as N(0, 0.02), as in AdapterHub.
The members are part of the fusion: they are saved with it. Source: Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247, section 3.2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.utils import PeftType
from torch import Tensor, nn

from ftkit.tuners.adapter import AdapterConfig, AdapterModel
from ftkit.tuners.bottleneck import BERT_SCALE, AdapterLayer
from ftkit.tuners.compacter import CompacterConfig, phm_bottleneck

OFF_DIAGONAL = 1e-6


@dataclass
class AdapterFusionConfig(AdapterConfig):
    """Config of a fusion. Places are those of its members.

    members: for each member the fields of its own config that shape it; those with `kronecker_terms` are Compacter adapters.
    dropout: on the attention scores.
    """

    members: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["ADAPTER_FUSION"]


class FusedAdapters(nn.Module):
    """Attention over frozen adapters: (..., width) -> (..., width)."""

    def __init__(self, members: Sequence[nn.Module], width: int, dropout: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members).requires_grad_(False)
        self.query = nn.Linear(width, width)
        # AdapterHub's keys have a bias; it adds the same to all scores and so changes nothing.
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=BERT_SCALE)
        nn.init.zeros_(self.query.bias)
        nn.init.constant_(self.value.weight, OFF_DIAGONAL)
        with torch.no_grad():
            self.value.weight.diagonal().fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the model's own activations."""
        inputs = x.to(self.value.weight.dtype)
        outputs = torch.stack([member(inputs) for member in self.members], dim=-2)
        scores = (self.key(outputs) @ self.query(inputs).unsqueeze(-1)).squeeze(-1)
        shares = self.dropout(scores).softmax(dim=-1)
        return (shares.unsqueeze(-2) @ self.value(outputs)).squeeze(-2).to(x.dtype)

    def distance_from_identity(self) -> Tensor:
        """The sum of squares of V - I."""
        identity = torch.eye(self.value.weight.shape[0], device=self.value.weight.device)
        return (self.value.weight - identity).square().sum()


class AdapterFusionLayer(AdapterLayer):
    """A module of the model with a fusion of adapters."""

    adapter_layer_names: tuple[str, ...] = ("adapter_fusion_parts",)

    def _freeze_non_trainable_peft_weights(self, adapter_names: Any = None) -> None:
        """Called by PEFT wherever it has made adapters trainable: the members never are."""
        for fusion in fusions(self):
            fusion.members.requires_grad_(False)


class AdapterFusionModel(AdapterModel):
    """Puts fusions of adapters into a model."""

    prefix = "adapter_fusion_"
    tuner_layer_cls = AdapterFusionLayer

    def make_adapter(self, config: Any, adapter_name: str, width: int) -> nn.Module:
        """The fusion for one place; its members get their values from files."""
        members = [self._member(fields, width) for fields in config.members]
        return FusedAdapters(members, width, config.dropout)

    def _member(self, fields: dict[str, Any], width: int) -> nn.Module:
        if "kronecker_terms" in fields:
            return phm_bottleneck(CompacterConfig(**fields), width, None)
        return super().make_adapter(AdapterConfig(**fields), "", width)


def fusions(model: nn.Module) -> Iterator[FusedAdapters]:
    """All fusions in a model, in its order."""
    return (module for module in model.modules() if isinstance(module, FusedAdapters))
