"""A PEFT tuner for soft prompts: trained vectors in front of the embedded input, taken out again before anything reads the output.

    H = stack([P; E(x)]),   H[k:] goes on to poolers, heads and the output layer; k = rows of P

So labels, offsets and pooled tokens stay where the input has them, for every head. Lester, Al-Rfou & Constant 2021,
https://arxiv.org/abs/2104.08691.

PEFT 0.21's own prompt tuning works outside the model and leaves the prompt in its output, which misplaces the labels of tokens and
spans, pools BERT's sentence off the prompt and knows no images; hence this one. Nothing of the model is replaced: hooks of the
modules named in the config do the work, and one module `soft_prompt` at its root holds the vectors.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ftkit.errors import ModelError
from ftkit.tuners.hooked import HookedTuner
from ftkit.tuners.prompt_encoders import make_encoder
from ftkit.tuners.sourced_rows import RowSources

NAME = "soft_prompt"


@dataclass
class SoftPromptConfig(PeftConfig):
    """Config of a soft prompt.

    length, width: rows and columns of the prompt.
    encoder: what gives the vectors in training, see `ftkit.tuners.prompt_encoders`. hidden_size, dropout: of its network.
    target_modules: the module in front of whose tokens the prompt goes: a stack that takes token ids, or what embeds images.
    causal: whether each position sees those before it only.
    output_module: the module whose output loses the positions of the prompt; None where a decoder reads them.
    decoder_module: the stack that reads the prompt's positions by cross-attention, if there is one.
    sources: of encoder factorized, the names of the tasks that have a prompt each, in the order of `source_ids`; None: one prompt for all.
    modules_to_save: modules trained and saved whole, beside the prompt (the task head).
    """

    length: int = field(default=20)
    width: int = field(default=0)
    encoder: str = field(default="none")
    hidden_size: int = field(default=0)
    dropout: float = field(default=0.0)
    target_modules: list[str] | str | None = field(default=None)
    causal: bool = field(default=False)
    output_module: str | None = field(default=None)
    decoder_module: str | None = field(default=None)
    sources: list[str] | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["SOFT_PROMPT"]

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Writes the config of what is saved: the prompt without the network that trained it."""
        kept = self.encoder if self.encoder == "factorized" else "none"
        super(SoftPromptConfig, replace(self, encoder=kept, hidden_size=0, dropout=0.0)).save_pretrained(save_directory, **kwargs)


class SoftPrompt(nn.Module, BaseTunerLayer):
    """The prompts of a model by adapter name, and the hooks that put the active one in."""

    adapter_layer_names = ("soft_prompt_encoder",)

    def __init__(self) -> None:
        super().__init__()
        self.soft_prompt_encoder = nn.ModuleDict({})
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter: str | list[str] = []
        self._sources: dict[str, tuple[str, ...]] = {}
        self.row_sources = RowSources()
        self._order = _Order(0, 0, None)
        self._room: int | None = None
        self._causal = False

    def update_layer(self, adapter_name: str, config: SoftPromptConfig, device: torch.device) -> None:
        """Adds a prompt."""
        encoder = make_encoder(
            config.encoder,
            config.length,
            config.width,
            hidden_size=config.hidden_size,
            dropout=config.dropout,
            tasks=len(config.sources or ()),
        )
        self.soft_prompt_encoder[adapter_name] = encoder.to(device)
        self._sources[adapter_name] = tuple(config.sources or ())

    def hook(self, model: nn.Module, target: nn.Module, config: SoftPromptConfig) -> list[Any]:
        """Hooks the modules that the config names; returns the handles."""
        self._room, self._causal = _room(target), config.causal
        outputs = [model.get_submodule(config.output_module)] if config.output_module is not None else []
        if isinstance(target, PreTrainedModel):
            handles = [target.register_forward_pre_hook(self._before_tokens, with_kwargs=True)]
            # What a stack collects of its blocks (`hidden_states`) is cut at the stack itself.
            outputs += [target] if outputs and outputs[0] is not target else []
        else:
            handles = [target.register_forward_hook(self._after_embedding)]
        handles += [module.register_forward_hook(self._after_stack) for module in outputs]
        handles += self.row_sources.hook(model)
        if config.decoder_module is not None:
            decoder = model.get_submodule(config.decoder_module)
            handles.append(decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True))
        return handles

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible. Raises NotImplementedError."""
        raise NotImplementedError("a soft prompt is an input and cannot be merged into weights")

    @property
    def length(self) -> int:
        """Virtual tokens in force; 0 while the adapter is disabled."""
        encoder: Any = self._encoder()
        return 0 if encoder is None else encoder.length

    def _name(self) -> str | None:
        active = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.soft_prompt_encoder]
        return active[0] if active else None

    def _encoder(self) -> nn.Module | None:
        name = self._name()
        return None if name is None else self.soft_prompt_encoder[name]

    def _vectors(self, embeddings: Tensor) -> Tensor:
        """The prompt for each row of (B, T, H) embeddings: (B, k, H)."""
        encoder: Any = self._encoder()
        sources = self._sources[self._name() or ""]
        prompts = encoder(self._numbers(len(embeddings), sources).to(embeddings.device)) if sources else encoder()
        return prompts.to(embeddings.dtype).expand(len(embeddings), -1, -1)

    def _numbers(self, rows: int, sources: Sequence[str]) -> Tensor:
        """The source of each row, int64 (rows,). Raises ModelError if the call does not say which that is."""
        found = self.row_sources.rows(rows, sources)
        return found.present[found.members].repeat_interleave(rows // len(found.members))

    def _before_tokens(self, stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]] | None:
        self._order = _Order(0, 0, None)
        if not self.length:
            return None
        given = named_arguments(stack, args, kwargs)
        cached = _cached_length(given.get("past_key_values"))
        if cached:
            # The prompt is in the cache already; only what counts positions must know of it.
            return (), self._continued(given, cached)
        embeddings = given.pop("inputs_embeds", None)
        tokens = given.pop("input_ids", None)
        embeddings = stack.get_input_embeddings()(tokens) if embeddings is None else embeddings
        self._check_room(embeddings.shape[1])
        self._order = self._order_of(embeddings.shape[1], given.get("attention_mask"))
        return (), {**self._widened(given), "inputs_embeds": self._order.join(self._vectors(embeddings), embeddings)}

    def _order_of(self, tokens: int, mask: Any) -> _Order:
        """Decoders may have padding on the left. The prompt comes after it: a window over the last positions counts padding, too."""
        padded = self._causal and isinstance(mask, Tensor) and mask.dim() == 2
        return _Order(self.length, tokens, (mask != 0).long().argmax(1) if padded else None)

    def _widened(self, given: dict[str, Any]) -> dict[str, Any]:
        """Masks, positions and types with those of the prompt."""
        changes: dict[str, Any] = {}
        for name in ("token_type_ids", "global_attention_mask"):
            if given.get(name) is not None:
                changes[name] = self._order.fill(given[name], 0)
        if (positions := given.get("position_ids")) is not None:
            first = torch.arange(self.length, device=positions.device).expand(len(positions), -1)
            changes["position_ids"] = self._order.join(first, positions + self.length)
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor):
            wide = self._order.fill(mask, 1) if mask.dim() == 2 else _block_mask(mask, self.length, self._causal)
            changes["attention_mask"] = wide
        elif mask is not None:
            raise ModelError("a soft prompt cannot be put in front of masks that differ by layer", hint="Use a dynamic cache")
        return {**given, **changes}

    def _continued(self, given: dict[str, Any], cached: int) -> dict[str, Any]:
        """The arguments of a later call of the same generation, whose cache of `cached` positions holds the prompt."""
        changes: dict[str, Any] = {}
        new = next(given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None).shape[1]
        mask, positions = given.get("attention_mask"), given.get("position_ids")
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] + self.length == cached + new:
            changes["attention_mask"] = self._order_of(mask.shape[1], mask).fill(mask, 1)
        if positions is not None:
            changes["position_ids"] = positions + self.length
        return {**given, **changes}

    def _check_room(self, tokens: int) -> None:
        """Raises ModelError if the table of positions is too short; the lookup itself would end in an index error."""
        if self._room is not None and self.length + tokens > self._room:
            raise ModelError(
                f"a prompt of {self.length} and an input of {tokens} tokens exceed the model's {self._room} positions",
                hint=f"Set `task.max_length` to {self._room - self.length} or less, or shorten the prompt",
            )

    def _after_embedding(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        self._order = _Order(self.length, output.shape[1], None)
        return self._order.join(self._vectors(output), output) if self.length else None

    def _after_stack(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self._order.length:
            return None
        states = output[0]
        if states.shape[1] not in (self._order.full_length, self._order.tokens):
            hint = "Use another method, such as `lora`"
            raise ModelError(
                f"{type(module).__name__} changes the length of its sequence, out of which no prompt can be taken", hint=hint
            )
        return _cut(output, self._order)

    def _before_decoder(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = named_arguments(stack, args, kwargs)
        mask, states = given.get("encoder_attention_mask"), given.get("encoder_hidden_states")
        if mask is None or states is None or mask.shape[-1] + self.length != states.shape[1]:
            return None
        return (), {**given, "encoder_attention_mask": nn.functional.pad(mask, (self.length, 0), value=1)}


class SoftPromptModel(HookedTuner):
    """Puts soft prompts in front of what a model reads."""

    prefix = "soft_prompt_"
    tuner_layer_cls = SoftPrompt
    container_name = NAME

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config: Any = peft_config
        if self.container is None:
            self.attach(SoftPrompt())
            self.undo += [handle.remove for handle in self.layer.hook(self.model, target, config)]
        self.layer.update_layer(adapter_name, config, next(target.parameters()).device)

    def generate(self, *args: Any, source_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """What the model generates for rows of these sources, int64 (B,), where the prompt differs by source."""
        model: Any = self.model
        with self.layer.row_sources.generating(source_ids):
            return model.generate(*args, **kwargs)

    @property
    def virtual_positions(self) -> int:
        """Positions of the model that the active prompt takes up."""
        config: Any = self.peft_config[self.active_adapters[0]]
        # A decoder that reads the prompt by cross-attention has all its positions to itself.
        return self.layer.length if config.decoder_module is None else 0


# --- what the stack is given -----------------------------------------------------------------------------------------------


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `module.forward` by name."""
    return {**dict(zip(_parameters(type(module)), args, strict=False)), **kwargs}


def _parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    # Of the class: what wraps the `forward` of an instance (Accelerate, torch.compile) need not repeat the names.
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def _cached_length(cache: Any) -> int:
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0


class _Order:
    """Where the prompt is in a sequence of `length` virtual and `tokens` other positions.

    starts: the position of each row that it stands before, int64 (B,); None: the first of all rows.
    """

    def __init__(self, length: int, tokens: int, starts: Tensor | None) -> None:
        self.length, self.tokens, self.starts = length, tokens, starts

    @property
    def full_length(self) -> int:
        """Positions with the prompt's."""
        return self.length + self.tokens

    def join(self, prompt: Tensor, others: Tensor) -> Tensor:
        """Values (B, k, ...) of the prompt and (B, T, ...) of the rest as (B, k + T, ...)."""
        joined = torch.cat([prompt, others], dim=1)
        if self.starts is None:
            return joined
        place, start = torch.arange(self.full_length, device=joined.device), self.starts[:, None]
        source = torch.where(place < start, place + self.length, torch.where(place < start + self.length, place - start, place))
        return _picked(joined, source)

    def fill(self, others: Tensor, value: int) -> Tensor:
        """Values (B, T) with the same one for each position of the prompt."""
        return self.join(others.new_full((len(others), self.length), value), others)

    def cut(self, states: Tensor) -> Tensor:
        """Hidden states (B, k + T, H) without the prompt's."""
        if self.starts is None:
            return states[:, self.length :]
        place = torch.arange(self.tokens, device=states.device)
        return _picked(states, torch.where(place < self.starts[:, None], place, place + self.length))


def _picked(values: Tensor, source: Tensor) -> Tensor:
    """The positions (B, N) of values (B or 1, M) or (B or 1, M, H)."""
    values = values.expand(len(source), *values.shape[1:])
    return values.gather(1, source if values.dim() == 2 else source[..., None].expand(-1, -1, values.shape[2]))


def _block_mask(mask: Tensor, length: int, causal: bool) -> Tensor:
    """A mask (B, 1, T, T), true or 0 where a row may look, for [P; x]: x sees all of P, P sees itself alone."""
    batch, heads, rows, columns = mask.shape
    seen: Any = True if mask.dtype == torch.bool else 0
    unseen: Any = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    wide = mask.new_full((batch, heads, length + rows, length + columns), unseen)
    own = torch.ones(length, length, dtype=torch.bool, device=mask.device)
    wide[..., :length, :length].masked_fill_(own.tril() if causal else own, seen)
    wide[..., length:, :length] = seen
    wide[..., length:, length:] = mask
    return wide


def _room(stack: nn.Module) -> int | None:
    """Rows of the smallest table of absolute positions, None where there is none."""
    tables = []
    for path, module in stack.named_modules():
        leaf = path.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and ("position" in leaf or leaf == "wpe") and "relative" not in leaf:
            kept = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            tables.append(module.num_embeddings - kept)
    return min(tables, default=None)


def _cut(value: Any, order: _Order) -> Any:
    """An output, however nested, whose hidden states (B, k + T, H) have lost the prompt's."""
    if isinstance(value, Tensor):
        return order.cut(value) if value.dim() == 3 and value.shape[1] == order.full_length else value
    if isinstance(value, ModelOutput):
        for name, item in list(value.items()):
            value[name] = _cut(item, order)
        return value
    return type(value)(_cut(item, order) for item in value) if isinstance(value, tuple | list) else value
