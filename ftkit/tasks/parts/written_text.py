"""Tasks whose answer is text that the model writes: all of it at once, or piece by piece."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from ftkit.tasks.base import Batch, Features, Prediction
from ftkit.tasks.parts.scored_targets import ScoredTargets

if TYPE_CHECKING:
    from torch import nn


class WritesText(ScoredTargets):
    """A task of language models with an option `generation`, which says how text is written (`GenerationOptions`)."""

    prediction_options = frozenset({"generation"})
    generates_to_present = True
    streams = True
    asks_in_turns = False
    """Whether the model is asked by a turn in a conversation, through the tokenizer's chat template."""

    @abstractmethod
    def _prompts(self, features: Sequence[Features], processor: Any) -> Batch:
        """What `generate` of the model takes for these features."""

    @abstractmethod
    def _limits(self, processor: Any) -> dict[str, Any]:
        """`max_new_tokens`, `stop_ids` and `pad_id`, as `generate_tokens` takes them."""

    @abstractmethod
    def _written(self, features: Sequence[Features], written: Sequence[Sequence[int]], processor: Any) -> list[Prediction]:
        """What the predictions of these features gain by the tokens that were written, a list for each prompt."""

    def code_example(self) -> list[str]:
        """The model is asked, and its answer printed."""
        limit = self.options.generation.max_new_tokens
        prompt = repr(getattr(self.options, "prefix", "") + "your text")
        if self.asks_in_turns and self.options.chat_template != "none":
            turns = f'[{{"role": "user", "content": {prompt}}}]'
            inputs = f"tokenizer.apply_chat_template({turns}, add_generation_prompt=True, return_dict=True, return_tensors='pt')"
        else:
            inputs = f"tokenizer({prompt}, return_tensors='pt')"
        return [
            f"inputs = {inputs}",
            f"written = model.generate(**inputs, max_new_tokens={64 if limit == 'auto' else limit})[0]",
            "print(tokenizer.decode(written, skip_special_tokens=True))",
        ]

    def generate(self, model: nn.Module, features: Sequence[Features], processor: Any) -> list[Prediction]:
        """What `_written` makes of the tokens."""
        from ftkit.tasks.parts.generation import generate_tokens

        prompts = self._prompts(features, processor)
        written = generate_tokens(model, prompts, self.options.generation, **self._limits(processor))
        return self._written(features, written, processor)

    def stream(
        self, model: nn.Module, features: Sequence[Features], processor: Any, *, stopped: Callable[[], bool]
    ) -> Generator[str, None, Prediction]:
        """Pieces of the text; returns what `generate` gives for the last of the features."""
        from ftkit.tasks.parts.generation import stream_text

        prompts, limits = self._prompts(features, processor), self._limits(processor)
        written = yield from stream_text(model, prompts, self.options.generation, processor, stopped=stopped, **limits)
        return self._written(features, [written], processor)[-1]
