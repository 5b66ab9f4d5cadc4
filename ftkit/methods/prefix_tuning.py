"""Prefix tuning: trained keys and values in front of those of every attention; the model itself is frozen.

    Attention(q, [P_K; K], [P_V; V]),   P_K, P_V: k x width of a key, trained for each attention module

With `reparametrization`, P of all layers comes out of a network while it trains: P = W_2 tanh(W_1 D + b_1) + b_2 with D: k x d; only
P is saved. The prefix has no position: texts keep theirs. Encoder-decoders get prefixes in the self-attention of both and in the
cross-attention, with a network for each of the three. Parameters, with A attention modules and w numbers in a key of all heads:
    2 A k w;   reparametrized, for each kind of attention of A modules: k d + (d h + h) + (h 2 A w + 2 A w);   and the head.
Sources: Li & Liang 2021, https://arxiv.org/abs/2101.00190; for encoders Liu et al. 2022 (P-tuning v2),
https://arxiv.org/abs/2110.07602.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from ftkit.methods.base import AdapterMethod, BlockRanges, Capabilities, Default, Paper, block_numbers, range_refusal
from ftkit.models.sequences import OWN_ATTENTION, PLAIN_VISION
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout

START = 0.02
"""Standard deviation of a prefix that is trained directly: what transformers gives new weights, P-tuning v2's prefix included."""


class Options(Strict):
    """Size, place and parametrization of the prefix."""

    length: Annotated[int, Field(ge=1, le=10_000)] | Auto = Field(
        "auto", description="Keys and values k in front of each attention. auto: 10 for decoders, else 20."
    )
    reparametrization: bool | Auto = Field(
        "auto",
        description="Train a network that gives the prefix instead of the prefix itself; only the prefix is kept. auto: true for decoders "
        "and encoder-decoders.",
    )
    hidden_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="reparametrization: size of the network's hidden layer. Default: 512, as the paper's scripts for GPT-2."
    )
    blocks: BlockRanges | None = Field(
        None, description="Only in these blocks: numbers and ranges, `[0-3, 10]`, from 0; decoder blocks follow encoder blocks."
    )

    @model_validator(mode="after")
    def _size_where_it_counts(self) -> Options:
        if self.hidden_size is not None and self.reparametrization is False:
            raise ValueError("hidden_size has no effect with `reparametrization: false`")
        return self


class PrefixTuning(AdapterMethod):
    """Trained keys and values."""

    name = "prefix-tuning"
    summary = "Trained keys and values in front of those of every attention."
    update_rule = (
        "Attention(q, [P_K; K], [P_V; V]): the model is frozen, P_K and P_V (k rows for each attention module) are trained"
    )
    paper = Paper(
        title="Prefix-Tuning: Optimizing Continuous Prompts for Generation",
        authors="Li, Liang",
        year=2021,
        url="https://arxiv.org/abs/2101.00190",
    )
    capabilities = Capabilities(adapter=True, merge=False, quantized=True)
    Options = Options
    known_to_peft = False
    prefix = "attention_prefix_"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        return {
            **_train_defaults(facts, self._is_reparametrized(facts)),
            "method.length": _length_default(facts),
            "method.reparametrization": _network_default(facts),
        }

    def _is_reparametrized(self, facts: ModelFacts) -> bool:
        chosen = self.options.reparametrization
        return bool(_network_default(facts).value if chosen == "auto" else chosen)

    def refusal(self, facts: ModelFacts) -> str:
        if facts.kind == "vision" and facts.model_type not in PLAIN_VISION:
            return f"{facts.model_type} does not keep its patches in one sequence, which a prefix needs; use `lora`"
        if facts.model_type in OWN_ATTENTION:
            return (
                f"{facts.model_type} computes attention in a way of its own, which takes no prefix; use `prompt-tuning` or `lora`"
            )
        if self.options.hidden_size is not None and not self._is_reparametrized(facts):
            return "hidden_size has no effect without `reparametrization: true`"
        return range_refusal(self.options.blocks, facts.block_count) if self.options.blocks is not None else ""

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.tuners.attention_prefix import AttentionPrefixConfig
        from ftkit.tuners.wrap import wrap

        _check_attention(layout)
        modules = self._modules(layout)
        config = AttentionPrefixConfig(
            length=self.length,
            groups=_groups(modules),
            hidden_size=self._hidden_size(),
            width=layout.hidden_size,
            target_modules=layout.suffixes(list(modules)),
        )
        wrapped = wrap(model, layout, config, self.declares)
        if not self._hidden_size():
            _start(wrapped)
        return wrapped

    @property
    def length(self) -> int:
        """Keys in front of each attention."""
        return 20 if self.options.length == "auto" else int(self.options.length)

    def _hidden_size(self) -> int:
        """Of the network; 0 without one."""
        return (self.options.hidden_size or 512) if self.options.reparametrization is True else 0

    def parameter_count(self, layout: ModelLayout) -> int:
        from ftkit.tuners.wrap import head_parameter_count

        hidden, outside = self._hidden_size(), layout.hidden_size
        count = head_parameter_count(layout)
        for modules, width in _groups(self._modules(layout)).values():
            size = 2 * modules * width
            count += self.length * outside + (outside + 1) * hidden + (hidden + 1) * size if hidden else self.length * size
        return count

    def _modules(self, layout: ModelLayout) -> dict[str, int]:
        """Paths of the attention modules in order, and the width of their keys. Raises ModelError if there are none."""
        from ftkit.errors import ModelError, Problem
        from ftkit.models.stacks import attention_widths

        chosen = range(len(layout.blocks))
        if self.options.blocks is not None:
            if reason := range_refusal(self.options.blocks, len(layout.blocks)):
                raise ModelError(Problem(message=reason, key="method.blocks"))
            chosen = block_numbers(self.options.blocks)  # type: ignore[assignment]
        return attention_widths(layout, [layout.blocks[number] for number in chosen])


def _check_attention(layout: ModelLayout) -> None:
    """Raises ModelError if the attention function in use takes no prefix."""
    from ftkit.errors import ModelError, Problem
    from ftkit.tuners.prefixed_attention import SUPPORTED

    name = getattr(layout.model.config, "_attn_implementation", "eager")
    if name not in SUPPORTED:
        message = f"prefix-tuning works with the attention {' and '.join(SUPPORTED)}, and the model runs {name}"
        raise ModelError(Problem(message=message, key="model.attention", hint="Set `model.attention: sdpa`"))


def _groups(modules: Mapping[str, int]) -> dict[str, list[int]]:
    """Number of modules and width of a key by group. Raises ModelError where keys of a group differ in width (Swin's stages)."""
    from ftkit.errors import ModelError
    from ftkit.tuners.attention_prefix import group_of

    groups: dict[str, list[int]] = {}
    for path, width in modules.items():
        group = groups.setdefault(group_of(path), [0, width])
        group[0] += 1
        if group[1] != width:
            raise ModelError(
                f"keys are {width} wide in {path} and {group[1]} elsewhere, and a prefix needs one width", hint="Use `lora`"
            )
    return groups


def _start(wrapped: nn.Module) -> None:
    import torch

    from ftkit.tuners.prompt_encoders import DirectPrompt

    for module in wrapped.modules():
        if isinstance(module, DirectPrompt):
            module.start_from(torch.randn(module.vectors.shape) * START)


def _length_default(facts: ModelFacts) -> Default:
    if facts.kind == "decoder":
        return Default(value=10, source="Li & Liang 2021, section 7.2: best for table-to-text; train_e2e.py")
    return Default(value=20, source="Liu et al. 2022 (P-tuning v2), run_rte_bert.sh; PEFT's guides")


def _network_default(facts: ModelFacts) -> Default:
    if facts.kind in ("decoder", "encoder-decoder"):
        return Default(value=True, source="Li & Liang 2021, section 4.3: training the prefix itself is unstable")
    return Default(value=False, source="Liu et al. 2022 (P-tuning v2), section 3.3: a network helps on some tasks only")


def _train_defaults(facts: ModelFacts, reparametrized: bool) -> dict[str, Default]:
    def defaults(rate: float, epochs: float | None, source: str) -> dict[str, Default]:
        values = {"train.learning_rate": rate, "train.epochs": epochs}
        return {key: Default(value=value, source=source) for key, value in values.items() if value is not None}

    if facts.kind in ("decoder", "encoder-decoder") and reparametrized:
        return defaults(5e-5, 5.0, "Li & Liang 2021, the authors' train_e2e.py (GPT-2) and train_bart.py")
    if facts.kind == "decoder":
        return defaults(5e-3, None, "PEFT's method comparison: best of its prefix tuning runs (Llama-3.2-3B)")
    if facts.kind == "encoder" and 0 < facts.hidden_size <= 512:
        return defaults(3e-2, 30.0, "ftkit: the better of 1e-2 and 3e-2 after 36 steps, MiniLM (width 384) on BBC News")
    return defaults(
        1e-2, 30.0, "Liu et al. 2022 (P-tuning v2), run_rte_bert.sh; 5e-3 to 3e-2 and 30 to 100 epochs in their scripts"
    )
