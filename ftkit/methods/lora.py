"""LoRA: a trained low-rank matrix beside each chosen weight matrix, which is frozen.

    y = W x + s B A x,   s = alpha / r   (rsLoRA: alpha / sqrt(r)),   A: r x in, B: out x r, B = 0 at first
    A <- A - lr * AdamW(dL/dA),   B <- B - k lr * AdamW(dL/dB),   k = 1   (LoRA+: k > 1)

DoRA splits the sum into a trained length m and a direction: y = m (W + s B A) / |W + s B A| x, norms taken per output.
Number of parameters: r (in + out) for each layer, with DoRA or `lora_bias` one more for each output.
Starts: PiSSA and OLoRA split the first A and B off W, EVA finds the first A in the data, LoftQ in what quantization left out.
Sources: LoRA, Hu et al. 2022, https://arxiv.org/abs/2106.09685; rsLoRA, Kalajdzievski 2023, https://arxiv.org/abs/2312.03732;
DoRA, Liu et al. 2024, https://arxiv.org/abs/2402.09353; LoRA+, Hayou et al. 2024, https://arxiv.org/abs/2402.12354;
PiSSA, Meng et al. 2024, https://arxiv.org/abs/2404.02948; OLoRA, Büyükakyüz 2024, https://arxiv.org/abs/2406.01775;
EVA, Paischer et al. 2024, https://arxiv.org/abs/2410.07170; LoftQ, Li et al. 2023, https://arxiv.org/abs/2310.08659.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ftkit.errors import Problem
from ftkit.methods.base import Capabilities, Combination, Default, Method, Paper, encoder_epochs
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
    from peft import LoraConfig
    from torch import Tensor, nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

SPLIT_STARTS = ("pissa", "olora")
"""Starts that move a part of the weight into B A."""

PRUNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
"""Combinations that drop values of A and B; with `_svd` behind, of the whole updates."""

EVA_BATCHES = 16
"""Batches that EVA looks at, at most: its directions mostly stand still long before."""


class Options(Strict):
    """Size, place and start of the low-rank matrices."""

    rank: int = Field(8, ge=1, description="Rank r of each update.")
    alpha: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto",
        description="The update is scaled by alpha / rank, with rslora by alpha / sqrt(rank). auto: twice the rank; with rslora 16; "
        "with pissa and olora what gives a scale of 1.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the low-rank path.")
    targets: TargetChoice = Field("auto", description=targets_text("query and value; in a decoder all-linear"))
    blocks: BlockRanges | None = Field(None, description=BLOCKS_TEXT)
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones.")
    dora: bool = Field(False, description="Train the lengths of the weight rows apart from their directions (DoRA).")
    loraplus_lr_ratio: float = Field(
        1.0,
        ge=1,
        description="Learning rate of B as a multiple of that of A (LoRA+). The paper's rule of thumb is 16. With a learning rate left "
        "at `auto`, A gets the usual rate / sqrt(ratio).",
    )
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva", "loftq"] = Field(
        "default",
        description="default: A Kaiming-uniform, B zero. gaussian: A normal. orthogonal: A and B orthogonal to each other. pissa, olora: "
        "the largest singular parts of W, or the first of its QR decomposition, move into B A. eva: A holds the main directions of the "
        "layers' inputs on the first batches. loftq: B A makes up for the rounding of a 4-bit base.",
    )
    pissa_iterations: int | None = Field(
        None,
        ge=1,
        description="With init: pissa, find the singular parts by this many subspace iterations instead of exactly: much faster for wide "
        "layers. 4 or 16 in the paper.",
    )
    lora_bias: bool = Field(False, description="Train a bias beside each update; every adapted layer must have one.")
    modules_to_save: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="Modules that are trained and saved whole beside the head, by path or its end: `word_embeddings`, `LayerNorm`.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Options:
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init: orthogonal needs an even rank, not {self.rank}")
        if self.pissa_iterations is not None and self.init != "pissa":
            raise ValueError(f"pissa_iterations belongs to init: pissa, not to init: {self.init}")
        if self.lora_bias and (self.dora or self.init != "default"):
            raise ValueError("lora_bias works with `init: default` and without dora only")
        if self.init == "loftq" and self.dora:
            raise ValueError(
                "init: loftq starts from weights that it changes, dora from the lengths of those before; use one of them"
            )
        return self


class LoRA(TargetedMethod):
    """Low-rank updates of linear layers."""

    name = "lora"
    summary = "A trained low-rank update beside each chosen weight matrix."
    update_rule = "y = W x + (alpha / r) B A x: W is frozen, A (r x in) and B (out x r) are trained, B is zero at first"
    paper = Paper(
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        authors="Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen",
        year=2022,
        url="https://arxiv.org/abs/2106.09685",
    )
    capabilities = Capabilities(adapter=True, merge=True, quantized=True)
    Options = Options
    prefix = "lora_"
    combinations = ("cat", "svd", "linear", *PRUNING, *(f"{name}_svd" for name in PRUNING))

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        self._initial: dict[str, Tensor] = {}
        if self.options.init in SPLIT_STARTS:
            self.capabilities = replace(self.capabilities, quantized=False)

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        return {
            "train.learning_rate": self._learning_rate(facts),
            **encoder_epochs(facts),
            "method.alpha": Default(value=self._alpha(), source=self._alpha_source()),
            **self.target_defaults(facts),
        }

    def _learning_rate(self, facts: ModelFacts) -> Default:
        usual, ratio = _learning_rate(facts), self.options.loraplus_lr_ratio
        if ratio == 1:
            return usual
        source = f"{usual.source}; divided by sqrt({ratio:g}), so that A and B have that rate in the (geometric) mean"
        return Default(value=float(f"{usual.value / ratio**0.5:.3g}"), source=source)

    def _alpha(self) -> float:
        if self.options.alpha != "auto":
            return float(self.options.alpha)
        if self.options.init in SPLIT_STARTS:
            return float(self.options.rank) ** (0.5 if self.options.rslora else 1.0)
        return 16.0 if self.options.rslora else 2.0 * self.options.rank

    def _alpha_source(self) -> str:
        if self.options.init in SPLIT_STARTS:
            papers = {"pissa": "Meng et al. 2024 (PiSSA), section 5", "olora": "Büyükakyüz 2024 (OLoRA), algorithm 1"}
            return f"{papers[self.options.init]}: a scale of 1"
        if self.options.rslora:
            return "Kalajdzievski 2023 (rsLoRA): the same alpha for every rank; 16 as in Dettmers et al. 2023 (QLoRA), table 9"
        return "Biderman et al. 2024 (LoRA Learns Less and Forgets Less): alpha = 2 rank"

    def refusal(self, facts: ModelFacts) -> str:
        if 0 < facts.hidden_size < self.options.rank:
            return f"rank is {self.options.rank}, but in a model of width {facts.hidden_size} no update has a rank above that"
        return super().refusal(facts)

    def learning_rate_factor(self, name: str, layout: ModelLayout) -> float:
        return float(self.options.loraplus_lr_ratio) if ".lora_B." in name else 1.0

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.tuners.lora_starts import initial_matrices, same_randomness, split_off_qr

        self._check_weights(layout)
        if self.options.init not in SPLIT_STARTS:
            return super().apply(model, layout)
        with same_randomness():
            wrapped: Any = super().apply(model, layout)
        if self.options.init == "olora":
            split_off_qr(wrapped)
        self._initial = initial_matrices(wrapped)
        return wrapped

    def config(self, layout: ModelLayout, paths: list[str]) -> LoraConfig:
        from peft import LoraConfig

        alpha, iterations = self._alpha(), self.options.pissa_iterations
        init: Any = self.options.init if self.options.init in ("gaussian", "orthogonal", "pissa") else True
        if iterations:
            init = f"pissa_niter_{iterations}"
        return LoraConfig(
            r=self.options.rank,
            # PEFT declares a whole number here, servers read one, and PEFT computes with any.
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
            lora_dropout=self.options.dropout,
            use_rslora=self.options.rslora,
            use_dora=self.options.dora,
            init_lora_weights=init,
            fan_in_fan_out=all_conv1d(layout, paths),
            lora_bias=self.options.lora_bias,
        )

    def whole_modules(self, layout: ModelLayout) -> list[str]:
        from ftkit.tuners.whole_modules import find_whole_modules

        return find_whole_modules(layout.model, self.options.modules_to_save or (), self.paths(layout))

    def _check_weights(self, layout: ModelLayout) -> None:
        from ftkit.errors import ModelError

        init, rank = self.options.init, self.options.rank
        modules = {path: layout.model.get_submodule(path) for path in self.paths(layout)}
        if self.options.lora_bias and (plain := [path for path, module in modules.items() if module.bias is None]):
            raise ModelError(f"lora_bias: {plain[0]} has no bias", hint="Leave it out, or choose other targets")
        for path in self.paths(layout) if init in (*SPLIT_STARTS, "loftq") else ():
            weight = layout.model.get_submodule(path).get_parameter("weight")
            if init == "loftq":
                if type(weight).__name__ != "Params4bit":
                    hint = "Set `model.quantization: nf4`, or use `init: default`"
                    raise ModelError(f"init: loftq makes up for 4-bit rounding, and {path} is not quantized to 4 bits", hint=hint)
            elif not weight.is_floating_point():
                raise ModelError(f"init: {init} cannot take {path} apart, which is quantized", hint="Use `init: default`")
            elif min(weight.shape) < rank:
                smaller = min(weight.shape)
                raise ModelError(f"init: {init} needs a rank of at most {smaller}, the smaller side of {path}, not {rank}")

    def batches_before_training(self) -> int:
        # LoftQ looks at no data, but like EVA it is only worth its time when training starts.
        return {"eva": EVA_BATCHES, "loftq": 1}.get(self.options.init, 0)

    def prepare(self, model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> None:
        from ftkit.tuners.loftq import start_from_quantization_error
        from ftkit.tuners.lora_starts import start_from_inputs

        if self.options.init == "eva":
            start_from_inputs(model, losses)
        if self.options.init == "loftq":
            start_from_quantization_error(model)

    def save_adapter(self, model: Any, folder: Path) -> None:
        from ftkit.tuners.lora_starts import write_against_whole_weight
        from ftkit.tuners.wrap import lora_biases_allowed

        with lora_biases_allowed():
            super().save_adapter(model, folder)
        if self._initial:
            write_against_whole_weight(folder, self._initial)

    @classmethod
    def holds_low_rank(cls, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") == "LORA" and not config.get("use_dora")

    def combination_refusal(self, others: Sequence[Method], how: Combination) -> Problem | None:
        members = (self, *others)
        hint = "Leave out those that have it, or let them answer side by side: `ftkit predict RUN --adapter RUN`"
        if any(method.options.dora for method in members):
            message = "adapters with `dora` do not combine: the lengths of the weight rows are no part of the update"
            return Problem(message=message, place=_which(members, "dora"), hint=hint)
        for name in ("lora_bias", "modules_to_save"):
            if any(getattr(method.options, name) for method in members):
                message = f"adapters with `{name}` do not combine: biases and whole modules are no part of the update"
                return Problem(message=message, place=_which(members, name), hint=hint)
        return None

    def combine(self, wrapped: Any, names: Sequence[str], target: str, how: Combination) -> None:
        for name in names:
            # PEFT takes alpha = rank for a scale of one, which it is not under rsLoRA. The scales of the members are set by now.
            wrapped.peft_config[name].use_rslora = False
        wrapped.base_model.add_weighted_adapter(
            list(names),
            list(how.weights),
            target,
            combination_type=how.name,
            svd_rank=how.rank,
            svd_full_matrices=False,
            density=how.density,
        )

    def combined_options(self, others: Sequence[Method], config: Any, layers: Sequence[str]) -> Strict:
        places = [(method.options.targets, method.options.blocks) for method in (self, *others)]
        targets, blocks = places[0] if all(place == places[0] for place in places) else (list(layers), None)
        return Options(rank=config.r, alpha=float(config.r), dropout=self.options.dropout, targets=targets, blocks=blocks)

    def layer_count(self, inward: int, outward: int) -> int:
        """r (in + out), with DoRA one length per output, with `lora_bias` one bias."""
        return int(self.options.rank) * (inward + outward) + outward * (self.options.dora + self.options.lora_bias)


def _learning_rate(facts: ModelFacts) -> Default:
    if facts.kind == "decoder":
        large = facts.hidden_size > 5120
        return Default(value=1e-4 if large else 2e-4, source="Dettmers et al. 2023 (QLoRA), table 9: 2e-4, from 33B on 1e-4")
    if facts.kind == "encoder-decoder":
        return Default(value=1e-3, source="PEFT's sequence-to-sequence LoRA guide (mt0-large)")
    if facts.kind == "vision":
        source = "PEFT's image classification LoRA guide: 5e-3 at alpha = rank, so half of it at alpha = 2 rank"
        return Default(value=2.5e-3, source=source)
    if facts.narrow_encoder:
        source = "ftkit: best of 4e-4, 1e-3 and 3e-3 by validation, MiniLM (width 384) on BBC News, rank 8"
        return Default(value=3e-3, source=source)
    rate = 2e-4 if facts.hidden_size >= 1024 else 4e-4
    return Default(value=rate, source="Hu et al. 2022, table 9: RoBERTa large 2e-4 to 4e-4, base 4e-4 to 5e-4")


def _which(members: Sequence[Method], option: str) -> str:
    """The numbers of those that have an option, as the command line gives the runs."""
    numbers = [str(number) for number, method in enumerate(members, start=1) if getattr(method.options, option)]
    return f"run {', '.join(numbers)}"
