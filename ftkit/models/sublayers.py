"""Where the sublayers of Transformer blocks begin and end: what adapters are put behind, beside and around.

A block adds the outputs of its sublayers (attention, feed-forward) to the residual stream. It norms the sum afterwards (post-norm:
BERT, BART) or norms each sublayer's input (pre-norm: GPT, Llama, T5, ViT). Modules alone do not tell the two apart where the norms are
children of the block, so the stack does: only stacks of pre-norm blocks end in a norm of their own. All places are leaf modules, so that
several adapters can share a model whatever their places are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ftkit.errors import ModelError
from ftkit.models.layout import Block, ModelLayout
from ftkit.models.roles import ATTENTION_INPUTS, linear_shape

# Norms that are children of the block and belong to its attention, or close the feed-forward branch before it is added (Gemma 2).
_ATTENTION_NORM = re.compile(r"cross|encoder_attn|self_attn|sa_layer|ln_attn|attn_norm|attention_norm")
_CLOSING_NORM = re.compile(r"post_(feed_?forward|ffn|ffw|mlp)")
_EMBEDDING_NORM = re.compile(r"emb(?!.*after)")
_EXPERT = re.compile(r"expert|router")


@dataclass(frozen=True)
class AttentionOutput:
    """The leaf module that gives what an attention sublayer adds to the residual stream.

    cross: it attends to the encoder's output. width: of the residual stream.
    """

    block: int
    output: str
    cross: bool
    width: int


@dataclass(frozen=True)
class FeedForward:
    """The places of a block's feed-forward sublayer, as paths of leaf modules.

    output: gives what is added to the residual stream. entry: its input is the residual stream before the sublayer.
    norm: norms the sum, '' in pre-norm blocks. width: of the residual stream.
    """

    block: int
    output: str
    entry: str
    norm: str
    width: int


def attention_outputs(layout: ModelLayout) -> list[AttentionOutput]:
    """The attention sublayers of all blocks. Raises ModelError if the model has none whose layers are known."""
    inputs, outputs = layout.linears(*ATTENTION_INPUTS), layout.linears("attention_out")
    found = []
    for block in layout.blocks:
        view = _BlockView(layout, block)
        branches = dict.fromkeys(view.branch(path) for path in inputs if _inside(path, block.name))
        last = {view.branch(path): path for path in outputs if _inside(path, block.name)}
        kept = [branch for branch in branches if branch in last] or list(last)
        for number, branch in enumerate(kept):
            width = linear_shape(_plain(layout, last[branch]))[1]
            found.append(AttentionOutput(block.index, view.dropped_out(last[branch]), number > 0, width))
    return found


def feed_forwards(layout: ModelLayout) -> list[FeedForward]:
    """The feed-forward sublayers of all blocks that have one.

    Raises ModelError if there are none, or several in a block: a mixture of experts has no one place for an adapter.
    """
    inputs, outputs = layout.linears("ffn_in"), layout.linears("ffn_out")
    found = []
    for block in layout.blocks:
        ins = [path for path in inputs if _inside(path, block.name)]
        outs = [path for path in outputs if _inside(path, block.name)]
        _refuse_experts(layout, block, outs)
        if ins and outs:
            found.append(_feed_forward(layout, block, ins, outs[0]))
    return found


def _refuse_experts(layout: ModelLayout, block: Block, outs: Sequence[str]) -> None:
    experts = any(_EXPERT.search(name) for name, _ in block.module.named_modules())
    if len(outs) > 1 or experts:
        raise ModelError(
            f"{layout.architecture}: the feed-forward part of {block.name} consists of several (a mixture of experts)",
            hint="Adapters need one feed-forward part in each block; use `lora`, or only attention",
        )


def _feed_forward(layout: ModelLayout, block: Block, ins: Sequence[str], out: str) -> FeedForward:
    view, width = _BlockView(layout, block), linear_shape(_plain(layout, out))[1]
    around = _norms(layout, view, ins[0], out, width)
    return FeedForward(
        block=block.index,
        output=around.closing or view.dropped_out(out),
        entry=around.before or ins[0],
        norm=around.after,
        width=width,
    )


@dataclass(frozen=True)
class _Norms:
    """The norm of the sublayer's input, of its output before the sum, and of the sum; '' for none."""

    before: str = ""
    closing: str = ""
    after: str = ""


def _norms(layout: ModelLayout, view: _BlockView, first: str, out: str, width: int) -> _Norms:
    names = [name for name in layout.norms() if _inside(name, view.root) and _size(layout, name) == width]
    own = {view.branch(first), view.branch(out)} - view.attention_branches
    inner = [name for name in names if view.branch(name) in own]
    if inner and len(own) == 2:  # input and output layers are modules of their own: each holds its norm (BERT)
        after = [name for name in inner if view.branch(name) == view.branch(out)]
        return _Norms(after=after[-1]) if after else _Norms(before=inner[0])
    outer = inner or [name for name in names if view.branch(name) not in own | view.attention_branches]
    closing = next((name for name in outer if _CLOSING_NORM.search(_leaf(name))), "")
    usable = [name for name in outer if name != closing and not _ATTENTION_NORM.search(_leaf(name))]
    candidates = usable or [name for name in outer if name != closing]
    if closing:
        # Where only norms that follow something are left (OLMo 2), the sublayer's input is the residual stream itself.
        begins = any(not _leaf(name).startswith("post") for name in candidates)
        return _Norms(before=candidates[-1] if begins else "", closing=closing)
    if not candidates:
        return _Norms()
    return _Norms(before=candidates[-1]) if _is_pre_norm(layout, view.block) else _Norms(after=candidates[-1])


def _is_pre_norm(layout: ModelLayout, block: Block) -> bool:
    """Whether the stack of the block ends in a norm of its own, which may lie in the pooler (BEiT)."""
    inside = [other.name for other in layout.blocks]
    for name in layout.norms():
        parent = name.rpartition(".")[0]
        outside = not any(_inside(name, other) for other in inside)
        behind = not parent or _inside(block.name, parent) or _leaf(parent) == "pooler"
        if outside and behind and not _EMBEDDING_NORM.search(_leaf(name)):
            return True
    return False


class _BlockView:
    """The children of a block, by which its sublayers are told apart."""

    def __init__(self, layout: ModelLayout, block: Block) -> None:
        self.layout, self.block = layout, block
        inputs = [path for path in layout.linears(*ATTENTION_INPUTS) if _inside(path, block.name)]
        linears = [path for path in layout.linears("all") if _inside(path, block.name)]
        self.root = block.name
        # A block may hold all of its parts in one child.
        while linears and len(children := {self.branch(path) for path in linears}) == 1 and not children & set(linears):
            self.root = children.pop()
        self.attention_branches = {self.branch(path) for path in inputs}

    def branch(self, path: str) -> str:
        """The child of the block that a module lies in; lists of modules are looked through."""
        current = self.root
        for segment in path[len(self.root) + 1 :].split("."):
            current = f"{current}.{segment}"
            if not isinstance(_plain(self.layout, current), (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
                break
        return current

    def dropped_out(self, path: str) -> str:
        """The dropout module that a sublayer's last layer feeds, where it is plain to see, else that layer.

        It is where a parent holds nothing but the layer, norms and one dropout (BERT, T5).
        """
        norms, current = set(self.layout.norms()), path
        while (parent := current.rpartition(".")[0]) != self.root and len(parent) > len(self.root):
            if any(_inside(name, parent) for name in norms):
                children = [f"{parent}.{name}" for name, _ in self.layout.model.get_submodule(parent).named_children()]
                dropouts = [name for name in children if isinstance(_plain(self.layout, name), nn.Dropout)]
                others = set(children) - norms - {current, *dropouts}
                return dropouts[0] if len(dropouts) == 1 and not others else path
            current = parent
        return path


def _plain(layout: ModelLayout, path: str) -> nn.Module:
    """The model's own module, also after an adapter has been put around it."""
    module: Any = layout.model.get_submodule(path)
    return getattr(module, "base_layer", module)


def _size(layout: ModelLayout, norm: str) -> int:
    return _plain(layout, norm).get_parameter("weight").numel()


def _inside(name: str, owner: str) -> bool:
    return name.startswith(f"{owner}.")


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
