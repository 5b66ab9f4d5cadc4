"""Text that models write: options, padding of prompts, generating token by token.

What a checkpoint's generation_config.json says about length, sampling, beams and penalties does not count here: it would make
results depend on who published the model (and without one, transformers stops after 20 tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from threading import Event, Thread
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from ftkit.recipe.schema import Auto, Strict
from ftkit.tasks.base import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import GenerationConfig

_OF_THE_CHECKPOINT = (
    "bos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
)
"""What belongs to the vocabulary rather than to the way of searching. Marian keeps its padding token from being written this way."""


class GenerationOptions(Strict):
    """How text is generated. The default is greedy: the likeliest token each time, the same text on each run."""

    max_new_tokens: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto", description="Longest text to generate, in tokens. auto: what the longest target of the training rows needs."
    )
    min_new_tokens: int | None = Field(None, ge=1, description="Tokens before the text may end.")
    num_beams: int = Field(1, ge=1, description="Beam search keeps this many candidates; 1 is no search.")
    do_sample: bool = Field(False, description="Draw tokens by their probability. The draws are the same on each run.")
    temperature: float | None = Field(
        None, gt=0, description="do_sample: below 1 sharpens the probabilities, above 1 flattens them."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="do_sample: draw from the likeliest tokens that have this share together."
    )
    top_k: int | None = Field(None, ge=1, description="do_sample: draw from this many likeliest tokens. Default: from all.")
    repetition_penalty: float | None = Field(None, gt=0, description="Above 1 makes tokens that are there already less likely.")
    no_repeat_ngram_size: int | None = Field(None, ge=1, description="No sequence of so many tokens comes twice in a text.")
    length_penalty: float | None = Field(
        None, description="num_beams: scores are divided by length to this power; above 0 prefers longer texts. Default: 1."
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="do_sample: seed of the draws. Default: 0.")

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> GenerationOptions:
        sampling = [name for name in ("temperature", "top_p", "top_k", "seed") if getattr(self, name) is not None]
        if sampling and not self.do_sample:
            raise ValueError(f"{sampling[0]} has no effect without `do_sample: true`")
        if self.length_penalty is not None and self.num_beams == 1:
            raise ValueError("length_penalty has no effect without `num_beams` of at least 2")
        if self.min_new_tokens and self.max_new_tokens != "auto" and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} exceeds max_new_tokens {self.max_new_tokens}")
        return self


def left_pad(ids: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """`input_ids` and `attention_mask`, int64 (B, T), padded on the left, for decoders: what they write follows the last token.

    The mask comes from lengths, because the padding token can also be a token of a text.
    """
    import torch

    width = max(len(row) for row in ids)
    batch = {"input_ids": torch.full((len(ids), width), pad_id), "attention_mask": torch.zeros(len(ids), width, dtype=torch.int64)}
    for index, row in enumerate(ids):
        if len(row):
            batch["input_ids"][index, width - len(row) :] = torch.as_tensor(row)
            batch["attention_mask"][index, width - len(row) :] = 1
    return batch


def generate_tokens(
    model: nn.Module,
    inputs: Batch,
    options: GenerationOptions,
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
) -> list[list[int]]:
    """The new tokens of each row, cut before the first of `stop_ids`.

    model: a decoder or encoder-decoder in evaluation mode, may be a PeftModel, outside any distributed wrapper.
    inputs: arguments of its `generate`: `input_ids` and `attention_mask` (B, T) on any device; those of decoders padded on the left.
    max_new_tokens: what `options.max_new_tokens` comes to; the caller sees to it that the model has that many positions.
    Draws leave torch's global generators as they were.
    """
    call = _Call(model, inputs, options, max_new_tokens, stop_ids, pad_id)
    sequences = call.run()
    return [until_stop(row, stop_ids) for row in sequences[:, call.prompt_width :].tolist()]


def until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """The tokens before the first of `stop_ids`."""
    stops = set(stop_ids)
    end = next((index for index, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:end])


def stream_text(
    model: nn.Module,
    inputs: Batch,
    options: GenerationOptions,
    processor: Any,
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[str, None, list[int]]:
    """Pieces of the text of one row (B = 1) as they come, special tokens left out; returns what `generate_tokens` would.

    Arguments as there. stopped: asked after each token whether that was the last one. Of several beams none is final before the last
    token, so that their text comes as one piece. Generation runs in a thread; its errors are raised here, and it ends when the
    iterator is closed. Raises ValueError for several rows.
    """
    if (rows := len(next(iter(inputs.values())))) != 1:
        raise ValueError(f"only one row can be streamed, not {rows}")
    call = _Call(model, inputs, options, max_new_tokens, stop_ids, pad_id)
    return _stream(call, processor, stop_ids, stopped, beams=options.num_beams > 1)


def _stream(
    call: _Call, processor: Any, stop_ids: Sequence[int], stopped: Callable[[], bool], *, beams: bool
) -> Generator[str, None, list[int]]:
    closed, errors, found = Event(), list[BaseException](), list[int]()
    streamer = None if beams else _text_streamer(processor, stop_ids)

    def work() -> None:
        try:
            sequences = call.run(streamer=streamer, stopping_criteria=[_criterion(lambda: closed.is_set() or stopped())])
            found.extend(until_stop(sequences[0, call.prompt_width :].tolist(), stop_ids))
        except BaseException as error:
            errors.append(error)
            if streamer is not None:
                streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer or () if piece)
        thread.join()
    finally:
        closed.set()
        thread.join()
    if errors:
        raise errors[0]
    if beams:
        yield processor.decode(found, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return found


def _text_streamer(processor: Any, stop_ids: Sequence[int]) -> Any:
    from transformers import TextIteratorStreamer

    class Streamer(TextIteratorStreamer):
        """Leaves out stop tokens, which need not be special ones."""

        def put(self, value: Any) -> None:
            if self.next_tokens_are_prompt or int(value.reshape(-1)[0]) not in stop_ids:
                super().put(value)

    # Clean-up joins what was written already.
    return Streamer(processor, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _criterion(ends: Callable[[], bool]) -> Any:
    import torch

    def stop(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), ends(), dtype=torch.bool, device=input_ids.device)

    return stop


class _Call:
    """One call of a model's `generate`, with nothing of its own generation settings but what belongs to the vocabulary."""

    def __init__(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        options: GenerationOptions,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        pad_id: int,
    ) -> None:
        self._model: Any = model
        self._owner = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        self._device = next(self._model.parameters()).device
        self._inputs = {name: value.to(self._device) for name, value in inputs.items()}
        self._config = _generation_config(self._owner, options, max_new_tokens, stop_ids, pad_id)
        self._sampling, self._seed = options.do_sample, options.seed or 0

    @property
    def prompt_width(self) -> int:
        """Tokens at the beginning of each sequence that are not new."""
        if not self._owner.config.is_encoder_decoder:
            return int(self._inputs["input_ids"].shape[1])
        return int(self._inputs["decoder_input_ids"].shape[1]) if "decoder_input_ids" in self._inputs else 1

    def run(self, **more: Any) -> Tensor:
        """Token ids of the sequences, int64 (B, prompt_width + new)."""
        import torch

        # Where the model is compiled: shapes that change with each token are not worth compiling for.
        compiled = self._model._compiled_call_impl is not None
        with self._settings_in_force(), self._own_draws(), torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            return self._model.generate(**self._inputs, generation_config=self._config, **more)

    @contextmanager
    def _settings_in_force(self) -> Iterator[None]:
        """For as long as it lasts the config is the model's own: transformers fills what a given one leaves open from that."""
        own, self._owner.generation_config = self._owner.generation_config, self._config
        try:
            yield
        finally:
            self._owner.generation_config = own

    @contextmanager
    def _own_draws(self) -> Iterator[None]:
        """Draws of their own, so that training goes on as if nothing had been generated."""
        import torch

        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=self._sampling):
            if self._sampling:
                torch.manual_seed(self._seed)
            yield


def _generation_config(
    model: Any, options: GenerationOptions, max_new_tokens: int, stop_ids: Sequence[int], pad_id: int
) -> GenerationConfig:
    from transformers import GenerationConfig

    chosen = {name: value for name, value in options.model_dump(exclude={"max_new_tokens", "seed"}).items() if value is not None}
    if options.do_sample:
        # transformers would draw from the 50 likeliest.
        chosen.setdefault("top_k", 0)
    kept = {name: getattr(model.generation_config, name, None) for name in _OF_THE_CHECKPOINT}
    if kept["decoder_start_token_id"] is None:
        kept["decoder_start_token_id"] = getattr(model.config, "decoder_start_token_id", None)
    return GenerationConfig(
        **{name: value for name, value in kept.items() if value is not None},
        **chosen,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
    )
