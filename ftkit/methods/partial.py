"""Partial fine-tuning: some parts of the pretrained model train as they are, the rest is frozen.

    W <- W - lr * AdamW(dL/dW)   for W in the chosen parts and the head

Source: Lee, Tang & Lin 2019, "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning",
https://arxiv.org/abs/1911.03090
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, model_validator

from ftkit.methods.base import (
    BlockRanges,
    Capabilities,
    Default,
    Method,
    Paper,
    block_numbers,
    range_refusal,
    weight_training_defaults,
)
from ftkit.patterns import check_pattern, matching
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout


class Options(Strict):
    """Which parts train: by `top_blocks`, `blocks` or `pattern` (one of them), plus what `embeddings` and `norms` add."""

    top_blocks: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto",
        description="Number of top blocks; in an encoder-decoder so many of each. auto: a quarter of the blocks.",
    )
    blocks: BlockRanges | None = Field(
        None,
        description="Instead of `top_blocks`: block numbers and ranges, `[0-3, 10]`, from 0; decoder blocks follow encoder blocks.",
    )
    pattern: Annotated[str, Field(min_length=1), AfterValidator(check_pattern)] | None = Field(
        None, description="Instead of `top_blocks`: regular expression found in the names of the parameters to train."
    )
    embeddings: bool = Field(False, description="Train the embeddings, too.")
    norms: bool = Field(False, description="Train all layer norms, too.")

    @model_validator(mode="after")
    def _one_choice(self) -> Options:
        given = [name for name in ("blocks", "pattern") if getattr(self, name) is not None]
        if self.top_blocks != "auto":
            given.insert(0, "top_blocks")
        if len(given) > 1:
            raise ValueError(f"give one of top_blocks, blocks and pattern, not {' and '.join(given)}")
        return self


class Partial(Method):
    """Chosen blocks or parameters train, and the head always does."""

    name = "partial"
    summary = "Chosen blocks or parameters train; the rest is frozen."
    update_rule = "W <- W - lr * AdamW(dL/dW) for W in the chosen blocks and the head; all else is frozen"
    paper = Paper(
        title="What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning",
        authors="Lee, Tang, Lin",
        year=2019,
        url="https://arxiv.org/abs/1911.03090",
    )
    capabilities = Capabilities(adapter=False, merge=True)
    Options = Options
    _chosen_names: tuple[ModelLayout, frozenset[str]] | None = None

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        return weight_training_defaults(facts) | self._default_blocks(facts)

    def _default_blocks(self, facts: ModelFacts) -> dict[str, Default]:
        if self.options.blocks is not None or self.options.pattern is not None or not facts.block_count:
            return {}
        # An encoder-decoder's block count is that of both stacks.
        count = _quarter(facts.block_count // (2 if facts.kind == "encoder-decoder" else 1))
        source = "Lee et al. 2019: a quarter of the blocks reaches 90 % of the quality of all"
        return {"method.top_blocks": Default(value=count, source=source)}

    def refusal(self, facts: ModelFacts) -> str:
        if self.options.blocks is not None:
            return range_refusal(self.options.blocks, facts.block_count)
        top = self.options.top_blocks
        if top != "auto" and 0 < facts.block_count < top:
            return f"top_blocks: {top} is more than the {facts.block_count} blocks that the model has"
        return ""

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.models.trainable import train_only

        return train_only(model, self._names(layout), layout)

    def declares(self, name: str, layout: ModelLayout) -> bool:
        return name in self._names(layout)

    def parameter_count(self, layout: ModelLayout) -> int:
        names = self._names(layout)
        return sum(parameter.numel() for name, parameter in layout.model.named_parameters() if name in names)

    def _names(self, layout: ModelLayout) -> frozenset[str]:
        if self._chosen_names is None or self._chosen_names[0] is not layout:
            self._chosen_names = layout, self._choose(layout)
        return self._chosen_names[1]

    def _choose(self, layout: ModelLayout) -> frozenset[str]:
        from ftkit.models.trainable import fixed_parameters

        names = self._matching(layout) if self.options.pattern is not None else self._in_blocks(layout)
        if self.options.embeddings:
            names |= set(layout.embedding_parameters())
        if self.options.norms:
            norms = set(layout.norms())
            names |= {name for name in _parameter_names(layout) if name.rpartition(".")[0] in norms}
        return frozenset(names | set(layout.head_parameters())) - fixed_parameters(layout.model)

    def _matching(self, layout: ModelLayout) -> set[str]:
        from ftkit.errors import ModelError

        names = set(matching(self.options.pattern, _parameter_names(layout), whole=False, key="method.pattern"))
        if not names:
            some = ", ".join(_parameter_names(layout)[:: max(1, len(_parameter_names(layout)) // 5)][:5])
            raise ModelError(f"method.pattern: no parameter matches {self.options.pattern!r}", hint=f"Some names: {some}")
        return names

    def _in_blocks(self, layout: ModelLayout) -> set[str]:
        prefixes = tuple(f"{layout.blocks[number].name}." for number in self._chosen(layout))
        return {name for name in _parameter_names(layout) if name.startswith(prefixes)}

    def _chosen(self, layout: ModelLayout) -> list[int]:
        """Numbers of the blocks that train. Raises ModelError if the model has not so many."""
        from ftkit.errors import ModelError

        if self.options.blocks is not None:
            if reason := range_refusal(self.options.blocks, len(layout.blocks)):
                raise ModelError(f"method.blocks: {reason}")
            return block_numbers(self.options.blocks)
        stacks: dict[str, list[int]] = {}
        for block in layout.blocks:
            stacks.setdefault(block.stack if block.stack in ("encoder", "decoder") else "", []).append(block.index)
        numbers: list[int] = []
        for stack, indices in stacks.items():
            count = _quarter(len(indices)) if self.options.top_blocks == "auto" else self.options.top_blocks
            if count > len(indices):
                where = f"the {stack}" if stack else "the model"
                raise ModelError(f"method.top_blocks: {where} has {len(indices)} blocks, fewer than {count}")
            numbers += indices[len(indices) - count :]
        return numbers


def _quarter(count: int) -> int:
    return max(1, ceil(count / 4))


def _parameter_names(layout: ModelLayout) -> list[str]:
    return [name for name, _ in layout.model.named_parameters()]
