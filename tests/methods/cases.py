"""What the contract suite runs: every method that the registry finds, on every family of models that it does not refuse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ftkit.methods.base import Method
from ftkit.models.facts import ModelFacts, facts_of_config
from ftkit.models.layout import ModelLayout
from ftkit.registry import METHODS
from tests.tiny import FAMILIES, HIDDEN_SIZE, tiny_config, tiny_model

SOME = ("bert", "gpt2", "t5")
VARIANTS: Mapping[str, list[tuple[dict[str, Any], tuple[str, ...]]]] = {
    "bitfit": [({}, tuple(FAMILIES)), ({"subset": "query-ffn"}, ("bert", "bart", "qwen2"))],
    "lora": [
        ({}, tuple(FAMILIES)),
        ({"targets": "all-linear", "rslora": True, "rank": 3, "alpha": 5.0}, ("roberta", "gpt2", "bart", "vit")),
        ({"dora": True, "dropout": 0.1, "targets": ["re:.*(query|c_attn|SelfAttention.o)"]}, SOME),
        ({"init": "pissa", "rank": 4, "targets": "all-linear"}, SOME),
        ({"init": "orthogonal", "rank": 4, "blocks": [1]}, SOME),
        ({"init": "gaussian", "targets": ["ffn_in", "key"]}, SOME),
    ],
    "partial": [
        ({}, tuple(FAMILIES)),
        ({"blocks": ["0"], "norms": True}, ("bert", "bart", "llama")),
        ({"pattern": "bias$", "embeddings": True}, ("bert", "vit")),
    ],
}
"""Options to try beside the families to try them on. A method that is not listed is tried without options on all families."""

CHANGE_THE_BASE = {"lora init=pissa"}
"""Cases whose adapters move part of the base's weights, so that no second adapter can share the base."""


@dataclass(frozen=True)
class Case:
    """One method with some options on one family."""

    method: str
    options: tuple[tuple[str, Any], ...]
    family: str

    def __str__(self) -> str:
        return " ".join([self.method, *(f"{name}={value}" for name, value in self.options), self.family])

    @property
    def shares_base(self) -> bool:
        parts = [f"{self.method} {name}={value}" for name, value in self.options]
        return CHANGE_THE_BASE.isdisjoint(parts)


@cache
def facts_of(family: str) -> ModelFacts:
    return facts_of_config(tiny_config(family).to_dict(), None)


def make_method(name: str, options: Mapping[str, Any], family: str) -> Method:
    """The method as a plan makes it: each option left at `auto` is filled in."""
    cls = METHODS.get(name)
    typed = cls.Options(**options)
    known = cls(typed).defaults(facts_of(family))
    fill = {key.removeprefix("method."): default.value for key, default in known.items() if key.startswith("method.")}
    return cls(typed.model_copy(update={key: value for key, value in fill.items() if getattr(typed, key) == "auto"}))


def method_of(case: Case) -> Method:
    return make_method(case.method, thawed(case.options), case.family)


def all_cases() -> list[Case]:
    return list(_cases())


def _cases() -> Iterator[Case]:
    for name in METHODS.names():
        for options, families in VARIANTS.get(name, [({}, tuple(FAMILIES))]):
            for family in families:
                if not make_method(name, options, family).refusal(facts_of(family)):
                    yield Case(name, frozen(options), family)


def frozen(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in options.items())


def thawed(options: tuple[tuple[str, Any], ...] | list[list[Any]]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options}


def fresh_model(family: str, head_seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, ModelLayout]:
    """A model as loaded from a checkpoint without a head (nor BERT's pooler): body the same each time, head from the seed."""
    model = tiny_model(family)
    fresh = {*ModelLayout(model).head_parameters(), *(name for name, _ in model.named_parameters() if ".pooler." in name)}
    body, head = torch.Generator().manual_seed(0), torch.Generator().manual_seed(head_seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The usual 0.02 gives a model this narrow the same output for every input.
            if name in fresh or parameter.ndim > 1:
                parameter.normal_(0, HIDDEN_SIZE**-0.5, generator=head if name in fresh else body)
    model = model.to(dtype).eval()
    return model, ModelLayout(model, fresh)


def batch_of(family: str) -> dict[str, Tensor]:
    """Four examples of a toy classification task."""
    generator = torch.Generator().manual_seed(7)
    if family == "vit":
        return {"pixel_values": torch.randn(4, 1, 8, 8, generator=generator)}
    tokens = torch.randint(7, 60, (4, 6), generator=generator)
    # BART reads the class off the one end token (id 5).
    return {"input_ids": torch.cat([tokens, torch.full((4, 1), 5)], dim=1), "attention_mask": torch.ones(4, 7, dtype=torch.long)}


LABELS = torch.tensor([0, 1, 2, 0])


def logits_of(model: nn.Module, family: str) -> Tensor:
    training = model.training
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(**batch_of(family)).logits
    model.train(training)
    return logits


def loss_of(model: nn.Module, family: str, inputs: dict[str, Tensor] | None = None) -> Tensor:
    return nn.functional.cross_entropy(model(**(inputs or batch_of(family))).logits.float(), LABELS)


def train(model: nn.Module, method: Method, family: str, steps: int, learning_rate: float = 1e-2) -> None:
    """Plain AdamW on the toy batch, with the method's own hooks."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.0)
    model.train()
    for step in range(1, steps + 1):
        extra = method.extra_loss(model)
        loss = loss_of(model, family) + (0 if extra is None else extra)
        loss.backward()
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
    model.eval()
