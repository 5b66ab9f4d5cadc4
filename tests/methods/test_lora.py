from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call

from ftkit.errors import ModelError
from ftkit.methods.lora import LoRA, Options
from tests.methods.cases import LABELS, batch_of, facts_of, fresh_model, logits_of


def adapted(family: str, **options: Any) -> set[str]:
    """Plain module paths that get an update."""
    model, layout = fresh_model(family)
    model = LoRA(Options(**options)).apply(model, layout)
    return {layout.canonical(name) for name, _ in model.named_parameters() if ".lora_A." in name}


def reference_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float, length: Tensor | None) -> Tensor:
    """The weight (out x in) that the papers' formulas give. DoRA's norm carries no gradient (Liu et al. 2024, section 4.3)."""
    summed = weight + scale * b @ a
    if length is None:
        return summed
    return length[:, None] * summed / summed.norm(dim=1, keepdim=True).detach()


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "vit"])
@pytest.mark.parametrize(
    ("options", "scale"),
    [({}, 2.0), ({"alpha": 6.0}, 1.5), ({"alpha": 6.0, "rslora": True}, 3.0), ({"dora": True}, 2.0)],
    ids=["lora", "alpha", "rslora", "dora"],
)
def test_equals_the_formula(family: str, options: dict[str, Any], scale: float) -> None:
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in batch_of(family).items()}
    model, layout = fresh_model(family, dtype=torch.float64)
    model = LoRA(Options(**options, rank=4, targets="all-linear")).apply(model, layout)
    paths = layout.linears("all")
    trained: dict[str, dict[str, Tensor]] = {path: {} for path in paths}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                kind = "A" if ".lora_A." in name else "B" if ".lora_B." in name else "m"
                if kind != "m":
                    parameter.copy_(torch.randn(parameter.shape) * 0.3)
                trained[layout.canonical(name)][kind] = parameter
    logits = model(**inputs).logits
    torch.nn.functional.cross_entropy(logits, LABELS).backward()

    plain, _ = fresh_model(family, dtype=torch.float64)
    weights = {name: parameter.detach() for name, parameter in plain.named_parameters()}
    copies = {path: {kind: p.detach().clone().requires_grad_() for kind, p in parts.items()} for path, parts in trained.items()}
    for path, parts in copies.items():
        stored = weights[f"{path}.weight"]
        turned = type(plain.get_submodule(path)).__name__ == "Conv1D"
        new = reference_weight(stored.T if turned else stored, parts["A"], parts["B"], scale, parts.get("m"))
        weights[f"{path}.weight"] = new.T if turned else new
    expected = functional_call(plain, weights, (), inputs).logits
    torch.nn.functional.cross_entropy(expected, LABELS).backward()

    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    for path, parts in trained.items():
        for kind, parameter in parts.items():
            torch.testing.assert_close(parameter.grad, copies[path][kind].grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", "pissa"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_starts_as_the_base(family: str, init: str) -> None:
    model, layout = fresh_model(family)
    expected = logits_of(model, family)
    model = LoRA(Options(init=init, targets="all-linear")).apply(model, layout)
    torch.testing.assert_close(logits_of(model, family), expected, atol=1e-5, rtol=0)


def test_pissa_starts_from_the_largest_singular_parts() -> None:
    plain, _ = fresh_model("bert")
    model, layout = fresh_model("bert")
    model = LoRA(Options(init="pissa", rank=3)).apply(model, layout)
    path = "bert.encoder.layer.0.attention.self.query"
    values = torch.linalg.svdvals(plain.get_submodule(path).weight)
    rest = torch.linalg.svdvals(model.get_submodule(f"base_model.model.{path}.base_layer").weight)
    torch.testing.assert_close(rest[:-3], values[3:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "targets", "ends"),
    [
        ("bert", "auto", {"query", "value"}),
        ("gpt2", "auto", {"c_attn"}),
        ("gpt2", ["key"], {"c_attn"}),
        ("distilbert", ["query", "ffn_out"], {"q_lin", "lin2"}),
        ("bert", ["intermediate.dense", "key"], {"dense", "key"}),
        ("bert", ["re:.*0.*query"], {"query"}),
        ("llama", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_targets_by_role_name_and_pattern(family: str, targets: Any, ends: set[str]) -> None:
    assert {path.rpartition(".")[2] for path in adapted(family, targets=targets)} == ends


def test_targets_fall_in_the_chosen_blocks_only() -> None:
    assert adapted("bart", blocks=["2-3"], targets=["query"]) == {
        f"model.decoder.layers.{block}.{attention}.q_proj" for block in (0, 1) for attention in ("self_attn", "encoder_attn")
    }


def test_a_planned_decoder_gets_all_linear_layers() -> None:
    assert LoRA(Options()).defaults(facts_of("llama"))["method.targets"].value == "all-linear"
    assert LoRA(Options()).defaults(facts_of("bert"))["method.targets"].value == ["query", "value"]


@pytest.mark.parametrize(
    ("options", "alpha"),
    [
        ({"rank": 4}, 8.0),
        ({"rank": 4, "rslora": True}, 16.0),
        ({"rank": 4, "init": "pissa"}, 4.0),
        ({"rank": 4, "init": "pissa", "rslora": True}, 2.0),
        ({"alpha": 3.0}, 3.0),
    ],
)
def test_auto_alpha(options: dict[str, Any], alpha: float) -> None:
    assert LoRA(Options(**options)).defaults(facts_of("bert"))["method.alpha"].value == alpha


def test_missing_targets_are_all_named_with_close_names() -> None:
    model, layout = fresh_model("gpt2")
    with pytest.raises(ModelError) as caught:
        LoRA(Options(targets=["c_atn", "q_proj", "re:.*nothing"])).apply(model, layout)
    texts = [str(problem) for problem in caught.value.problems]
    assert len(texts) == 3
    assert "GPT2ForSequenceClassification fits 'c_atn'" in texts[0]
    assert "Close names: c_attn" in texts[0]
    assert "Close names: c_proj" in texts[1]
    assert "Close names: c_attn, c_proj, c_fc. Roles: query, key" in texts[2]


def test_targets_outside_the_chosen_blocks_are_refused() -> None:
    model, layout = fresh_model("bert")
    with pytest.raises(ModelError, match="both a target and in `blocks`"):
        LoRA(Options(targets=["re:.*layer.0.*query"], blocks=[1])).apply(model, layout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "greater than or equal to 1"),
        ({"alpha": 0}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"targets": []}, "at least 1 item"),
        ({"targets": ["re:("]}, "is not a regular expression"),
        ({"targets": "query"}, "'auto' or 'all-linear'"),
        ({"init": "orthogonal", "rank": 3}, "needs an even rank, not 3"),
        ({"init": "zeros"}, "'default', 'gaussian'"),
        ({"blocks": ["b"]}, "is no block number"),
        ({"rang": 4}, "Extra inputs"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options(**options)


def test_what_the_facts_rule_out_is_refused_early() -> None:
    assert "no block 7" in LoRA(Options(blocks=[7])).refusal(facts_of("bert"))
    assert "width 16 no update has a rank above that" in LoRA(Options(rank=32)).refusal(facts_of("bert"))
    assert LoRA(Options(rank=16)).refusal(facts_of("bert")) == ""


def test_pissa_refuses_a_rank_above_the_smaller_side() -> None:
    model, layout = fresh_model("qwen2")
    with pytest.raises(ModelError, match=r"rank of at most 8, the smaller side of model.layers.0.self_attn.(k|v)_proj"):
        LoRA(Options(init="pissa", rank=12)).apply(model, layout)


def test_pissa_refuses_quantized_weights() -> None:
    model, layout = fresh_model("bert")
    layer = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    layer.weight = torch.nn.Parameter(torch.zeros(16, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="which is quantized"):
        LoRA(Options(init="pissa")).apply(model, layout)
