"""LoRA: a trained low-rank matrix beside each chosen weight matrix, which is frozen.

    y = W x + s B A x,   s = alpha / r   (rsLoRA: alpha / sqrt(r)),   A: r x in, B: out x r, B = 0 at first

DoRA splits the sum into a trained length m and a direction: y = m (W + s B A) / |W + s B A| x, norms taken per output.
Sources: LoRA, Hu et al. 2022, https://arxiv.org/abs/2106.09685; rsLoRA, Kalajdzievski 2023, https://arxiv.org/abs/2312.03732;
DoRA, Liu et al. 2024, https://arxiv.org/abs/2402.09353; PiSSA, Meng et al. 2024, https://arxiv.org/abs/2404.02948.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ftkit.methods.base import AdapterMethod, BlockRanges, Capabilities, Default, Paper, block_numbers, range_refusal
from ftkit.patterns import check_pattern, matching
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

ROLES = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")
FUSED = {"query": "qkv", "key": "qkv", "value": "qkv"}
REGEX = "re:"


def _patterns_compile(targets: list[str]) -> list[str]:
    for target in targets:
        if target.startswith(REGEX):
            check_pattern(target.removeprefix(REGEX))
    return targets


Targets = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), AfterValidator(_patterns_compile)]


class Options(Strict):
    """Size, place and start of the low-rank matrices."""

    rank: int = Field(8, ge=1, description="Rank r of each update.")
    alpha: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto",
        description="The update is scaled by alpha / rank, with rslora by alpha / sqrt(rank). auto: twice the rank; with rslora 16; "
        "with pissa what gives a scale of 1.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the low-rank path.")
    targets: Literal["auto", "all-linear"] | Targets = Field(
        "auto",
        description="Layers with an update. auto: query and value; in a decoder all-linear. all-linear: every linear layer of the "
        "blocks. Or a list of roles (query, key, value, attention_out, ffn_in, ffn_out), module names, and `re:` followed by "
        "a regular expression that matches whole module paths.",
    )
    blocks: BlockRanges | None = Field(
        None, description="Only in these blocks: numbers and ranges, `[0-3, 10]`, from 0; decoder blocks follow encoder blocks."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones.")
    dora: bool = Field(False, description="Train the lengths of the weight rows apart from their directions (DoRA).")
    init: Literal["default", "gaussian", "orthogonal", "pissa"] = Field(
        "default",
        description="default: A Kaiming-uniform, B zero. gaussian: A normal. orthogonal: A and B orthogonal to each other. pissa: the "
        "largest singular parts of W move into B A; such an adapter must be the only one on its base.",
    )

    @model_validator(mode="after")
    def _even_rank(self) -> Options:
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init: orthogonal needs an even rank, not {self.rank}")
        return self


class LoRA(AdapterMethod):
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

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        targets: Any = ["query", "value"]
        source = "Hu et al. 2022, section 7.1 and table 5: query and value"
        if facts.kind == "decoder":
            targets, source = (
                "all-linear",
                "Dettmers et al. 2023 (QLoRA), figure 2: all linear layers are needed to match full tuning",
            )
        return {
            **_train_defaults(facts),
            "method.alpha": Default(value=self._alpha(), source=self._alpha_source()),
            "method.targets": Default(value=targets, source=source),
        }

    def _alpha(self) -> float:
        if self.options.alpha != "auto":
            return float(self.options.alpha)
        if self.options.init == "pissa":
            return float(self.options.rank) ** (0.5 if self.options.rslora else 1.0)
        return 16.0 if self.options.rslora else 2.0 * self.options.rank

    def _alpha_source(self) -> str:
        if self.options.init == "pissa":
            return "Meng et al. 2024 (PiSSA), section 5: a scale of 1"
        if self.options.rslora:
            return "Kalajdzievski 2023 (rsLoRA): the same alpha for every rank; 16 as in Dettmers et al. 2023 (QLoRA), table 9"
        return "Biderman et al. 2024 (LoRA Learns Less and Forgets Less): alpha = 2 rank"

    def refusal(self, facts: ModelFacts) -> str:
        if 0 < facts.hidden_size < self.options.rank:
            return f"rank is {self.options.rank}, but in a model of width {facts.hidden_size} no update has a rank above that"
        return range_refusal(self.options.blocks, facts.block_count) if self.options.blocks is not None else ""

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.tuners.wrap import wrap

        paths = self._paths(layout)
        self._check_weights(model, paths)
        return wrap(model, layout, self._config(layout, paths), self.declares)

    def _config(self, layout: ModelLayout, paths: list[str]) -> LoraConfig:
        from peft import LoraConfig

        alpha = self._alpha()
        init: Any = {"default": True}.get(self.options.init, self.options.init)
        return LoraConfig(
            r=self.options.rank,
            # PEFT declares a whole number here, servers read one, and PEFT computes with any.
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]
            lora_dropout=self.options.dropout,
            target_modules=layout.suffixes(paths),
            use_rslora=self.options.rslora,
            use_dora=self.options.dora,
            init_lora_weights=init,
            fan_in_fan_out=all(type(layout.model.get_submodule(path)).__name__ == "Conv1D" for path in paths),
        )

    def _check_weights(self, model: nn.Module, paths: list[str]) -> None:
        from ftkit.errors import ModelError

        if self.options.init != "pissa":
            return
        for path in paths:
            weight = model.get_submodule(path).get_parameter("weight")
            if not weight.is_floating_point():
                raise ModelError(f"init: pissa cannot take {path} apart, which is quantized", hint="Use `init: default`")
            if min(weight.shape) < self.options.rank:
                raise ModelError(
                    f"init: pissa needs a rank of at most {min(weight.shape)}, the smaller side of {path}, not {self.options.rank}"
                )

    def parameter_count(self, layout: ModelLayout) -> int:
        """r (in + out) for each layer, with DoRA one length per output, and the head."""
        from ftkit.models.roles import linear_shape
        from ftkit.tuners.wrap import head_parameter_count

        count = head_parameter_count(layout)
        for path in self._paths(layout):
            module: Any = layout.model.get_submodule(path)
            inward, outward = linear_shape(getattr(module, "base_layer", module))
            count += self.options.rank * (inward + outward) + (outward if self.options.dora else 0)
        return count

    # --- targets ---------------------------------------------------------------------------------------------------

    def _paths(self, layout: ModelLayout) -> list[str]:
        """Module paths of the layers that get an update. Raises ModelError for each target that the model lacks."""
        from ftkit.errors import ModelError, Problem

        targets = ["query", "value"] if self.options.targets == "auto" else self.options.targets
        linears = layout.linears("all")
        if targets == "all-linear":
            chosen = set(linears)
        else:
            found = {target: _matches(target, layout, linears) for target in targets}
            if missed := [target for target, paths in found.items() if not paths]:
                raise ModelError([_missed(target, layout, linears) for target in missed])
            chosen = {path for paths in found.values() for path in paths}
        if self.options.blocks is not None:
            if reason := range_refusal(self.options.blocks, len(layout.blocks)):
                raise ModelError(Problem(message=reason, key="method.blocks"))
            prefixes = tuple(f"{layout.blocks[number].name}." for number in block_numbers(self.options.blocks))
            chosen = {path for path in chosen if path.startswith(prefixes)}
        if not chosen:
            raise ModelError(
                Problem(message=f"no layer of {layout.architecture} is both a target and in `blocks`", key="method.blocks")
            )
        return [path for path in linears if path in chosen]


def _matches(target: str, layout: ModelLayout, linears: list[str]) -> list[str]:
    if target.startswith(REGEX):
        return matching(target.removeprefix(REGEX), linears, whole=True, key="method.targets")
    if target in ROLES:
        # A model that computes query, key and value in one layer has that layer in all three roles.
        return layout.linears(target) or (layout.linears(FUSED[target]) if target in FUSED else [])
    return [path for path in linears if path == target or path.endswith(f".{target}")]


def _missed(target: str, layout: ModelLayout, linears: list[str]) -> Any:
    from ftkit.errors import Problem

    names = list(dict.fromkeys(path.rpartition(".")[2] for path in linears))
    near = get_close_matches(target.removeprefix(REGEX), [*names, *ROLES], n=3, cutoff=0.5) or names
    return Problem(
        message=f"no linear layer in the blocks of {layout.architecture} fits {target!r}",
        key="method.targets",
        hint=f"Close names: {', '.join(near)}. Roles: {', '.join(ROLES)}",
    )


def _train_defaults(facts: ModelFacts) -> dict[str, Default]:
    def default(value: float, source: str) -> dict[str, Default]:
        return {"train.learning_rate": Default(value=value, source=source)}

    if facts.kind == "decoder":
        large = facts.hidden_size > 5120
        return default(1e-4 if large else 2e-4, "Dettmers et al. 2023 (QLoRA), table 9: 2e-4, from 33B on 1e-4")
    if facts.kind == "encoder-decoder":
        return default(1e-3, "PEFT's sequence-to-sequence LoRA guide (mt0-large)")
    if facts.kind == "vision":
        return default(2.5e-3, "PEFT's image classification LoRA guide: 5e-3 at alpha = rank, so half of it at alpha = 2 rank")
    if 0 < facts.hidden_size <= 512:
        return default(3e-3, "ftkit: best of 4e-4, 1e-3 and 3e-3 by validation, MiniLM (width 384) on BBC News, rank 8")
    rate = 2e-4 if facts.hidden_size >= 1024 else 4e-4
    return default(rate, "Hu et al. 2022, table 9: RoBERTa large 2e-4 to 4e-4, base 4e-4 to 5e-4")
