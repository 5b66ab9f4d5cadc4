from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call

from ftkit.errors import ModelError
from ftkit.methods.lora import LoRA, Options
from ftkit.models.layout import ModelLayout
from ftkit.models.load import load_model
from ftkit.models.quantization import dequantized
from ftkit.recipe.schema import ModelSpec, QuantizationSpec, TrainSpec
from ftkit.tasks.base import Head
from ftkit.training.optimizers import parameter_groups
from ftkit.tuners.wrap import load_adapter
from tests.methods.cases import LABELS, batch_of, facts_of, fresh_model, logits_of, loss_of, train
from tests.tiny import save_tiny, tiny_config


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


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", "pissa", "olora"])
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
        ({"rank": 4, "init": "olora"}, 4.0),
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
        ({"pissa_iterations": 4}, "pissa_iterations belongs to init: pissa, not to init: default"),
        ({"init": "loftq", "dora": True}, "use one of them"),
        ({"loraplus_lr_ratio": 0.5}, "greater than or equal to 1"),
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


def test_olora_splits_off_the_first_parts_of_a_qr_decomposition() -> None:
    for family in ("bert", "gpt2"):
        plain, layout = fresh_model(family)
        model, own_layout = fresh_model(family)
        wrapped: Any = LoRA(Options(init="olora", rank=3, targets=["ffn_in"])).apply(model, own_layout)
        path = layout.linears("ffn_in")[0]
        layer = wrapped.get_submodule(f"base_model.model.{path}")
        whole = plain.get_submodule(path).weight.detach()
        whole = whole.T if family == "gpt2" else whole
        rows, columns = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        torch.testing.assert_close(columns.T @ columns, torch.eye(3), atol=1e-5, rtol=0)
        assert torch.equal(rows.tril(-1), torch.zeros_like(rows)), "the first rows of an upper triangular matrix"
        left = layer.base_layer.weight.detach()
        torch.testing.assert_close((left.T if family == "gpt2" else left) + columns @ rows, whole, atol=1e-5, rtol=0)
        # The first columns of a QR decomposition span those of the matrix.
        torch.testing.assert_close((columns @ rows)[:, :3], whole[:, :3], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"init": "pissa"},
        {"init": "pissa", "rslora": True},
        {"init": "pissa", "pissa_iterations": 4},
        {"init": "pissa", "dora": True},
        {"init": "olora", "alpha": 6.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_split_starts_are_exported_as_plain_lora_on_the_whole_weight(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    model, layout = fresh_model(family)
    method = LoRA(Options(**options, rank=3, targets="all-linear"))
    model = method.apply(model, layout)
    train(model, method, family, 4)
    method.save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (6, True)
    base, base_layout = fresh_model(family, 3)
    weights = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    loaded = load_adapter(base, base_layout, tmp_path)
    torch.testing.assert_close(logits_of(loaded, family), logits_of(model, family), atol=1e-5, rtol=0)
    for name, parameter in loaded.named_parameters():
        if ".base_layer." in name:
            assert torch.equal(parameter, weights[layout.canonical(name)]), "the base stays as it is"


def test_inexact_pissa_comes_out_equal_whatever_random_numbers_were_drawn_before() -> None:
    starts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model, layout = fresh_model("bert")
        torch.manual_seed(seed)
        model = LoRA(Options(init="pissa", pissa_iterations=1, rank=2)).apply(model, layout)
        starts.append({name: p.detach() for name, p in model.named_parameters() if "lora_" in name})
        assert torch.initial_seed() == seed
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])


def eva_losses(model: Any, family: str, count: int, seed: int = 0) -> tuple[list[dict[str, Tensor]], list[Any]]:
    """Batches of words with padding, and what ftkit makes of them."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        tokens = torch.randint(7, 60, (8, 12), generator=generator)
        mask = torch.ones(8, 12, dtype=torch.long)
        mask[:4, 9:] = 0
        batches.append({"input_ids": tokens, "attention_mask": mask})
    return batches, [lambda batch=batch: model(**batch).logits.sum() for batch in batches]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_eva_finds_the_directions_that_pefts_own_function_finds(family: str) -> None:
    from peft import EvaConfig, LoraConfig, get_eva_state_dict

    targets = ["query", "key", "ffn_in", "ffn_out"]
    model, layout = fresh_model(family)
    method = LoRA(Options(init="eva", rank=4, targets=targets))
    paths = method.paths(layout)
    model = method.apply(model, layout)
    batches, losses = eva_losses(model, family, 12)
    method.prepare(model, losses)
    plain, _ = fresh_model(family)
    config = LoraConfig(r=4, target_modules=paths, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    expected = get_eva_state_dict(plain, batches, config, show_progress_bar=False)
    for path in paths:
        found = model.get_submodule(f"base_model.model.{path}").lora_A["default"].weight
        torch.testing.assert_close(found, expected[path].float(), atol=1e-4, rtol=0, msg=lambda text, path=path: f"{path}: {text}")
        torch.testing.assert_close(found @ found.T, torch.eye(4), atol=1e-4, rtol=0)


def test_eva_leaves_padding_out() -> None:
    found = []
    for filler in (1, 6):
        model, layout = fresh_model("bert")
        method = LoRA(Options(init="eva", rank=4, targets=["query"], blocks=[0]))
        model = method.apply(model, layout)
        batches, losses = eva_losses(model, "bert", 4)
        for batch in batches:
            batch["input_ids"][batch["attention_mask"] == 0] = filler
        method.prepare(model, losses)
        found.append(next(p.detach() for name, p in model.named_parameters() if "lora_A" in name))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["bart", "vit", "gpt2"])
def test_eva_works_where_inputs_have_other_names_or_lengths(family: str) -> None:
    model, layout = fresh_model(family)
    expected = logits_of(model, family)
    method = LoRA(Options(init="eva", rank=12, targets="all-linear"))
    model = method.apply(model, layout)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert method.batches_before_training() == 16
    method.prepare(model.eval(), [lambda: loss_of(model, family)] * 3)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".lora_A." in name}
    torch.testing.assert_close(logits_of(model, family), expected, atol=1e-5, rtol=0)


def test_eva_refuses_too_few_tokens() -> None:
    model, layout = fresh_model("bert")
    method = LoRA(Options(init="eva", rank=8, targets=["query"]))
    model = method.apply(model, layout)
    with pytest.raises(ModelError, match=r"too few tokens in the first batches: .* saw 3, rank 8 needs more"):
        method.prepare(model, [lambda: model(input_ids=torch.tensor([[9, 8, 7]])).logits.sum()])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_loraplus_trains_b_faster() -> None:
    model, layout = fresh_model("bert")
    method = LoRA(Options(loraplus_lr_ratio=16.0, dora=True))
    model = method.apply(model, layout)
    train_spec = TrainSpec(learning_rate=1e-3, weight_decay=0.01)
    groups = parameter_groups(model, layout, train_spec, method)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert {rate for name, rate in rates.items() if ".lora_B." in name} == {1.6e-2}
    assert {rate for name, rate in rates.items() if ".lora_B." not in name} == {1e-3}
    usual = LoRA(Options()).defaults(facts_of("bert"))["train.learning_rate"]
    lowered = method.defaults(facts_of("bert"))["train.learning_rate"]
    assert lowered.value == pytest.approx(usual.value / 4)
    assert "sqrt(16)" in lowered.source


def loftq_model(folder: Path) -> Any:
    config = tiny_config("bert", hidden_size=64, intermediate_size=128, num_labels=3)
    torch.manual_seed(0)
    save_tiny(folder, "bert")
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    head = Head(auto_class="AutoModelForSequenceClassification", peft_task_type="SEQ_CLS", config={"num_labels": 3})
    quantization = QuantizationSpec(type="nf4", compute_dtype="float32")
    return load_model(ModelSpec(name=str(folder), quantization=quantization), head, seed=0)


def test_loftq_makes_up_for_the_rounding_as_well_as_its_rank_can(tmp_path: Path) -> None:
    loaded = loftq_model(tmp_path)
    method = LoRA(Options(init="loftq", rank=6, alpha=15.0, targets=["query", "ffn_in"]))
    model: Any = method.apply(loaded.model, loaded.layout)
    assert method.batches_before_training() == 1
    method.prepare(model, [])
    original = load_file(tmp_path / "model.safetensors")
    for path in method.paths(loaded.layout):
        layer = model.get_submodule(f"base_model.model.{path}")
        rounding = original[f"{path}.weight"] - dequantized(layer.base_layer)
        rest = rounding - layer.get_delta_weight("default")
        # Eckart & Young 1936: what is left of the best approximation of rank r are the other singular values.
        best = torch.linalg.svdvals(rounding)[6:].norm()
        torch.testing.assert_close(rest.norm(), best, atol=1e-5, rtol=1e-3)
        assert rest.norm() < 0.95 * rounding.norm()


def test_loftq_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"makes up for 4-bit rounding.*Set `model.quantization: nf4`"):
        LoRA(Options(init="loftq")).apply(*fresh_model("bert"))
    loaded = loftq_model(tmp_path)
    method = LoRA(Options(init="loftq"))
    model = method.apply(loaded.model, loaded.layout)
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ModelError, match=r"needs the unquantized weights; .* has no model.safetensors"):
        method.prepare(model, [])


@pytest.mark.parametrize(("outward", "share"), [(2048, 0.0078125), (8192, 0.0048828125)])
def test_the_usual_rank_is_less_than_a_hundredth_of_a_wide_layer(outward: int, share: float) -> None:
    counted = LoRA(Options(rank=8)).layer_count(2048, outward)
    assert counted / (2048 * outward) == share


def test_the_count_of_a_wide_model_is_what_its_layers_hold() -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            tiny_config("llama", hidden_size=2048, num_attention_heads=16, num_key_value_heads=16, intermediate_size=8192)
        )
    layout = ModelLayout(model)
    method = LoRA(Options(rank=8, targets=["query", "value", "ffn_out"]))
    shares = {}
    for path in method.paths(layout):
        weight = model.get_submodule(path).weight
        shares[path.rpartition(".")[2]] = method.layer_count(weight.shape[1], weight.shape[0]) / weight.numel()
    assert set(shares) == {"q_proj", "v_proj", "down_proj"}
    assert all(0.004 < share < 0.008 for share in shares.values())
    assert method.parameter_count(layout) == 2 * 8 * (2 * (2048 + 2048) + (8192 + 2048))
