"""FISH mask: only the numbers of the model with the largest Fisher information train, wherever they lie; the mask stays as it is.

    w[p_i] <- w[p_i] + v_i,   v_i trained, zero at first;   p = the k positions with the largest F = sum over batches of (dL/dw)^2

F is the empirical Fisher information, from the labels of the training data, found once before training on some of its batches. The paper
squares the gradient of each example; here it is that of the mean loss of a batch, which costs one backward pass for a batch. The head
trains as a whole. The trained vector v and the positions p are a PEFT adapter of ftkit's own (`ftkit.tuners.sparse_change`).
Count: k = density x (numbers in the weights and biases of the backbone's layers), rounded, and the head.
Source: Sung, Nair & Raffel 2021, https://arxiv.org/abs/2111.09839; github.com/varunnair18/FISH
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ftkit.methods.base import AdapterMethod, Capabilities, Default, Paper, weight_training_defaults
from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

AUTHORS = "Sung et al. 2021, the authors' run_sparse_updates.sh and lib.sh: BERT large on GLUE"


class Options(Strict):
    """How many numbers train, and how they are chosen."""

    density: float = Field(
        0.005, gt=0, le=1, description="Share of the numbers of the pretrained weights and biases that train. 0.005 in the paper."
    )
    selection: Literal["global", "per-tensor"] = Field(
        "global",
        description="global: the largest of the whole model, as in the paper. per-tensor: the same share of each weight and bias.",
    )
    batches: int = Field(
        64,
        ge=1,
        description="Training batches that the Fisher information is found on, at most those of one epoch. The authors take 1,024 rows, "
        "64 batches of 16; fewer do nearly as well.",
    )
    embeddings: bool = Field(True, description="Choose among the numbers of the embeddings, too, where no other layer shares them.")


class FishMask(AdapterMethod):
    """A trained addition to the numbers that matter most."""

    name = "fish-mask"
    summary = "The few numbers of the model with the largest Fisher information train."
    update_rule = (
        "w[p_i] + v_i: w is frozen, the k values v are trained and zero at first, the k positions p are found before training"
    )
    paper = Paper(
        title="Training Neural Networks with Fixed Sparse Masks",
        authors="Sung, Nair, Raffel",
        year=2021,
        url="https://arxiv.org/abs/2111.09839",
    )
    capabilities = Capabilities(shardable=False, adapter=True, merge=True)
    Options = Options
    known_to_peft = False
    prefix = "sparse_change_"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        found = weight_training_defaults(facts)
        if facts.kind == "encoder":
            found["train.epochs"] = Default(value=7.0, source=AUTHORS)
            found["train.learning_rate"] = Default(value=5e-5, source=AUTHORS)
        if facts.narrow_encoder:
            source = "ftkit: the better of 1e-4 and 1e-3, MiniLM (width 384) on 210 rows of BBC News, 42 steps"
            found["train.learning_rate"] = Default(value=1e-3, source=source)
        return found

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.models.tensors import owners
        from ftkit.tuners.sparse_change import SparseChangeConfig
        from ftkit.tuners.wrap import wrap

        tensors = self._tensors(layout)
        config = SparseChangeConfig(
            tensors=tensors, count=kept_count(tensors, self.options.density), target_modules=layout.suffixes(owners(tensors))
        )
        return wrap(model, layout, config, self.declares)

    def parameter_count(self, layout: ModelLayout) -> int:
        from ftkit.tuners.wrap import head_parameter_count

        return kept_count(self._tensors(layout), self.options.density) + head_parameter_count(layout)

    def _tensors(self, layout: ModelLayout) -> dict[str, int]:
        from ftkit.models.tensors import changeable_tensors

        return changeable_tensors(layout, embeddings=self.options.embeddings)

    # --- before training -------------------------------------------------------------------------------------------

    def batches_before_training(self) -> int:
        return int(self.options.batches)

    def prepare(self, model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> None:
        from ftkit.tuners.fisher import fisher_information, largest

        part = _part(model)
        information = fisher_information(model, part.order, losses)
        per_tensor = self.options.selection == "per-tensor"
        part.choose(largest(information, len(part.values), part.order if per_tensor else None))

    def state(self, model: nn.Module) -> Mapping[str, Tensor]:
        return {"positions": _part(model).positions}

    def restore(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        part = _part(model)
        part.choose(state["positions"].to(part.positions.device))


def kept_count(tensors: Mapping[str, int], density: float) -> int:
    """How many of the numbers of the tensors a density stands for, at least 1."""
    return max(1, round(density * sum(tensors.values())))


def _part(model: Any) -> Any:
    return model.base_model.sparse_change_parts["default"]
