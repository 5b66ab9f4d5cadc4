"""Hypernetwork adapters (HyperFormer++): one small network writes the weights of all adapters.

    y = h + LN_gen(U f(D x + b_d) + b_u),   D, U, b_d, b_u, gain and shift of LN_gen = linear maps of I
    I = LN(W_2 relu(W_1 [z_s, l_i, p_j] + b_1) + b_2)

z_s stands for the task, l_i for the block, p_j for the place in it (after attention, after the feed-forward part); all are trained. The
paper trains several tasks together, which share the network: `source_column` names the task s of each row, whose adapters are written for
it. Without, there is one z, and blocks and places are what is shared. How often a task is seen is decided by the rows and by `weight` of
their files, not by the paper's temperature. Norms of the model train, too, as in the authors' code, and are shared like the head.
Count, with width d, bottleneck m, n blocks, j kinds of places, s sources (1 without), t the size of z, h and e those of the network:
    t (s + n + j) + (3 t + 1) h + (h + 1) e + 2 e + (e + 1) (2 d m + m + d + 2 d),  with `generated_norm: false` without the last 2 d;
and with `norms` their gains and biases, and the head.
Source: Karimi Mahabadi, Ruder, Dehghani & Henderson 2021, https://arxiv.org/abs/2106.04489; github.com/rabeehk/hyperformer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ftkit.methods.base import BlockRanges, Capabilities, Default, Paper, encoder_epochs, range_refusal
from ftkit.methods.parts.placement import expert_refusal
from ftkit.methods.parts.sources import SourcedMethod
from ftkit.methods.parts.targets import BLOCKS_TEXT
from ftkit.models.sequences import WITHOUT_ROWS
from ftkit.recipe.schema import Auto, Strict

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout
    from ftkit.tuners.places import Places

MOVED = "ftkit: each generated weight is a sum over the embedding, so that one step moves it as much as a weight of its own"
SMALL = "ftkit: the better of 3e-3 and 1e-2, MiniLM (width 384) on 210 rows of BBC News, 42 steps"
CONFIG = "Karimi Mahabadi et al. 2021, the authors' configs/hyperformer++.json"


class Options(Strict):
    """Size of the adapters and of the network that writes them."""

    reduction_factor: float = Field(
        32.0, ge=1, description="Width of the model divided by the size of the adapters. 32 in the authors' configs."
    )
    task_size: int = Field(64, ge=1, description="Numbers that stand for the task, for each block and for each place.")
    hidden_size: int = Field(128, ge=1, description="Size of the network's hidden layer.")
    embedding_size: int = Field(64, ge=1, description="Size of what all weights are linear maps of; the network grows with it.")
    generated_norm: bool = Field(
        True, description="A layer norm on each adapter's output, its gain and shift written by the network."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' output.")
    cross_attention: bool = Field(False, description="Adapters after the decoder's attention to the encoder, too.")
    norms: bool = Field(
        True, description="Train gains and biases of the model's norms as well (of the chosen blocks), as the authors did."
    )
    network_lr_ratio: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto",
        description="Learning rate of the network as a multiple of that of norms and head. One step moves each generated weight by about "
        "embedding_size times the network's rate. auto: 1 in encoder-decoders, else 1 / embedding_size.",
    )
    blocks: BlockRanges | None = Field(None, description=BLOCKS_TEXT)
    source_column: str | None = Field(
        None,
        min_length=1,
        description="Column of the data that names the source (data set, task) of each row. Each source that the training rows name gets "
        "task numbers of its own, for which the network writes its adapters; rows to evaluate and predict must name one of them. Default: "
        "one task.",
    )


class HypernetworkAdapters(SourcedMethod):
    """Adapters whose weights a network writes."""

    name = "hypernetwork"
    summary = "One small network writes the weights of all adapters (HyperFormer++)."
    update_rule = (
        "y = h + LN(U f(D x)), D and U linear in I = network(task of x, block, place): the network and its inputs are trained, "
        "the model is frozen"
    )
    paper = Paper(
        title="Parameter-efficient Multi-task Fine-tuning for Transformers via Shared Hypernetworks",
        authors="Karimi Mahabadi, Ruder, Dehghani, Henderson",
        year=2021,
        url="https://arxiv.org/abs/2106.04489",
    )
    capabilities = Capabilities(adapter=True, merge=False, quantized=True)
    Options = Options
    known_to_peft = False
    prefix = "hypernetwork_"

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        ratio, source = (
            (1.0, f"{CONFIG}: one rate") if facts.kind == "encoder-decoder" else (1 / self.options.embedding_size, MOVED)
        )
        rate = Default(value=3e-4, source=f"{CONFIG}: T5 base on GLUE")
        if facts.narrow_encoder:
            rate = Default(value=1e-2, source=SMALL)
        network = Default(value=ratio, source=source)
        return {"train.learning_rate": rate, "method.network_lr_ratio": network, **encoder_epochs(facts)}

    def refusal(self, facts: ModelFacts) -> str:
        if reason := expert_refusal(facts):
            return reason
        if self.source_column is not None and facts.model_type in WITHOUT_ROWS:
            return f"in the blocks of {facts.model_type} one row cannot be told from another; leave `source_column` out"
        return range_refusal(self.options.blocks, facts.block_count) if self.options.blocks is not None else ""

    def learning_rate_factor(self, name: str, layout: ModelLayout) -> float:
        return float(self.options.network_lr_ratio) if ".hypernetwork_networks." in name else 1.0

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        from ftkit.tuners.hypernetwork import HypernetworkConfig
        from ftkit.tuners.wrap import wrap

        places, options = self._places(layout), self.options
        config = HypernetworkConfig(
            **places.config(layout),
            placement="houlsby",
            reduction_factor=options.reduction_factor,
            activation="gelu_new",
            dropout=options.dropout,
            slots=self._slots(layout, places),
            width=self._width(layout, places),
            task_size=options.task_size,
            hidden_size=options.hidden_size,
            embedding_size=options.embedding_size,
            generated_norm=options.generated_norm,
            sources=self.source_names(),
        )
        return wrap(model, layout, config, self.declares)

    def parameter_count(self, layout: ModelLayout) -> int:
        from ftkit.tuners.adapter import bottleneck_size
        from ftkit.tuners.hypernetwork import kinds_of_slots
        from ftkit.tuners.places import norm_parameter_count
        from ftkit.tuners.wrap import head_parameter_count

        places, options = self._places(layout), self.options
        width = self._width(layout, places)
        size = bottleneck_size(width, None, options.reduction_factor)
        generated = 2 * width * size + size + width + (2 * width if options.generated_norm else 0)
        task, hidden, inner = options.task_size, options.hidden_size, options.embedding_size
        count = task * (max(1, len(self.sources)) + sum(kinds_of_slots(self._slots(layout, places))))
        count += (3 * task + 1) * hidden + (hidden + 1) * inner + 2 * inner + (inner + 1) * generated
        return count + norm_parameter_count(layout, places.norms) + head_parameter_count(layout)

    def _places(self, layout: ModelLayout) -> Places:
        from ftkit.tuners.places import find_places

        options = self.options
        return find_places(layout, "houlsby", blocks=options.blocks, cross_attention=options.cross_attention, norms=options.norms)

    def _width(self, layout: ModelLayout, places: Places) -> int:
        """Of all adapters. Raises ModelError where it differs (Swin's stages)."""
        from ftkit.errors import ModelError

        if len(widths := set(places.widths)) > 1:
            message = f"the blocks of {layout.architecture} are {sorted(widths)} wide, and one network writes weights of one width"
            raise ModelError(message, hint="Use `adapter` or `compacter`")
        return widths.pop()

    def _slots(self, layout: ModelLayout, places: Places) -> dict[str, list[int]]:
        """Number among the chosen blocks and kind of place of each adapter: 0 attention, 1 feed-forward, 2 cross-attention."""
        from ftkit.models.sublayers import attention_outputs, feed_forwards

        found: dict[str, Any] = {place.output: [place.block, 2 if place.cross else 0] for place in attention_outputs(layout)}
        found |= {place.output: [place.block, 1] for place in feed_forwards(layout)}
        numbers = {block: number for number, block in enumerate(sorted({found[path][0] for path in places.outputs}))}
        return {path: [numbers[found[path][0]], found[path][1]] for path in places.outputs}
