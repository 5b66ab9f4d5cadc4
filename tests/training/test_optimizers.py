from __future__ import annotations

import pytest
import torch

from ftkit.errors import ModelError
from ftkit.models.layout import ModelLayout
from ftkit.recipe.schema import TrainSpec
from ftkit.training.optimizers import load_optimizer_state, make_optimizer, optimizer_state, parameter_groups, set_learning_rate
from tests.tiny import tiny_model


def spec(**keys: object) -> TrainSpec:
    return TrainSpec.model_validate({"learning_rate": 1e-2, "weight_decay": 0.1, **keys})


def test_every_trainable_parameter_is_in_one_group_and_no_other_is() -> None:
    model = tiny_model("bert")
    frozen = next(iter(model.parameters())).requires_grad_(False)
    groups = parameter_groups(model, ModelLayout(model), spec())
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(parameter) for parameter in model.parameters()} - {id(frozen)}


def test_biases_and_norms_are_not_decayed() -> None:
    model = tiny_model("bert")
    for group in parameter_groups(model, ModelLayout(model), spec()):
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert (group["weight_decay"] == 0.0) == (parameter.ndim <= 1), name


def test_layer_decay_multiplies_the_rate_once_a_block() -> None:
    model = tiny_model("bert")
    layout = ModelLayout(model)
    for group in parameter_groups(model, layout, spec(layer_decay=0.5)):
        for name in group["names"]:
            assert group["scale"] == 0.5 ** (len(layout.blocks) + 1 - layout.depth(name))
    optimizer = make_optimizer(parameter_groups(model, layout, spec(layer_decay=0.5)), spec())
    set_learning_rate(optimizer, 0.4)
    assert {round(group["lr"], 6) for group in optimizer.param_groups} == {0.4, 0.2, 0.1, 0.05}


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "adamw_8bit"])
def test_state_round_trip_continues_bit_exactly(name: str) -> None:
    def prepare() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = tiny_model("bert")
        train = spec(optimizer=name, momentum=0.9 if name == "sgd" else 0.0)
        return model, make_optimizer(parameter_groups(model, ModelLayout(model), train), train)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    one, straight = prepare()
    for number in range(4):
        step(one, straight, number)
    two, first = prepare()
    for number in range(2):
        step(two, first, number)
    tensors, others = optimizer_state(first)
    three, second = prepare()
    three.load_state_dict(two.state_dict())
    load_optimizer_state(second, {key: value.clone() for key, value in tensors.items()}, others)
    for number in (2, 3):
        step(three, second, number)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), three.parameters(), strict=True))


def test_state_of_an_unknown_parameter_is_refused() -> None:
    model = tiny_model("bert")
    optimizer = make_optimizer(parameter_groups(model, ModelLayout(model), spec()), spec())
    with pytest.raises(ModelError, match="optimizer state for 'nothing'"):
        load_optimizer_state(optimizer, {"exp_avg|nothing": torch.zeros(1)}, {})
