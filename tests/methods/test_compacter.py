from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from ftkit.methods.compacter import Compacter, Options
from ftkit.models.layout import ModelLayout
from tests.methods.adapter_reference import INSTALL
from tests.methods.cases import LABELS, batch_of, facts_of, fresh_model, make_method
from tests.methods.test_adapter import adapters_of


def matrix(rules: Tensor, weights: dict[str, Tensor], layer: str) -> Tensor:
    """The sum of Kronecker products that a layer multiplies with."""
    blocks = weights[f"{layer}.left"] @ weights[f"{layer}.right"] if f"{layer}.left" in weights else weights[f"{layer}.matrix"]
    return sum((torch.kron(factor, block) for factor, block in zip(rules, blocks, strict=True)), start=torch.tensor(0.0))


@pytest.mark.parametrize(("placement", "rank"), [("houlsby", 1), ("pfeiffer", 2), ("parallel", None)])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_equals_blocks_that_are_written_out(family: str, placement: str, rank: int | None) -> None:
    torch.manual_seed(0)
    model, layout = fresh_model(family, dtype=torch.float64)
    options = Options(placement=placement, bottleneck=8, rank=rank, activation="tanh", norms=False)
    wrapped: Any = Compacter(options).apply(model, layout).double().eval()
    for name, parameter in wrapped.named_parameters():
        if ".compacter_" in name:
            parameter.data.normal_(0, 0.4)
    logits = wrapped(**batch_of(family)).logits
    functional.cross_entropy(logits, LABELS).backward()

    own = adapters_of(wrapped, layout)
    rules = wrapped.base_model.compacter_rules["default"].detach().clone().requires_grad_()
    copies = {
        place: {name: parameter.detach().clone().requires_grad_() for name, parameter in module.named_parameters()}
        for place, module in own.items()
    }

    def written_out(w: dict[str, Tensor]) -> Any:
        def adapter(x: Tensor) -> Tensor:
            hidden = torch.tanh(x @ matrix(rules, w, "down") + w["down.bias"])
            return hidden @ matrix(rules, w, "up") + w["up.bias"]

        return adapter

    plain, _ = fresh_model(family, dtype=torch.float64)
    INSTALL[family](plain, {place: written_out(weights) for place, weights in copies.items()}, placement)
    expected = plain(**batch_of(family)).logits
    functional.cross_entropy(expected, LABELS).backward()
    torch.testing.assert_close(logits, expected, atol=1e-8, rtol=0)
    torch.testing.assert_close(wrapped.base_model.compacter_rules["default"].grad, rules.grad, atol=1e-8, rtol=1e-6)
    for place, module in own.items():
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, copies[place][name].grad, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(
    ("placement", "adapters", "published"), [("houlsby", 48, 0.073), ("pfeiffer", 24, 0.047)], ids=["compacter", "compacter++"]
)
def test_t5_base_trains_the_published_share(placement: str, adapters: int, published: float) -> None:
    """Table 1 of the paper: Compacter trains 0.073 % of T5 base, Compacter++ 0.047 %."""
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        layout = ModelLayout(T5ForConditionalGeneration(T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)))
    whole = sum(parameter.numel() for parameter in layout.model.parameters())
    count = Compacter(Options(placement=placement)).parameter_count(layout)
    bottleneck, norms = 24, (12 * 2 + 1 + 12 * 3 + 1) * 768
    assert count == adapters * (2 * (768 + bottleneck) + bottleneck + 768) + 4**3 + norms
    assert round(100 * count / whole, 3) == published


def test_the_bottleneck_is_rounded_up_to_the_terms() -> None:
    model, layout = fresh_model("bert")
    wrapped = Compacter(Options(reduction_factor=3.0)).apply(model, layout)  # 16 / 3 = 5
    assert {module.up.left.shape[0] * module.up.left.shape[1] for module in adapters_of(wrapped, layout).values()} == {8}


def test_auto_is_the_authors_choice() -> None:
    method = make_method("compacter", {}, "bert")
    assert (method.options.bottleneck, method.options.reduction_factor, method.options.activation) == (None, 32.0, "gelu_new")
    assert method.options.model_validate(method.options.model_dump()) == method.options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottleneck": 6}, r"bottleneck 6 is no multiple of kronecker_terms \(4\)"),
        ({"kronecker_terms": 0}, "greater than or equal to 1"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"bottleneck": 8, "reduction_factor": 2}, "say the same"),
        ({"placement": "pfeiffer", "cross_attention": True}, "needs placement houlsby"),
        ({"scaling": 2.0}, "Extra inputs"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options(**options)


def test_a_width_that_the_terms_do_not_divide_is_refused() -> None:
    assert Compacter(Options(kronecker_terms=3, bottleneck=6)).refusal(facts_of("bert")) == (
        "kronecker_terms is 3, which does not divide the model's width of 16"
    )
    assert "no block 9" in Compacter(Options(blocks=[9])).refusal(facts_of("bert"))
    assert Compacter(Options()).refusal(facts_of("bert")) == ""
