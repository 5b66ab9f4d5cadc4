from __future__ import annotations

import dataclasses
import enum
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from pydantic import ValidationError

from ftkit.errors import ModelError
from ftkit.methods.parts.peft_types import OWN_METHOD, REFUSED, SET_BY_FTKIT, TUNERS
from ftkit.methods.peft import AnyPeftTuner, Options
from ftkit.registry import METHODS
from tests.methods.cases import PEFT_TYPES, facts_of, fresh_model

PLAIN = {int: "integer", float: "number", bool: "boolean", str: "text", dict: "mapping", type(None): "null"}


def alternatives(hint: Any) -> set[str]:
    """A type annotation in the words of the table."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return {word for part in get_args(hint) for word in alternatives(part)}
    if origin is Literal:
        return {repr(choice) for choice in get_args(hint)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {repr(member.value) for member in hint}
    return {PLAIN[origin or hint]}


def test_every_type_of_peft_is_allowed_or_refused_with_a_reason() -> None:
    own = {name for name in PeftType.__members__ if PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[name]].__module__.startswith("peft.")}
    assert sorted([*TUNERS, *OWN_METHOD, *REFUSED]) == sorted(own)
    assert set(OWN_METHOD.values()) <= set(METHODS.names())
    assert set(PEFT_TYPES) == set(TUNERS), "each allowed type goes through the contract suite"


@pytest.mark.parametrize("kind", TUNERS)
def test_the_table_of_settings_is_that_of_pefts_config_class(kind: str) -> None:
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    hints = get_type_hints(config)
    expected = {
        field.name: alternatives(hints[field.name]) for field in dataclasses.fields(config) if field.name not in SET_BY_FTKIT
    }
    found = {name: set(types.split(" | ")) for name, types in TUNERS[kind].settings.items()}
    # PEFT also takes these as plain text, and means one of them.
    text = {
        name: {"text"} if "text" in words and len(words) > 1 and "boolean" not in words else set()
        for name, words in expected.items()
    }
    assert found == {name: words - text[name] for name, words in expected.items()}
    for name, value in TUNERS[kind].preset.items():
        assert name in {field.name for field in dataclasses.fields(config)}, value


@pytest.mark.parametrize("kind", TUNERS)
def test_what_the_table_says_of_conv1d_is_so(kind: str) -> None:
    config, _ = PEFT_TYPES[kind]
    method = AnyPeftTuner(Options(type=kind, config=config))
    assert bool(method.refusal(facts_of("gpt2"))) != TUNERS[kind].conv1d
    if TUNERS[kind].conv1d:
        assert method.apply(*fresh_model("gpt2"))
    else:
        with pytest.raises(ModelError, match="which is a Conv1D"):
            method.apply(*fresh_model("gpt2"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("LORA", "LORA is a method by itself: write `method: lora`"),
        ("PROMPT_TUNING", "write `method: prompt-tuning`"),
        ("XLORA", "XLORA is refused: PEFT 0.21 does not save all of its weights"),
        ("ADAPTION_PROMPT", "models of Llama's kind only"),
        ("randlora", "PEFT has no type 'randlora' that is known here. Did you mean RANDLORA?"),
        ("RANLORA", "Did you mean RANDLORA?"),
        ("QQQQ", "Known: ADAMSS, C3A"),
    ],
)
def test_other_types_are_refused_with_what_to_do(kind: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Options(type=kind)
    assert message in str(caught.value)


def test_all_wrong_settings_are_named_at_once() -> None:
    wrong = {
        "rr": 3,
        "randlora_drpout": 0.1,
        "r": "x",
        "randlora_alpha": True,
        "randlora_dropout": float("nan"),
        "bias": "all",
        "sparse": 1,
    }
    with pytest.raises(ValidationError) as caught:
        Options(type="RANDLORA", config=wrong)
    text = str(caught.value)
    for message in (
        "RANDLORA has no setting 'rr'. Did you mean 'r'?",
        "RANDLORA has no setting 'randlora_drpout'. Did you mean 'randlora_dropout'?",
        "r of RANDLORA must be integer, not 'x'",
        "randlora_alpha of RANDLORA must be integer, not True",
        "randlora_dropout of RANDLORA must be number, not nan",
        "bias cannot be set: biases of the base would be trained outside the adapter",
        "sparse of RANDLORA must be boolean, not 1",
    ):
        assert message in text


@pytest.mark.parametrize("name", SET_BY_FTKIT)
def test_settings_that_ftkit_makes_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} cannot be set: "):
        Options(type="UNILORA", config={name: None})


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("MISS", {"init_weights": "bat"}),
        ("MISS", {"init_weights": True}),
        ("C3A", {"block_size_pattern": None, "init_weights": "gaussian"}),
        ("FOURIERFT", {"scaling": 100}),
        ("ROAD", {"variant": "road_4"}),
        ("HIRA", {"rank_pattern": {"query": 4}}),
    ],
)
def test_right_settings_reach_pefts_config(kind: str, config: dict[str, Any]) -> None:
    _, layout = fresh_model("bert")
    made = AnyPeftTuner(Options(type=kind, config=config)).config(layout, ["bert.encoder.layer.0.attention.self.query"])
    assert {name: getattr(made, name) for name in config} == config


@pytest.mark.parametrize(
    ("kind", "config"), [("MISS", {"init_weights": "bot"}), ("ROAD", {"variant": "road_3"}), ("HIRA", {"rank_pattern": [1]})]
)
def test_values_outside_the_choices_are_refused(kind: str, config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"of {kind} must be"):
        Options(type=kind, config=config)


def test_what_peft_refuses_ends_in_an_explained_error() -> None:
    for kind, config in (("MISS", {"r": 64}), ("C3A", {"block_size": 5}), ("RANDLORA", {"r": 0})):
        with pytest.raises(ModelError, match=f"PEFT's {kind} does not fit this model with these settings: .*method.config"):
            AnyPeftTuner(Options(type=kind, config=config)).apply(*fresh_model("bert"))


def test_capabilities_are_those_of_the_type() -> None:
    assert AnyPeftTuner(Options(type="HIRA")).capabilities.merge
    assert not AnyPeftTuner(Options(type="LILY")).capabilities.merge
    assert not AnyPeftTuner(Options(type="DELORA")).capabilities.quantized
    assert AnyPeftTuner(Options(type="ROAD")).capabilities.quantized


def test_targets_and_blocks_choose_the_layers() -> None:
    model, layout = fresh_model("bert")
    model = AnyPeftTuner(Options(type="HRA", targets=["ffn_in"], blocks=[1])).apply(model, layout)
    assert {layout.canonical(name) for name, _ in model.named_parameters() if ".hra_" in name} == {
        "bert.encoder.layer.1.intermediate.dense"
    }


def test_shira_draws_the_same_entries_in_every_run() -> None:
    drawn = []
    for seed in (1, 2):
        model, layout = fresh_model("bert")
        torch.manual_seed(seed)
        model = AnyPeftTuner(Options(type="SHIRA", config={"r": 2})).apply(model, layout)
        layers: list[Any] = [module for module in model.modules() if hasattr(module, "shira_indices")]
        drawn.append([layer.shira_indices["default"] for layer in layers])
    assert drawn[0]
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))
