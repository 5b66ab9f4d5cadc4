"""AdaLoRA: LoRA in the form of a singular value decomposition; ranks go to the layers where they matter most.

    y = W x + s P diag(e) Q x,   s = alpha / r0,   P: out x r0, Q: r0 x in, e: r0 values, zero at first
    loss <- loss + g * mean over all P and Q of |Q Q' - I|, |P' P - I|                 (Frobenius norm)

Each triplet (a column of P, a value of e, a row of Q) has a score: that of its value plus the means of those of its row and column,
where the score of a weight w is the product of two running means, of i = |w dL/dw| and of |i - mean of i|. The number of triplets
that stay, over all layers, falls by a cubic law from r0 to `rank` for each layer; the values of the others are set to zero.
Number of parameters: r0 (in + out + 1) for each layer while it trains.
Source: Zhang et al. 2023, https://arxiv.org/abs/2303.10512, equations 3 to 12 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from ftkit.methods.base import Capabilities, Default, Paper, encoder_epochs
from ftkit.methods.parts.targets import (
    BLOCKS_TEXT,
    BlockRanges,
    TargetChoice,
    TargetedMethod,
    all_conv1d,
    targets_text,
)
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from peft import AdaLoraConfig
    from torch import Tensor, nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

AUTHORS = "the authors' scripts (github.com/QingruZhang/AdaLoRA)"


class Options(Strict):
    """Size, place and schedule of the updates."""

    rank: int = Field(8, ge=1, description="Mean rank of an update at the end.")
    initial_rank: Annotated[int, Field(ge=2)] | Auto = Field(
        "auto", description="Rank r0 of every update at first, above `rank`. auto: 1.5 times `rank`, rounded up."
    )
    alpha: Annotated[float, Field(gt=0)] | Auto = Field("auto", description="The update is scaled by alpha / initial_rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the update.")
    targets: TargetChoice = Field("auto", description=targets_text("all-linear"))
    blocks: BlockRanges | None = Field(None, description=BLOCKS_TEXT)
    orthogonality: float = Field(0.1, ge=0, description="Weight g of the penalty that keeps P and Q orthogonal.")
    initial_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the optimizer steps before the first rank is taken away.")
    final_ratio: float = Field(0.5, ge=0, lt=1, description="Share of the optimizer steps, at the end, with the final ranks.")
    interval: int = Field(1, ge=1, description="Optimizer steps from one allocation of ranks to the next.")
    beta1: float = Field(0.85, gt=0, lt=1, description="Decay of the running mean of the importance of a weight.")
    beta2: float = Field(0.85, gt=0, lt=1, description="Decay of the running mean of its uncertainty.")

    @model_validator(mode="after")
    def _shrinks(self) -> Options:
        if self.initial_rank != "auto" and self.initial_rank <= self.rank:
            raise ValueError(f"initial_rank must be above rank, which is {self.rank}, not {self.initial_rank}: ranks only fall")
        if self.initial_ratio + self.final_ratio >= 1:
            raise ValueError("initial_ratio and final_ratio leave no steps for the ranks to fall; their sum must be below 1")
        return self


class AdaLoRA(TargetedMethod):
    """Low-rank updates whose ranks are allocated during training."""

    name = "adalora"
    summary = "Low-rank updates; ranks move to the layers where they matter most."
    update_rule = (
        "y = W x + (alpha / r0) P diag(e) Q x: W is frozen, P, e and Q are trained, the least important values of e become zero"
    )
    paper = Paper(
        title="AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
        authors="Zhang, Chen, Bukharin, Karampatziakis, He, Cheng, Chen, Zhao",
        year=2023,
        url="https://arxiv.org/abs/2303.10512",
    )
    capabilities = Capabilities(adapter=True, merge=True, quantized=True)
    Options = Options
    prefix = "lora_"
    # PEFT keeps r0 as a parameter, and on a half-precision base marks it as trainable.
    constants = ".ranknum."

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        all_linear = Default(value="all-linear", source="Zhang et al. 2023, section 4: every weight matrix of the blocks")
        initial = Default(value=self._initial_rank(), source="Zhang et al. 2023, section 4.1: 1.5 times the final budget")
        alpha = Default(value=32.0, source=f"{AUTHORS}: 32 for RTE, CoLA and XSum")
        return {
            "train.learning_rate": _learning_rate(facts),
            **encoder_epochs(facts),
            "method.initial_rank": initial,
            "method.alpha": alpha,
            "method.targets": all_linear,
        }

    def default_targets(self) -> str | list[str]:
        return "all-linear"

    def _initial_rank(self) -> int:
        return -(-3 * int(self.options.rank) // 2) if self.options.initial_rank == "auto" else int(self.options.initial_rank)

    def config(self, layout: ModelLayout, paths: list[str]) -> AdaLoraConfig:
        from peft import AdaLoraConfig

        alpha = 32.0 if self.options.alpha == "auto" else float(self.options.alpha)
        return AdaLoraConfig(
            target_r=self.options.rank,
            init_r=self._initial_rank(),
            # PEFT declares a whole number here and computes with any.
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
            lora_dropout=self.options.dropout,
            deltaT=self.options.interval,
            beta1=self.options.beta1,
            beta2=self.options.beta2,
            orth_reg_weight=self.options.orthogonality,
            # Known only when training begins.
            total_step=1,
            fan_in_fan_out=all_conv1d(layout, paths),
        )

    def layer_count(self, inward: int, outward: int) -> int:
        """r0 (in + out + 1)."""
        return self._initial_rank() * (inward + outward + 1)

    # --- training --------------------------------------------------------------------------------------------------

    def training_begins(self, model: nn.Module, total_steps: int) -> None:
        config = _config(model)
        config.total_step = total_steps
        config.tinit = min(int(self.options.initial_ratio * total_steps), total_steps - 1)
        config.tfinal = min(int(self.options.final_ratio * total_steps), total_steps - 1 - config.tinit)

    def extra_loss(self, model: nn.Module) -> Tensor | None:
        """g times the mean distance of Q Q' and P' P from the identity, over all trained P and Q."""
        import torch

        if not self.options.orthogonality:
            return None
        distances = []
        for name, factor in _tuner(model).model.named_parameters():
            if factor.requires_grad and (".lora_A." in name or ".lora_B." in name):
                product = factor @ factor.T if ".lora_A." in name else factor.T @ factor
                distances.append((product - torch.eye(len(product), device=product.device)).norm())
        mean: Tensor = torch.stack(distances).mean()
        return mean * self.options.orthogonality

    def after_step(self, model: nn.Module, step: int) -> None:
        import torch

        tuner, config = _tuner(model), _config(model)
        for name, parameter in tuner.model.named_parameters():
            if parameter.requires_grad and ".lora_" in name:
                # None in blocks that gradual unfreezing keeps frozen, not finite in a step that fp16's loss scaler skipped.
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        if step == config.total_step - config.tfinal and not tuner.rankallocator.exp_avg_ipt:
            tuner.rankallocator.update_ipt(tuner.model)
        tuner.update_and_allocate(step)

    def state(self, model: nn.Module) -> Mapping[str, Tensor]:
        import torch

        allocator, kept = _tuner(model).rankallocator, _config(model).rank_pattern or {}
        return {
            **{f"importance|{name}": tensor for name, tensor in allocator.exp_avg_ipt.items()},
            **{f"uncertainty|{name}": tensor for name, tensor in allocator.exp_avg_unc.items()},
            **{f"kept|{name}": torch.tensor(pattern, dtype=torch.bool) for name, pattern in kept.items()},
        }

    def restore(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        import torch

        tuner = _tuner(model)
        tuner.rankallocator.reset_ipt()
        places = dict(tuner.model.named_parameters())
        kept: dict[str, list[bool]] = {}
        for key, tensor in state.items():
            kind, _, name = key.partition("|")
            if kind == "kept":
                kept[name] = tensor.tolist()
                continue
            means = tuner.rankallocator.exp_avg_ipt if kind == "importance" else tuner.rankallocator.exp_avg_unc
            means[name] = tensor.to(places[name].device)
            tuner.rankallocator.ipt[name] = torch.zeros_like(means[name])
        _config(model).rank_pattern = kept or None

    def save_adapter(self, model: Any, folder: Path) -> None:
        """Only triplets whose value is not zero go into the file; between two allocations these are more than the last one kept."""
        config = _config(model)
        allocated = config.rank_pattern
        values = {name: value for name, value in _tuner(model).model.named_parameters() if ".lora_E." in name}
        config.rank_pattern = {name: _not_zero(value) for name, value in values.items()}
        super().save_adapter(model, folder)
        config.rank_pattern = allocated


def _not_zero(values: Tensor) -> list[bool]:
    """Which values are not zero; one stays in any case, since PEFT takes a file with an empty matrix for a damaged one."""
    kept = values.detach().ne(0).flatten().tolist()
    return kept if any(kept) else [True, *kept[1:]]


def _tuner(model: Any) -> Any:
    return model.base_model


def _config(model: Any) -> Any:
    return model.peft_config["default"]


def _learning_rate(facts: ModelFacts) -> Default:
    if facts.kind in ("decoder", "encoder-decoder"):
        return Default(value=5e-4, source=f"{AUTHORS}: BART large on XSum")
    return Default(value=8e-4, source=f"{AUTHORS}: DeBERTa V3 base, CoLA (MNLI 5e-4, RTE 1.2e-3)")
