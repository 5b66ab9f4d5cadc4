from __future__ import annotations

import pytest

from ftkit.errors import ModelError
from ftkit.methods.linear_probe import LinearProbe
from ftkit.models.layout import ModelLayout
from tests.methods.cases import fresh_model
from tests.tiny import tiny_model


def test_a_fresh_pooler_belongs_to_the_head() -> None:
    model, layout = fresh_model("bert")
    LinearProbe(LinearProbe.Options()).apply(model, layout)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def test_a_pretrained_pooler_does_not() -> None:
    model = tiny_model("bert")
    LinearProbe(LinearProbe.Options()).apply(model, ModelLayout(model, ["classifier.weight", "classifier.bias"]))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}


def test_dropout_stays_as_the_model_sets_it() -> None:
    model, layout = fresh_model("bert")
    before = [module.p for module in model.modules() if hasattr(module, "p")]
    LinearProbe(LinearProbe.Options()).apply(model, layout)
    assert [module.p for module in model.modules() if hasattr(module, "p")] == before


def test_a_model_without_a_head_of_its_own_is_refused() -> None:
    model = tiny_model("t5", "AutoModelForSeq2SeqLM")
    with pytest.raises(ModelError, match=r"no head of its own.*`lora`"):
        LinearProbe(LinearProbe.Options()).apply(model, ModelLayout(model))
