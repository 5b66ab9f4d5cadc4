from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import ftkit
from ftkit.errors import ModelError, RecipeError
from ftkit.methods.adapter_fusion import AdapterFusion, Options
from ftkit.registry import METHODS
from ftkit.run.planning import make_plan_here
from ftkit.tuners.adapter import drop_adapters
from ftkit.tuners.adapter_fusion import fusions
from ftkit.tuners.fusion_members import read_member
from ftkit.tuners.wrap import load_adapter
from tests.methods.adapter_reference import INSTALL
from tests.methods.cases import LABELS, batch_of, facts_of, fresh_model, logits_of, make_method, train
from tests.methods.test_adapter import adapters_of


def member(folder: Path, family: str = "bert", method: str = "adapter", seed: int = 1, **options: Any) -> str:
    """Writes an adapter with random values; returns its folder."""
    model, layout = fresh_model(family, head_seed=seed)
    made = make_method(method, options, family)
    wrapped: Any = made.apply(model, layout)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if f".{made.prefix}" in name:  # type: ignore[attr-defined]
            parameter.data.normal_(0, 0.4, generator=generator)
    made.save_adapter(wrapped, folder)
    return str(folder)


def fused(paths: list[str], family: str = "bert", **options: Any) -> tuple[AdapterFusion, Any, Any]:
    method = AdapterFusion(Options(adapters=paths, **options))
    model, layout = fresh_model(family)
    return method, method.apply(model, layout).eval(), layout


@pytest.mark.parametrize(
    ("family", "placement"), [("bert", "pfeiffer"), ("gpt2", "pfeiffer"), ("t5", "houlsby"), ("llama", "parallel")]
)
def test_equals_blocks_that_are_written_out(family: str, placement: str, tmp_path: Path) -> None:
    paths = [
        member(tmp_path / "1", family, seed=1, placement=placement),
        member(tmp_path / "2", family, seed=2, placement=placement, bottleneck=3),
    ]
    torch.manual_seed(0)
    _, wrapped, layout = fused(paths, family)
    for fusion in fusions(wrapped):
        for layer in (fusion.query, fusion.key, fusion.value):
            for parameter in layer.parameters():
                parameter.data.normal_(0, 0.1)
    logits = wrapped(**batch_of(family)).logits
    functional.cross_entropy(logits, LABELS).backward()

    own = adapters_of(wrapped, layout)
    copies = {
        place: {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()} for place, module in own.items()
    }
    members: list[dict[str, nn.Module]] = []
    for path in paths:
        base, base_layout = fresh_model(family)
        members.append(adapters_of(load_adapter(base, base_layout, Path(path)), base_layout))

    def written_out(place: str) -> Any:
        w = copies[place]

        def adapter(x: Tensor) -> Tensor:
            outputs = [each[place](x) for each in members]
            query = x @ w["query.weight"].T + w["query.bias"]
            scores = [(query * (output @ w["key.weight"].T)).sum(-1, keepdim=True) for output in outputs]
            total = sum(score.exp() for score in scores)
            return sum(score.exp() / total * (output @ w["value.weight"].T) for score, output in zip(scores, outputs, strict=True))

        return adapter

    plain, _ = fresh_model(family)
    INSTALL[family](plain, {place: written_out(place) for place in own}, placement)
    expected = plain(**batch_of(family)).logits
    functional.cross_entropy(expected, LABELS).backward()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for place, module in own.items():
        for name, parameter in module.named_parameters():
            if "members" not in name:
                torch.testing.assert_close(parameter.grad, copies[place][name].grad, atol=1e-5, rtol=1e-3)


def test_starts_as_the_mean_of_the_members(tmp_path: Path) -> None:
    """With V near the identity and small Q and K, a fusion of twice the same adapter is that adapter."""
    path = member(tmp_path / "1")
    _, wrapped, _ = fused([path, path])
    model, layout = fresh_model("bert")
    single = load_adapter(model, layout, Path(path))
    single.base_model.model.classifier = fresh_model("bert")[0].classifier
    single.base_model.model.bert.pooler = fresh_model("bert")[0].bert.pooler
    torch.testing.assert_close(logits_of(wrapped, "bert"), logits_of(single, "bert"), atol=1e-4, rtol=0)


def test_the_folder_needs_nothing_else(tmp_path: Path) -> None:
    paths = [member(tmp_path / "1"), member(tmp_path / "2", method="compacter", placement="pfeiffer", norms=False, bottleneck=8)]
    method, wrapped, _ = fused(paths)
    train(wrapped, method, "bert", 3)
    method.save_adapter(wrapped, tmp_path / "fusion")
    expected = logits_of(wrapped, "bert")
    shutil.rmtree(paths[0])
    shutil.rmtree(paths[1])
    loaded = load_adapter(*fresh_model("bert", head_seed=9), tmp_path / "fusion")
    assert torch.equal(logits_of(loaded, "bert"), expected)
    assert str(tmp_path) not in (tmp_path / "fusion" / "adapter_config.json").read_text()


def test_members_stay_frozen_whatever_peft_activates(tmp_path: Path) -> None:
    method, wrapped, _ = fused([member(tmp_path / "1"), member(tmp_path / "2", seed=2)])
    before = {name: parameter.clone() for name, parameter in wrapped.named_parameters() if ".members." in name}
    assert before
    train(wrapped, method, "bert", 3)
    with wrapped.disable_adapter():
        pass
    wrapped.set_adapter("default")
    after = dict(wrapped.named_parameters())
    assert not any(after[name].requires_grad for name in before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after.keys() >= method.state(wrapped).keys() == before.keys()


def test_the_state_brings_the_members_back(tmp_path: Path) -> None:
    paths = [member(tmp_path / "1"), member(tmp_path / "2", seed=2)]
    method, wrapped, _ = fused(paths)
    expected, state = logits_of(wrapped, "bert"), {name: value.clone() for name, value in method.state(wrapped).items()}
    shutil.rmtree(paths[1])
    member(tmp_path / "2", seed=7)
    torch.manual_seed(0)
    other_method, other, _ = fused(paths)
    for name, parameter in other.named_parameters():
        if other_method.declares(name, None):  # type: ignore[arg-type]
            parameter.data.copy_(dict(wrapped.named_parameters())[name])
    assert not torch.allclose(logits_of(other, "bert"), expected)
    other_method.restore(other, state)
    assert torch.equal(logits_of(other, "bert"), expected)


def test_the_regularizer_is_the_distance_of_the_values_from_the_identity(tmp_path: Path) -> None:
    paths = [member(tmp_path / "1"), member(tmp_path / "2", seed=2)]
    method, wrapped, _ = fused(paths, regularization=0.5)
    loss = method.extra_loss(wrapped)
    assert loss is not None
    torch.testing.assert_close(loss.detach(), torch.tensor(0.5 * 2 * (16 * 16 - 16) * 1e-12))
    for fusion in fusions(wrapped):
        fusion.value.weight.data += 0.1
    loss = method.extra_loss(wrapped)
    assert loss is not None
    torch.testing.assert_close(loss.detach(), torch.tensor(0.5 * 2 * 16 * 16 * 0.01), atol=1e-4, rtol=1e-4)
    loss.backward()
    assert all(fusion.value.weight.grad is not None for fusion in fusions(wrapped))
    assert AdapterFusion(Options(adapters=paths, regularization=0.0)).extra_loss(wrapped) is None


def test_a_run_folder_stands_for_its_exported_adapter(tmp_path: Path) -> None:
    member(tmp_path / "run" / "export" / "adapter")
    paths = [str(tmp_path / "run"), member(tmp_path / "2", seed=2)]
    assert AdapterFusion(Options(adapters=paths)).refusal(facts_of("bert")) == ""
    assert len(list(fusions(fused(paths)[1]))) == 2


def test_a_fusion_is_dropped_like_an_adapter(tmp_path: Path) -> None:
    _, wrapped, layout = fused([member(tmp_path / "1"), member(tmp_path / "2", seed=2)])
    assert drop_adapters(wrapped, layout, 2) == 2
    torch.testing.assert_close(logits_of(wrapped, "bert"), logits_of(fresh_model("bert")[0], "bert"))


# --- what does not fit -------------------------------------------------------------------------------------------------


def change_config(folder: str, **changes: Any) -> None:
    file = Path(folder) / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_only_adapters_of_methods_that_fuse_do(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    made = METHODS.get("lora")(METHODS.get("lora").Options())
    made.save_adapter(made.apply(*fresh_model("bert")), lora)
    members = [member(tmp_path / "first"), member(tmp_path / "second", method="compacter", placement="pfeiffer", norms=False)]
    for named, message in ((members, ""), ([*members, str(lora)], "kind LORA; only those of adapter and compacter fuse")):
        recipe = ftkit.load_recipe(recipe_file(method=f"{{name: adapter-fusion, adapters: {json.dumps(named)}}}"))
        if not message:
            assert make_plan_here(recipe).recipe.method.options.adapters == members
        else:
            with pytest.raises(RecipeError, match=message):
                make_plan_here(recipe)


def test_members_that_cannot_fuse_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    first = member(tmp_path / "first")
    other = member(tmp_path / "other")
    change_config(first, base_model_name_or_path="org/one")
    change_config(other, base_model_name_or_path="org/two")
    broken = member(tmp_path / "broken")
    (Path(broken) / "adapter_config.json").write_text("{")
    deep = member(tmp_path / "deep")
    (Path(deep) / "adapter_config.json").write_text("[" * 5000)
    listed = member(tmp_path / "listed")
    change_config(listed, peft_type=["ADAPTER"])
    worded = member(tmp_path / "worded")
    change_config(worded, bottleneck="large")
    for second, message in (
        (str(tmp_path / "nowhere"), "is neither an exported adapter nor a run that exported one; `ftkit export"),
        (member(tmp_path / "norms", norms=True), "has trained norms of its own, which do not fuse; train it with `norms: false`"),
        (member(tmp_path / "houlsby", placement="houlsby"), "has the placement houlsby, the first adapter pfeiffer"),
        (other, "was trained on two, the first adapter on one"),
        (broken, "cannot be read"),
        (deep, "adapter_config.json cannot be read as JSON: it is nested more than 100 levels deep; export that adapter again"),
        (listed, "adapter_config.json: `peft_type` is ['ADAPTER'], expected a name; export that adapter again"),
        (worded, "adapter_config.json: `bottleneck` is 'large', expected a whole number; export that adapter again"),
    ):
        method = AdapterFusion(Options(adapters=[first, second]))
        assert message in method.refusal(facts_of("bert"))
        with pytest.raises(ModelError, match=r".") as caught:
            method.apply(*fresh_model("bert"))
        assert any(message in str(problem) for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "swish"}, "`activation` is 'swish', expected one of relu"),
        ({"bottleneck": -1}, "`bottleneck` is -1, expected a number above 0"),
        ({"bottleneck": None, "reduction_factor": None}, "`bottleneck` and `reduction_factor` are both missing"),
    ],
)
def test_members_of_which_no_adapter_can_be_built_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    paths = [member(tmp_path / "1"), member(tmp_path / "2")]
    change_config(paths[1], **changes)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        fused(paths)
    assert caught.value.problems[0].place.endswith("adapter_config.json")


@pytest.mark.parametrize(("key", "value"), [("placement", []), ("reduction_factor", "8"), ("bottleneck", [])])
def test_settings_of_other_types_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    path = Path(member(tmp_path / "1"))
    change_config(str(path), **{key: value})
    with pytest.raises(ModelError, match=re.escape(f"`{key}` is {value!r}, expected")):
        read_member(path, json.loads((path / "adapter_config.json").read_text(encoding="utf-8")))


def test_members_at_other_blocks_are_refused(tmp_path: Path) -> None:
    paths = [member(tmp_path / "1"), member(tmp_path / "2", blocks=[1])]
    with pytest.raises(ModelError, match=r"at other places than those of .*layer\.0"):
        fused(paths)


def test_members_of_another_model_are_refused(tmp_path: Path) -> None:
    paths = [member(tmp_path / "1", "gpt2"), member(tmp_path / "2", "gpt2", seed=2)]
    with pytest.raises(ModelError, match=r"another kind of model: BertForSequenceClassification has no transformer.h.0.mlp.c_proj"):
        fused(paths)


def test_weights_that_are_damaged_are_refused(tmp_path: Path) -> None:
    paths = [member(tmp_path / "1"), member(tmp_path / "2")]
    file = Path(paths[1]) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ModelError, match="cannot read the adapter's weights"):
        fused(paths)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    paths = [member(tmp_path / "1"), member(tmp_path / "2", bottleneck=3)]
    change_config(paths[1], bottleneck=5)
    with pytest.raises(ModelError, match="do not fit this model"):
        fused(paths)


def test_weights_that_are_no_whole_adapter_are_refused(tmp_path: Path) -> None:
    paths = [member(tmp_path / "1"), member(tmp_path / "2")]
    file = Path(paths[1]) / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({**whole, "base_model.model.strange": torch.ones(2)}, file)
    with pytest.raises(ModelError, match=r"base_model.model.strange is no part of such an adapter"):
        fused(paths)
    save_file({name: tensor * float("nan") for name, tensor in whole.items()}, file)
    with pytest.raises(ModelError, match="has values that are not finite numbers") as caught:
        fused(paths)
    assert all(problem.place == str(file) and problem.hint for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapters": ["one"]}, "a fusion needs two adapters or more, not 1"),
        ({"adapters": ["", "two"]}, "at least 1 character"),
        ({"regularization": -1}, "greater than or equal to 0"),
        ({"dropout": 1}, "less than 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options(**options)


def test_without_adapters_there_is_nothing_to_fuse() -> None:
    assert "none are named; give `adapters: [folder, folder]`" in AdapterFusion(Options()).refusal(facts_of("bert"))
