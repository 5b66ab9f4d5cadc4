"""The loss of language models: logits only where there is a target, in chunks, never for the whole batch at once.

A vocabulary of 150,000 makes the logits of 4,096 tokens 2.4 GB in float32, several times over in the backward pass. Here the output
layer is called with chunks of the hidden states of supervised positions, and memory holds the logits of one chunk. The numbers are
those of the whole computation.

Under a frozen output layer the gradient of a chunk's hidden states is taken at once, as in Liger-Kernel's fused cross-entropy (Hsu et
al. 2024, https://arxiv.org/abs/2410.10989, section 3.2): the gradient of each target is a row of its own, so that what comes from
above only has to scale it. Where the layer trains, the logits of all chunks but the last are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LogitsOf = Callable[[Tensor], Tensor]
"""From hidden states (N, H) to logits (N, vocabulary)."""

IGNORED = -100
"""Target of a position that is not supervised."""

LOGITS_PER_CHUNK = 2**24
"""Numbers of logits at a time: 64 MiB in float32."""

PROBE_TOLERANCE = 1e-3

GRADIENT_SCALE = 2.0**10
"""Keeps the gradients of unlikely tokens above the smallest float16; a power of two changes no other digit."""


@dataclass(frozen=True)
class TargetScores:
    """What a model said about the N supervised targets of a batch, in the order of rows and positions.

    nll: negative log likelihood, float32 (N,). spread: mean of -log p over the whole vocabulary, float32 (N,), for label smoothing;
    None outside training. correct: whether the likeliest token is the target, bool (N,); None in training.
    row: row of the batch, int64 (N,).
    """

    nll: Tensor
    spread: Tensor | None
    correct: Tensor | None
    row: Tensor

    def loss(self, label_smoothing: float = 0.0) -> Tensor:
        """Sum over the targets; smoothed as torch's cross-entropy does it (Szegedy et al. 2016)."""
        if not label_smoothing or self.spread is None:
            return self.nll.sum()
        return (1 - label_smoothing) * self.nll.sum() + label_smoothing * self.spread.sum()

    def by_row(self, values: Tensor, rows: int) -> Tensor:
        """Sums of a value of each target (N,) by row: float64 (rows,)."""
        return torch.zeros(rows, dtype=torch.float64, device=values.device).index_add_(0, self.row, values.double())


class LanguageScorer:
    """Scores targets with a model that has an output layer over a vocabulary; works through PEFT and distributed wrappers.

    model: the prepared model in evaluation mode. inputs: a tiny batch of what its forward takes, to compare with.
    Architectures differ in what they do to logits after the output layer (soft caps, scales, a bias). What is known is repeated for
    each chunk; if the result is not what the model itself computes, its own logits are used as a whole.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        output: Any = model.get_output_embeddings()  # type: ignore[operator]
        self._model, self._output = model, output
        self._answers: list[Any] = []
        # One function for all batches, which compiled models call as it is: torch.compile would compile anew for each new one.
        self._stand_in = torch.compiler.disable(self._answer_instead)
        self.chunked = self._agrees(model, inputs)

    def score(self, model: nn.Module, inputs: Mapping[str, Any], targets: Tensor) -> TargetScores:
        """Scores of all targets that are not IGNORED.

        inputs: arguments of the model's forward. targets: int64 (B, T): what each of the last T positions should predict.
        """
        places, training = targets != IGNORED, torch.is_grad_enabled()

        def in_chunks(values: Tensor, logits_of: LogitsOf, *, frozen: bool = False) -> tuple[Tensor, Tensor]:
            chosen, wanted = values[:, -targets.shape[1] :][places], targets[places]
            size = max(1, LOGITS_PER_CHUNK // self._width)
            if not training:
                return _evaluated(chosen, wanted, logits_of, size)
            return (
                _FrozenOutputScores.apply(chosen, wanted, logits_of, size)
                if frozen
                else _recomputed(chosen, wanted, logits_of, size)
            )

        if self.chunked:
            frozen = not any(parameter.requires_grad for parameter in self._output.parameters())

            # Inside the model's forward pass, so that its mixed precision holds for the output layer too.
            def answer(hidden: Tensor, compute: LogitsOf) -> tuple[Tensor, Tensor]:
                return in_chunks(hidden, lambda chunk: self._finish(compute(chunk)), frozen=frozen)

            with self._intercepted(answer) as caught:
                model(**inputs, use_cache=False)
            nll, second = caught[-1]
        else:
            nll, second = in_chunks(model(**inputs, use_cache=False).logits, lambda chunk: chunk)
        spread, correct = (second, None) if training else (None, second)
        return TargetScores(nll=nll, spread=spread, correct=correct, row=places.nonzero()[:, 0])

    @property
    def _width(self) -> int:
        return int(self._output.weight.shape[0])

    @contextmanager
    def _intercepted(self, answer: Callable[[Tensor, LogitsOf], Any]) -> Iterator[list[Any]]:
        """While this lasts, the output layer hands its input to `answer` and gives back a row of zeros, which costs nothing."""
        self._answer, self._compute, self._answers = answer, self._output.forward, []
        self._output.forward = self._stand_in
        try:
            yield self._answers
        finally:
            self._output.forward = self._compute

    def _answer_instead(self, hidden: Tensor) -> Tensor:
        self._answers.append(self._answer(hidden, self._compute))
        return hidden.new_zeros(1, 1, self._width)

    def _finish(self, logits: Tensor) -> Tensor:
        """What the model does to its logits after the output layer, as far as its config tells."""
        config: Any = self._model.config
        config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        bias = getattr(self._model, "final_logits_bias", None)
        logits = logits if bias is None else logits + bias[0]
        logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
        logits = logits * (getattr(config, "logit_scale", None) or 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def _agrees(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
        with torch.no_grad():
            expected = model(**inputs, use_cache=False).logits.float()
            with self._intercepted(lambda hidden, compute: self._finish(compute(hidden)).float()) as caught:
                model(**inputs, use_cache=False)
        if len(caught) != 1 or caught[0].shape != expected.shape:
            return False
        return float((caught[0] - expected).abs().max()) <= PROBE_TOLERANCE * max(1.0, float(expected.abs().max()))


class _FrozenOutputScores(torch.autograd.Function):
    """`_scores` of N targets in training, with the gradients for their hidden states taken in the forward pass.

    The second value's gradient (label smoothing) is rarely asked for; the logits are computed again for it.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, targets: Tensor, logits_of: LogitsOf, size: int) -> tuple[Tensor, Tensor]:
        parts = [_with_gradient(*pair, logits_of, first=True) for pair in _pairs(values, targets, size)]
        nll, spread, gradients = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        device = values.device.type
        ctx.save_for_backward(values, targets, gradients)
        ctx.logits_of, ctx.size = logits_of, size
        ctx.precision = {"enabled": torch.is_autocast_enabled(device), "dtype": torch.get_autocast_dtype(device)}
        ctx.set_materialize_grads(False)
        return nll, spread

    @staticmethod
    def backward(ctx: Any, *above: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        values, targets, gradients = ctx.saved_tensors
        total = None if above[0] is None else _scaled(gradients, above[0])
        if above[1] is not None:
            with torch.autocast(values.device.type, **ctx.precision):
                parts = [_with_gradient(*pair, ctx.logits_of, first=False)[2] for pair in _pairs(values, targets, ctx.size)]
            second = _scaled(torch.cat(parts), above[1])
            total = second if total is None else total + second
        return total, None, None, None


def _with_gradient(chunk: Tensor, wanted: Tensor, logits_of: LogitsOf, *, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`_scores` in training, and GRADIENT_SCALE times the gradient of one of the two for each hidden state (N, H)."""
    with torch.enable_grad():
        leaf = chunk.detach().requires_grad_()
        nll, spread = _scores(logits_of(leaf), wanted, training=True)
        (gradient,) = torch.autograd.grad((nll if first else spread).sum() * GRADIENT_SCALE, leaf)
    return nll.detach(), spread.detach(), gradient


def _scaled(gradients: Tensor, above: Tensor) -> Tensor:
    return (gradients * (above / GRADIENT_SCALE)[:, None]).to(gradients.dtype)


def _recomputed(values: Tensor, targets: Tensor, logits_of: LogitsOf, size: int) -> tuple[Tensor, Tensor]:
    """`_scores` in training; the logits of all chunks but the last, where the backward pass begins, are computed again there."""

    def scores(chunk: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        return _scores(logits_of(chunk), wanted, training=True)

    *earlier, last = _pairs(values, targets, size)
    return _joined([*(checkpoint(scores, *pair, use_reentrant=False) for pair in earlier), scores(*last)])


def _evaluated(values: Tensor, targets: Tensor, logits_of: LogitsOf, size: int) -> tuple[Tensor, Tensor]:
    return _joined([_scores(logits_of(chunk), wanted, training=False) for chunk, wanted in _pairs(values, targets, size)])


def _pairs(values: Tensor, targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Chunks of hidden states and targets; an empty one where there is no target: the loss then has a gradient, zero."""
    return list(zip(values.split(size), targets.split(size), strict=True))


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _scores(logits: Tensor, targets: Tensor, *, training: bool) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    total = logits.logsumexp(-1)
    nll = total - logits.gather(-1, targets[:, None])[:, 0]
    return nll, total - logits.mean(-1) if training else logits.argmax(-1) == targets


def position_count(model: nn.Module) -> int | None:
    """Positions that a model has for texts, None if its config states no limit. A soft prompt takes some."""
    config: Any = model.config
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    taken = getattr(model, "virtual_positions", 0)
    return next((count - taken for count in found if isinstance(count, int)), None)


def probe_tokens(processor: Any, count: int = 8) -> Tensor:
    """Some different token ids of a vocabulary: int64 (1, count)."""
    return torch.linspace(0, len(processor) - 1, count).long()[None]
