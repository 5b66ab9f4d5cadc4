from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from ftkit.methods.p_tuning import Options, PTuning
from ftkit.methods.parts.prompts import prompt_of
from tests.methods.cases import facts_of, fresh_model


def lstm_by_hand(cells: nn.LSTM, inputs: torch.Tensor) -> torch.Tensor:
    """Two bidirectional layers, gate by gate."""
    states = inputs
    for layer in range(2):
        outputs = []
        for ending in ("", "_reverse"):
            weight_in, weight_on = (getattr(cells, f"weight_{part}_l{layer}{ending}") for part in ("ih", "hh"))
            bias = getattr(cells, f"bias_ih_l{layer}{ending}") + getattr(cells, f"bias_hh_l{layer}{ending}")
            hidden = cell = torch.zeros(weight_on.shape[1])
            steps: list[torch.Tensor] = []
            for vector in states.flip(0) if ending else states:
                enter, forget, new, leave = (weight_in @ vector + weight_on @ hidden + bias).chunk(4)
                cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
                hidden = leave.sigmoid() * cell.tanh()
                steps.append(hidden)
            outputs.append(torch.stack(steps[::-1] if ending else steps))
        states = torch.cat(outputs, dim=1)
    return states


def test_the_lstm_gives_the_vectors() -> None:
    prompt = prompt_of(PTuning(Options(length=4, hidden_size=3)).apply(*fresh_model("bert")).eval())
    first, _, last = prompt.network.head
    states = lstm_by_hand(prompt.network.lstm, prompt.inputs)
    expected = torch.relu(states @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(prompt(), expected, atol=1e-6, rtol=1e-5)


def test_the_mlp_gives_the_vectors() -> None:
    prompt = prompt_of(PTuning(Options(length=4, network="mlp", hidden_size=3)).apply(*fresh_model("bert")))
    states = prompt.inputs
    for layer in (prompt.network[0], prompt.network[2]):
        states = torch.relu(states @ layer.weight.T + layer.bias)
    torch.testing.assert_close(prompt(), states @ prompt.network[4].weight.T + prompt.network[4].bias)


@pytest.mark.parametrize("network", ["lstm", "mlp"])
def test_only_what_the_network_gives_is_saved(network: str, tmp_path: Path) -> None:
    method = PTuning(Options(length=4, network=network, **({"dropout": 0.5} if network == "lstm" else {})))
    model = method.apply(*fresh_model("gpt2"))
    model.train()
    method.save_adapter(model, tmp_path)
    saved = {name: value for name, value in load_file(tmp_path / "adapter_model.safetensors").items() if "prompt" in name}
    assert list(saved) == ["base_model.model.soft_prompt.soft_prompt_encoder.vectors"]
    assert prompt_of(model).training
    torch.testing.assert_close(*saved.values(), prompt_of(model.eval())())


def test_sizes_left_open_are_those_of_the_sources() -> None:
    assert PTuning(Options()).defaults(facts_of("bert"))["method.hidden_size"].value == 8
    assert PTuning(Options(network="mlp")).defaults(facts_of("bert"))["method.hidden_size"].value == 16
    assert PTuning(Options(hidden_size=5)).network_size(16) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "mlp", "dropout": 0.1}, "no effect with `network: mlp`"),
        ({"network": "gru"}, "'lstm' or 'mlp'"),
        ({"hidden_size": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options(**options)
