"""Where the parts of a Transformer are: embeddings, blocks, attention, feed-forward, norms, head.

The one place that knows architectures. Parts are found by structure; the table of attention names in `roles.py` is used
where structure cannot tell a query from a key. All names are those of the plain model and are taken when the layout is
made, so they stay right after PEFT has put its layers into the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ftkit.errors import ModelError
from ftkit.models.naming import find_suffixes, known_prefix, unwrapped_names
from ftkit.models.roles import ATTENTION_INPUTS, ROLES, classify_block, has_attention, is_linear

_EMBEDDING_MODULES = (nn.Embedding, nn.EmbeddingBag, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BLOCK_COUNT_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers", "decoder_layers", "num_decoder_layers")


@dataclass(frozen=True)
class Block:
    """One Transformer block.

    name: module path in the plain model. stack: `encoder` or `decoder` where the model has both (or the path segment that
    tells several stacks apart), else ''. index: 0.. over all blocks, encoder before decoder.
    """

    name: str
    module: nn.Module
    stack: str
    index: int


class ModelLayout:
    """The parts of a plain (not PEFT-wrapped) transformers model with a head.

    fresh: names of parameters that the checkpoint did not provide (newly initialized).
    assembled: the model was put together of two pretrained ones; what is wholly fresh inside its blocks (cross-attention) counts
    as head.
    Raises ModelError if the blocks of the model cannot be found.
    """

    def __init__(self, model: nn.Module, fresh: Iterable[str] = (), *, assembled: bool = False) -> None:
        self.model, self.assembled = model, assembled
        self._modules = dict(model.named_modules())
        self._parameters = dict(model.named_parameters())
        first_names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._first_name = {name: first_names[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
        self.fresh = frozenset(self._first_name.get(name, name) for name in fresh)
        prefix = getattr(model, "base_model_prefix", "")
        self.backbone_name: str = prefix if prefix and prefix in self._modules else ""
        self._pair = _pair_backbones(model)
        self._bare_heads = frozenset(self._find_bare_heads())
        self.blocks: list[Block] = self._find_blocks()
        self._head_modules = self._find_head()
        # A dict for its order and its fast membership test.
        self._head_parameters = dict.fromkeys(self._find_head_parameters())
        self._roles = {block.name: self._find_roles(block) for block in self.blocks}
        self._depths = {name: self._find_depth(name) for name in self._parameters}

    # --- parts ---------------------------------------------------------------------------------------------------

    @property
    def architecture(self) -> str:
        """Class name of the model, for messages."""
        return type(self.model).__name__

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream (of the last stage where the width changes)."""
        config: Any = self.model.config
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        return int(text_config.hidden_size)

    def head_modules(self) -> list[str]:
        """Module paths of the head: the top-most modules with parameters of their own outside the backbone, then the
        top-most backbone modules that are wholly fresh (BERT's pooler when the checkpoint lacks it).

        Modules that share parameters with the backbone (a tied lm_head) are not among them.
        """
        return list(self._head_modules)

    def head_parameters(self) -> list[str]:
        """Names of the parameters of the head, including bare ones that belong to no head module."""
        return list(self._head_parameters)

    def embeddings(self) -> list[str]:
        """Module paths of learned embeddings outside blocks: tokens, positions, types, ViT's patch projection."""
        return [
            name
            for name, module in self._between()
            if isinstance(module, _EMBEDDING_MODULES) and "Sinusoidal" not in type(module).__name__
        ]

    def embedding_parameters(self) -> list[str]:
        """Names of the parameters of `embeddings()`, and of bare ones outside blocks (ViT's class token and positions)."""
        owners = set(self.embeddings())
        bare = {name for name, module in self._between() if not _is_layer(module)}
        return [name for name in self._parameters if _parent(name) in owners | bare and name not in self._head_parameters]

    def norms(self) -> list[str]:
        """Module paths of LayerNorm, RMSNorm and kin anywhere in the backbone."""
        return [name for name, module in self._backbone_modules() if _is_norm(module)]

    def biases(self) -> list[str]:
        """Names of the bias vectors of the backbone's layers, the head's excluded."""
        names = (
            f"{name}.bias" for name, module in self._backbone_modules() if isinstance(getattr(module, "bias", None), nn.Parameter)
        )
        return [name for name in dict.fromkeys(self._first_name[name] for name in names) if name not in self._head_parameters]

    def linears(self, *roles: str) -> list[str]:
        """Module paths of the linear layers inside blocks with any of the given roles, in order of the model.

        Roles: query, key, value, qkv (fused), attention_out (cross-attention included), ffn_in, ffn_out; `all` is every
        linear layer of the blocks. A role that this model does not have gives nothing. Raises ModelError if the model has
        no recognizable attention inputs or feed-forward layers at all and one of these is asked for.
        """
        if unknown := set(roles) - {*ROLES, "all"}:
            raise ValueError(f"unknown roles {sorted(unknown)}, known: {[*ROLES, 'all']}")
        found = [(name, role) for block in self.blocks for name, role in self._roles[block.name].items()]
        present = {role for _, role in found}
        if present.isdisjoint(ATTENTION_INPUTS) and not {*ATTENTION_INPUTS, "attention_out"}.isdisjoint(roles):
            raise self._not_found("attention projections that are linear layers")
        if present.isdisjoint({"ffn_in", "ffn_out"}) and not {"ffn_in", "ffn_out"}.isdisjoint(roles):
            raise self._not_found("feed-forward parts that are linear layers")
        return [name for name, role in found if "all" in roles or role in roles]

    def attention_input_roles(self) -> list[str]:
        """The roles among query, key, value, qkv that this model has."""
        present = {role for roles in self._roles.values() for role in roles.values()}
        return [role for role in ATTENTION_INPUTS if role in present]

    # --- names ---------------------------------------------------------------------------------------------------

    def canonical(self, name: str) -> str:
        """The name in the plain model of the parameter or module that a PEFT-wrapped name belongs to.

        A wrapped or copied parameter (`base_layer`, `modules_to_save`, `original_module`) gives its own plain name, a
        parameter of an adapter gives the module that holds the adapter. A tied parameter gives its first name. What
        belongs to no module of the model (a prompt encoder) comes back as it is.
        """
        best = ""
        for candidate in unwrapped_names(name):
            if candidate in self._first_name:
                return self._first_name[candidate]
            best = max(best, known_prefix(candidate, self._modules), key=len)
        return best or name

    def is_parameter(self, name: str) -> bool:
        """Whether a name is that of a parameter of the plain model (not of a module, not of an adapter)."""
        return name in self._first_name

    def depth(self, parameter_name: str) -> int:
        """How deep a parameter lies: 0 embeddings, 1..len(blocks) blocks, len(blocks) + 1 head.

        Decoder blocks come after encoder blocks. What follows a stack (its final norm, a pooler) has the depth of the
        stack's last block; what precedes it, and what belongs to no module of the model (prompts), has depth 0.
        """
        name = self.canonical(parameter_name)
        return self._depths[name] if name in self._depths else self._find_depth(name)

    def suffixes(self, paths: Sequence[str]) -> list[str] | str:
        """Value for PEFT's `target_modules` that matches exactly `paths` among all modules of the model.

        A list of module-name suffixes of at most three segments, as short as possible, or a regular expression where no
        such list exists. Raises ValueError if a path is no module of the model.
        """
        if missing := [path for path in paths if path not in self._modules]:
            raise ValueError(f"no modules of {self.architecture}: {missing[:5]}")
        return find_suffixes(paths, list(self._modules))

    # --- how they are found --------------------------------------------------------------------------------------

    def _not_found(self, what: str) -> ModelError:
        return ModelError(
            f"{self.architecture}: could not find {what}",
            hint="What was asked for needs them; choose another method or another model",
        )

    def _backbone_modules(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self._modules.items():
            if _within(name, self.backbone_name) and not any(_within(name, head) for head in self._head_modules):
                yield name, module

    def _between(self) -> Iterator[tuple[str, nn.Module]]:
        """Modules of the backbone that are in no block."""
        names = [block.name for block in self.blocks]
        for name, module in self._backbone_modules():
            if not any(_within(name, block) for block in names):
                yield name, module

    def _find_blocks(self) -> list[Block]:
        backbone = self._modules[self.backbone_name]
        lists = list(_outermost_lists(self.backbone_name, backbone))
        stacks = [(name, blocks) for name, blocks in lists if any(has_attention(block) for _, block in blocks)]
        if not stacks:
            counts = {getattr(self.model.config, key, None) for key in _BLOCK_COUNT_KEYS} - {None}
            stacks = [(name, blocks) for name, blocks in lists if len(blocks) in counts]
        # A list of attention modules alone (XLM) is a slice through the blocks, not a list of blocks.
        if not stacks or not all(any(_has_weights_beside_attention(block) for _, block in blocks) for _, blocks in stacks):
            raise self._not_found("the list of Transformer blocks")
        named = [(_stack_name(name, [other for other, _ in stacks]), blocks) for name, blocks in stacks]
        named.sort(key=lambda stack: stack[0] == "decoder")
        flat = [(stack, name, module) for stack, blocks in named for name, module in blocks]
        return [Block(name, module, stack, index) for index, (stack, name, module) in enumerate(flat)]

    def _find_head(self) -> list[str]:
        backbone = {id(parameter) for name, parameter in self._parameters.items() if self._in_backbone(name)}
        heads = [head for name, child in self.model.named_children() for head in self._owners(name, child, backbone)]
        return heads + self._fresh_backbone_modules(heads)

    def _in_backbone(self, parameter_name: str) -> bool:
        if self._pair:
            return any(_within(parameter_name, name) for name in self._pair)
        if self.backbone_name:
            return _within(parameter_name, self.backbone_name)
        return parameter_name.partition(".")[0] not in self._bare_heads

    def _find_bare_heads(self) -> list[str]:
        """Heads of a model without a backbone module, whose stacks are its direct children (T5ForConditionalGeneration):
        direct children that hold linear layers and nothing else."""
        if self.backbone_name or _is_headless(self.model):
            return []
        return [name for name, child in self.model.named_children() if _is_all_linear(child)]

    def _owners(self, name: str, module: nn.Module, backbone: set[int]) -> Iterator[str]:
        parameters = list(module.parameters())
        if name == self.backbone_name or all(id(parameter) in backbone for parameter in parameters):
            return
        if not any(id(parameter) in backbone for parameter in parameters):
            yield name
            return
        for child_name, child in module.named_children():
            yield from self._owners(f"{name}.{child_name}", child, backbone)

    def _fresh_backbone_modules(self, heads: list[str]) -> list[str]:
        found: list[str] = []
        blocks = [] if self.assembled else [block.name for block in self.blocks]
        for name, module in self._modules.items():
            parameters = [f"{name}.{inner}" for inner, _ in module.named_parameters()]
            outside = any(_within(name, other) or _within(other, name) for other in (*blocks, *heads, *found))
            embeds = any(isinstance(inner, _EMBEDDING_MODULES) for inner in module.modules())
            if parameters and name and not outside and not embeds and self.fresh.issuperset(parameters):
                found.append(name)
        return found

    def _find_roles(self, block: Block) -> dict[str, str]:
        roles = classify_block(block.name, block.module)
        return {path: role for path, role in roles.items() if not any(_within(path, head) for head in self._head_modules)}

    def _find_head_parameters(self) -> list[str]:
        def belongs(name: str) -> bool:
            return any(_within(name, head) for head in self._head_modules) or not self._in_backbone(name)

        return [name for name in self._parameters if belongs(name)]

    def _find_depth(self, name: str) -> int:
        if name in self._head_parameters or any(_within(name, head) for head in self._head_modules):
            return len(self.blocks) + 1
        for block in self.blocks:
            if _within(name, block.name):
                return block.index + 1
        # Inside a stage but in none of its blocks (Swin's downsampling): the stage's last block.
        for block in reversed(self.blocks):
            stage = block.name.rpartition(".")[0].rpartition(".")[0]
            if stage.rpartition(".")[2].isdigit() and _within(name, stage):
                return block.index + 1
        return self._depth_between(name)

    def _depth_between(self, name: str) -> int:
        module = name if name in self._modules else _parent(name)
        if module not in self._modules or "embed" in name or not _is_layer(self._modules[module]):
            return 0
        if isinstance(self._modules[module], _EMBEDDING_MODULES):
            return 0
        order = list(self._modules)
        stack = max(self.blocks, key=lambda block: (_shared_segments(module, block.name), block.index))
        first = next(block for block in self.blocks if block.stack == stack.stack)
        follows = order.index(module) > order.index(first.name) or "final" in module
        return stack.index + 1 if follows else 0


def _pair_backbones(model: Any) -> tuple[str, ...]:
    """The two bodies of an EncoderDecoderModel, whose decoder has its own head; nothing for other models."""
    if model.config.model_type != "encoder-decoder":
        return ()
    return ("encoder", f"decoder.{model.decoder.base_model_prefix}")


def _is_headless(model: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names = MODEL_MAPPING_NAMES.get(model.config.model_type, ())
    return type(model).__name__ in ((names,) if isinstance(names, str) else names)


def _is_all_linear(module: nn.Module) -> bool:
    layers = [inner for inner in module.modules() if next(inner.parameters(recurse=False), None) is not None]
    return bool(layers) and all(is_linear(layer) for layer in layers)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _within(name: str, owner: str) -> bool:
    return not owner or name == owner or name.startswith(f"{owner}.")


def _shared_segments(one: str, other: str) -> int:
    count = 0
    for left, right in zip(one.split("."), other.split("."), strict=False):
        if left != right:
            break
        count += 1
    return count


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and isinstance(weight, nn.Parameter) and weight.dim() == 1


def _is_constant(module: nn.Module) -> bool:
    """Whether an embedding is a fixed table that is never trained (Marian's and Pegasus' sinusoidal positions)."""
    return "sinusoidal" in type(module).__name__.lower()


def _is_layer(module: nn.Module) -> bool:
    """Whether the module's own parameters are those of a layer, not bare ones like ViT's class token."""
    return is_linear(module) or _is_norm(module) or isinstance(module, _EMBEDDING_MODULES)


def _outermost_lists(name: str, module: nn.Module) -> Iterator[tuple[str, list[tuple[str, nn.Module]]]]:
    """Lists of modules that lie in no other list; lists of stages (Swin, Funnel) are flattened to their layers."""
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if isinstance(child, nn.ModuleList):
            yield path, [layer for index, stage in child.named_children() for layer in _layers_of_stage(f"{path}.{index}", stage)]
        else:
            yield from _outermost_lists(path, child)


def _layers_of_stage(name: str, stage: nn.Module) -> list[tuple[str, nn.Module]]:
    inner = [(name, list(stage.named_children()))] if isinstance(stage, nn.ModuleList) else []
    inner += [
        (f"{name}.{key}", list(child.named_children())) for key, child in stage.named_children() if isinstance(child, nn.ModuleList)
    ]
    for path, children in inner:
        if children and all(has_attention(child) and _has_weights_beside_attention(child) for _, child in children):
            return [(f"{path}.{key}", child) for key, child in children]
    return [(name, stage)]


def _has_weights_beside_attention(block: nn.Module) -> bool:
    attention = classify_block("", block)
    if any(role in ATTENTION_INPUTS and "." not in name for name, role in attention.items()):
        return False  # the module is an attention module itself
    inside = {name for name, role in attention.items() if role not in ("ffn_in", "ffn_out", "")}
    return any(parameter.dim() > 1 and _parent(name) not in inside for name, parameter in block.named_parameters())


def _stack_name(name: str, all_names: list[str]) -> str:
    segments = name.split(".")
    if len(all_names) == 1:
        return ""
    # The first one: the decoder of a pair of models may be an encoder by itself (decoder.bert.encoder.layer).
    if known := next((segment for segment in segments if segment in ("encoder", "decoder")), ""):
        return known
    shared = min(_shared_segments(name, other) for other in all_names if other != name)
    return segments[shared]
