"""Diff pruning: a difference to every weight trains behind gates that close most of it; what is left is a sparse update.

    W' = W + z * w,   loss <- loss + lambda * E|z|_0,   z: hard-concrete gates for each number and (structured) each tensor

w starts at zero, the gates open. In the last share of the steps only the k largest |z w| of the whole model train on, without gates; the
others are zero (magnitude pruning and fixed-mask tuning). Whatever is evaluated before that has been pruned for the evaluation. The adapter
holds k values and their positions, like that of a FISH mask (`ftkit.tuners.sparse_change`).
Count, with n numbers in the weights and biases of the backbone's T tensors: 2 n + T in training (w, a gate each, a gate for each tensor;
unstructured 2 n), and the head; in the adapter k = density x n.
Source: Guo, Rush & Kim 2021, https://arxiv.org/abs/2012.07463; github.com/dguo98/DiffPruning
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ftkit.methods.base import AdapterMethod, Capabilities, Default, Paper
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

AUTHORS = "Guo et al. 2021, the authors' experiments and run_glue_diffpruning.py: BERT large on GLUE"
GATE_RATE = 0.1
"""Learning rate of the gates in the authors' code."""


class Options(Strict):
    """How sparse the difference gets, and how."""

    density: float = Field(0.005, gt=0, le=1, description="Share of the pretrained weights and biases that are changed in the end.")
    structured: bool = Field(
        True, description="One more gate for each weight matrix and bias, which closes it as a whole (structured diff pruning)."
    )
    sparsity_penalty: float = Field(
        1.25e-7, ge=0, description="lambda: weight of the expected number of changed numbers in the loss. 1.25e-7 in the paper."
    )
    gate_start: float = Field(5.0, description="Where the gates' parameters start; 5 is nearly open, as the authors have it.")
    gate_lr_ratio: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto", description="Learning rate of the gates as a multiple of that of the difference. auto: what gives the authors' 0.1."
    )
    fixed_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of the steps, at the end, in which only the chosen numbers train on. The authors: 3 of 6 epochs. 0: none; the "
        "difference is only pruned.",
    )
    embeddings: bool = Field(True, description="Change the embeddings, too, where no other layer shares them.")


class DiffPruning(AdapterMethod):
    """A difference to the weights that becomes sparse while it trains."""

    name = "diff-pruning"
    summary = "A difference to all weights, trained to be sparse."
    update_rule = (
        "W' = W + z * w: W is frozen, w and the gates z are trained under a penalty on open gates; the k largest of z w are kept"
    )
    paper = Paper(
        title="Parameter-Efficient Transfer Learning with Diff Pruning",
        authors="Guo, Rush, Kim",
        year=2021,
        url="https://arxiv.org/abs/2012.07463",
    )
    capabilities = Capabilities(adapter=True, merge=True)
    Options = Options
    known_to_peft = False
    prefix = "diff_pruning_"

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        self._last_with_gates = 0

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        rate = Default(value=1e-5, source=AUTHORS)
        if facts.narrow_encoder:
            source = "ftkit: the better of 1e-4 and 1e-3, MiniLM (width 384) on 210 rows of BBC News, 42 steps"
            rate = Default(value=1e-3, source=source)
        ratio = Default(value=GATE_RATE / rate.value, source=f"{AUTHORS}: 0.1 for the gates")
        epochs = Default(value=6.0, source=f"{AUTHORS}: 3 epochs with gates and 3 with a fixed mask")
        decay = Default(value=0.0, source=AUTHORS)
        found = {"train.learning_rate": rate, "train.epochs": epochs, "train.weight_decay": decay}
        return {**found, "method.gate_lr_ratio": ratio}

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.models.tensors import owners
        from ftkit.tuners.diff_pruning import DiffPruningConfig
        from ftkit.tuners.wrap import wrap

        tensors = self._tensors(layout)
        config = DiffPruningConfig(
            tensors=tensors,
            count=max(1, round(self.options.density * sum(tensors.values()))),
            structured=self.options.structured,
            gate_start=self.options.gate_start,
            target_modules=layout.suffixes(owners(tensors)),
        )
        return wrap(model, layout, config, self.declares)

    def parameter_count(self, layout: ModelLayout) -> int:
        from ftkit.tuners.wrap import head_parameter_count

        tensors = self._tensors(layout)
        groups = len(tensors) if self.options.structured else 0
        return 2 * sum(tensors.values()) + groups + head_parameter_count(layout)

    def _tensors(self, layout: ModelLayout) -> dict[str, int]:
        from ftkit.models.tensors import changeable_tensors

        return changeable_tensors(layout, embeddings=self.options.embeddings)

    def learning_rate_factor(self, name: str, layout: ModelLayout) -> float:
        ratio = self.options.gate_lr_ratio
        gate = f".{self.prefix}" in name and name.endswith((".gate", ".group"))
        return float(ratio) if gate and ratio != "auto" else 1.0

    # --- training --------------------------------------------------------------------------------------------------

    def training_begins(self, model: nn.Module, total_steps: int) -> None:
        self._last_with_gates = total_steps - int(self.options.fixed_share * total_steps)

    def extra_loss(self, model: nn.Module) -> Tensor | None:
        """lambda times the expected number of changed numbers, as long as there are gates."""
        import torch

        pruning = _pruning(model)
        if pruning.fixed is not None or not self.options.sparsity_penalty:
            return None
        counts = torch.stack([part.expected_count() for part in pruning.differences.values()])
        total: Tensor = counts.sum() * self.options.sparsity_penalty
        return total

    def after_step(self, model: nn.Module, step: int) -> None:
        _pruning(model).forget()
        if self.options.fixed_share and step == self._last_with_gates and _pruning(model).fixed is None:
            _pruning(model).fix()

    def state(self, model: nn.Module) -> Mapping[str, Tensor]:
        fixed = _pruning(model).fixed
        return {} if fixed is None else {"positions": fixed}

    def restore(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        pruning = _pruning(model)
        device = next(iter(pruning.differences.values())).difference.device
        pruning.fixed = state["positions"].to(device) if "positions" in state else None
        pruning.forget()

    def save_adapter(self, model: Any, folder: Path) -> None:
        """As the sparse change that is left."""
        from ftkit.tuners.sparse_change import write_sparse_change

        pruning = _pruning(model)
        write_sparse_change(model, pruning.positions(), pruning.values(), folder)


def _pruning(model: Any) -> Any:
    return model.base_model.prunings["default"]
