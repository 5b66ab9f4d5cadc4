"""Modules that hold the vectors of a soft prompt, directly or as the output of a small network that trains faster.

Each gives a matrix: one row for each virtual token. What a network gives after training is all that an adapter file keeps
(`frozen_form`), so that a saved prompt needs no network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

ENCODERS = ("none", "mlp", "lstm", "factorized")


class PromptEncoder(nn.Module):
    """A soft prompt: `forward()` gives float32 (length, width); that of several tasks takes their numbers and gives a prompt for each."""

    length: int
    width: int

    def start_from(self, vectors: Tensor) -> None:
        """Takes the values to start from, (length, width); a network takes them as what goes into it."""
        raise NotImplementedError

    def frozen_form(self) -> dict[str, Tensor]:
        """The state dict of the encoder that an adapter file describes: by default a prompt without a network."""
        training = self.training
        self.eval()
        with torch.no_grad():
            vectors = self()
        self.train(training)
        return {"vectors": vectors}


class DirectPrompt(PromptEncoder):
    """The vectors themselves are trained."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.length, self.width = length, width
        self.vectors = nn.Parameter(torch.zeros(length, width))

    def start_from(self, vectors: Tensor) -> None:
        """The prompt at first."""
        _copy(self.vectors, vectors)

    def forward(self) -> Tensor:
        """(length, width)."""
        return self.vectors


class NetworkPrompt(PromptEncoder):
    """P = network(E), with an embedding E for each virtual token."""

    def __init__(self, length: int, width: int, network: nn.Module, output_width: int | None = None) -> None:
        super().__init__()
        self.length, self.width = length, output_width or width
        self.inputs = nn.Parameter(torch.randn(length, width))
        self.network = network

    def start_from(self, vectors: Tensor) -> None:
        """What goes into the network at first."""
        _copy(self.inputs, vectors)

    def forward(self) -> Tensor:
        """(length, output width)."""
        return self.network(self.inputs)


class _Factors(PromptEncoder):
    """A prompt S that tasks share, and vectors u and v of each: `count` of them, or without that dimension those of a single task."""

    def __init__(self, length: int, width: int, *count: int) -> None:
        super().__init__()
        self.length, self.width = length, width
        self.shared = nn.Parameter(torch.zeros(length, width))
        self.rows = nn.Parameter(torch.ones(*count, length))
        self.columns = nn.Parameter(torch.ones(*count, width))

    def start_from(self, vectors: Tensor) -> None:
        """The shared prompt at first; the vectors of tasks are ones, so that their prompts are this, too."""
        _copy(self.shared, vectors)

    def frozen_form(self) -> dict[str, Tensor]:
        """All three factors: a later task starts from them."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}


class FactorizedPrompt(_Factors):
    """P = S * (u v^T), elementwise (Wang et al. 2023, equation 1)."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__(length, width)

    def forward(self) -> Tensor:
        """(length, width)."""
        return self.shared * self.rows[:, None] * self.columns


class FactorizedPrompts(_Factors):
    """P_t = S * (u_t v_t^T) for each of several tasks t."""

    def __init__(self, length: int, width: int, count: int) -> None:
        super().__init__(length, width, count)

    def forward(self, tasks: Tensor) -> Tensor:
        """The prompts of tasks given by number, int64 (B,): (B, length, width)."""
        return self.shared * self.rows[tasks][:, :, None] * self.columns[tasks][:, None]


class RecurrentNetwork(nn.Module):
    """A two-layer bidirectional LSTM along the virtual tokens, then two linear layers with a ReLU between them (Liu et al. 2021)."""

    def __init__(self, width: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden_size, num_layers=2, dropout=dropout, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Linear(2 * hidden_size, 2 * hidden_size), nn.ReLU(), nn.Linear(2 * hidden_size, width))

    def forward(self, inputs: Tensor) -> Tensor:
        """(length, width) to (length, width)."""
        return self.head(self.lstm(inputs)[0])


def feed_forward(width: int, hidden_size: int) -> nn.Module:
    """Three linear layers with ReLUs between them: PEFT's MLP encoder of P-tuning."""
    return nn.Sequential(
        nn.Linear(width, hidden_size),
        nn.ReLU(),
        nn.Linear(hidden_size, hidden_size),
        nn.ReLU(),
        nn.Linear(hidden_size, width),
    )


def tanh_network(width: int, hidden_size: int, output_width: int) -> nn.Module:
    """Two linear layers with a tanh between them: the reparametrization of prefix tuning (Li & Liang 2021, section 4.3)."""
    return nn.Sequential(nn.Linear(width, hidden_size), nn.Tanh(), nn.Linear(hidden_size, output_width))


def make_encoder(
    kind: str, length: int, width: int, *, hidden_size: int = 0, dropout: float = 0.0, tasks: int = 0
) -> PromptEncoder:
    """The encoder of a prompt of so many virtual tokens.

    kind: out of ENCODERS; hidden_size: of the network (of `lstm` in each direction); dropout: between the layers of `lstm`;
    tasks: how many have a prompt of their own (of `factorized`), 0 where there is one prompt. Raises ValueError for another kind.
    """
    makers: dict[str, Callable[[], PromptEncoder]] = {
        "none": lambda: DirectPrompt(length, width),
        "mlp": lambda: NetworkPrompt(length, width, feed_forward(width, hidden_size)),
        "lstm": lambda: NetworkPrompt(length, width, RecurrentNetwork(width, hidden_size, dropout)),
        "factorized": lambda: FactorizedPrompts(length, width, tasks) if tasks else FactorizedPrompt(length, width),
    }
    if kind not in makers:
        raise ValueError(f"unknown prompt encoder {kind!r}, known: {', '.join(ENCODERS)}")
    return makers[kind]()


def _copy(parameter: nn.Parameter, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)
