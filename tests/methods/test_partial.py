from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from torch import nn

from ftkit.errors import ModelError
from ftkit.methods.partial import Options, Partial
from tests.methods.cases import facts_of, fresh_model


def trained_by(family: str, **options: Any) -> tuple[set[str], nn.Module]:
    model, layout = fresh_model(family)
    Partial(Options(**options)).apply(model, layout)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}, model


def prefixed(names: set[str], *prefixes: str) -> set[str]:
    return {name for name in names if name.startswith(prefixes)}


def test_top_blocks_count_from_the_output() -> None:
    names, model = trained_by("gpt2", top_blocks=1)
    every = {name for name, _ in model.named_parameters()}
    assert names == prefixed(every, "transformer.h.1.", "score.")


def test_top_blocks_of_an_encoder_decoder_count_in_each_stack() -> None:
    names, model = trained_by("bart", top_blocks=1)
    every = {name for name, _ in model.named_parameters()}
    assert names == prefixed(every, "model.encoder.layers.1.", "model.decoder.layers.1.", "classification_head.")


def test_blocks_by_number_run_on_from_encoder_to_decoder() -> None:
    names, model = trained_by("bart", blocks=[1, "2-3"])
    every = {name for name, _ in model.named_parameters()}
    assert names == prefixed(every, "model.encoder.layers.1.", "model.decoder.layers.", "classification_head.")


def test_pattern_is_found_anywhere_in_a_name() -> None:
    names, _ = trained_by("distilbert", pattern=r"layer\.0\..*q_lin")
    matched = {f"distilbert.transformer.layer.0.attention.q_lin.{end}" for end in ("weight", "bias")}
    head = {f"{part}.{end}" for part in ("pre_classifier", "classifier") for end in ("weight", "bias")}
    assert names == matched | head


def test_norms_and_embeddings_come_on_top() -> None:
    names, model = trained_by("llama", top_blocks=0, norms=True, embeddings=True)
    every = {name for name, _ in model.named_parameters()}
    assert names == {name for name in every if "norm" in name or "embed_tokens" in name or name.startswith("score")}


def test_auto_is_a_quarter_of_the_blocks_of_each_stack() -> None:
    assert Partial(Options()).defaults(facts_of("bart"))["method.top_blocks"].value == 1
    assert "method.top_blocks" not in Partial(Options(blocks=[0])).defaults(facts_of("bart"))
    assert trained_by("bart")[0] == trained_by("bart", top_blocks=1)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_blocks": 1, "blocks": [0]}, "not top_blocks and blocks"),
        ({"blocks": [0], "pattern": "x"}, "not blocks and pattern"),
        ({"pattern": "("}, "is not a regular expression"),
        ({"pattern": ""}, "at least 1 character"),
        ({"blocks": ["3-1"]}, "is no block number"),
        ({"blocks": []}, "at least 1 item"),
        ({"top_blocks": -1}, "greater than or equal to 0"),
        ({"top_blocks": "2"}, "valid integer"),
        ({"norms": 1}, "valid boolean"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"blocks": ["1-2"]}, "no block 2: the model has 2 blocks"), ({"top_blocks": 3}, "top_blocks: 3 is more than the 2 blocks")],
)
def test_blocks_that_the_model_lacks_are_refused_by_its_facts(options: dict[str, Any], message: str) -> None:
    assert message in Partial(Options(**options)).refusal(facts_of("bert"))
    assert Partial(Options(blocks=["0-1"])).refusal(facts_of("bert")) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": ["0-9"]}, "method.blocks: there is no block 9"),
        ({"top_blocks": 3}, "method.top_blocks: the encoder has 2 blocks, fewer than 3"),
        ({"pattern": "no_such_thing"}, "no parameter matches 'no_such_thing'.*Some names: "),
    ],
)
def test_what_the_model_lacks_is_refused_by_the_model(options: dict[str, Any], message: str) -> None:
    model, layout = fresh_model("t5")
    with pytest.raises(ModelError, match=message):
        Partial(Options(**options)).apply(model, layout)
