"""What every tuning method keeps, found by the registry: a new method is tested here without an edit."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ftkit.errors import ModelError
from ftkit.methods.base import Capabilities, Method
from ftkit.models.layout import ModelLayout
from ftkit.models.trainable import load_trainable, to_uniform_dtype, trainable_state
from ftkit.recipe.schema import Strict
from ftkit.registry import METHODS
from ftkit.tuners.wrap import load_adapter, merge
from tests.methods.cases import (
    TRAINING_METHODS,
    Case,
    all_cases,
    batch_of,
    facts_of,
    fresh_model,
    logits_of,
    loss_of,
    make_method,
    method_of,
    thawed,
    train,
)
from tests.tiny import FAMILIES

CASES = all_cases()
PLAIN_CASES = [case for case in CASES if case.plain]
ADAPTER_CASES = [case for case in CASES if METHODS.get(case.method).capabilities.adapter]
STEPS = 8

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_plain_case = pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
each_adapter_case = pytest.mark.parametrize("case", ADAPTER_CASES, ids=str)


@dataclass
class Trained:
    method: Method
    model: nn.Module
    layout: ModelLayout
    before: dict[str, Tensor]
    loss_before: float
    loss_after: float
    declared: set[str]
    logits: Tensor


@cache
def trained(case: Case) -> Trained:
    """The case after a few steps; shared by all tests, which leave it as it is."""
    model, layout = fresh_model(case.family)
    method = method_of(case)
    model = method.apply(model, layout).eval()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss_before = loss_of(model, case.family).item()
    train(model, method, case.family, STEPS)
    return Trained(
        method=method,
        model=model,
        layout=layout,
        before=before,
        loss_before=loss_before,
        loss_after=loss_of(model, case.family).item(),
        declared={name for name in before if method.declares(name, layout)},
        logits=logits_of(model, case.family),
    )


@pytest.mark.parametrize("name", METHODS.names())
def test_says_what_it_is(name: str) -> None:
    cls = METHODS.get(name)
    assert cls.name == name
    assert cls.summary
    assert cls.update_rule
    assert isinstance(cls.capabilities, Capabilities)
    assert issubclass(cls.Options, Strict)
    assert all(field.description for field in cls.Options.model_fields.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS.names())
def test_defaults_are_complete_and_sourced(name: str, family: str) -> None:
    cls = METHODS.get(name)
    defaults = make_method(name, {}, family).defaults(facts_of(family))
    assert "train.learning_rate" in defaults
    assert all(default.source for default in defaults.values())
    own = {key.removeprefix("method.") for key in defaults if key.startswith("method.")}
    assert own <= cls.Options.model_fields.keys()


def test_every_method_works_on_some_family() -> None:
    assert {case.method for case in CASES} == set(TRAINING_METHODS)


@each_case
def test_trains_exactly_what_it_declares(case: Case) -> None:
    run = trained(case)
    after = dict(run.model.named_parameters())
    assert {name for name, parameter in after.items() if parameter.requires_grad} == run.declared
    assert {name for name in after if not torch.equal(after[name], run.before[name])} == run.declared


@each_case
def test_trains_all_fresh_parameters(case: Case) -> None:
    run = trained(case)
    assert run.layout.fresh
    assert run.layout.fresh <= {run.layout.canonical(name) for name in run.declared}


@each_case
def test_loss_falls(case: Case) -> None:
    run = trained(case)
    assert run.loss_after < run.loss_before


@each_case
def test_counts_its_parameters(case: Case) -> None:
    run = trained(case)
    expected = method_of(case).parameter_count(fresh_model(case.family)[1])
    counted = sum(tensor.numel() for tensor in trainable_state(run.model).values())
    assert expected in (None, counted)
    assert method_of(case).parameter_count(run.layout) == expected


@each_plain_case
def test_gradient_checkpointing_changes_no_gradient(case: Case) -> None:
    gradients = []
    for checkpointing in (False, METHODS.get(case.method).capabilities.checkpointing):
        model, layout = fresh_model(case.family)
        model = method_of(case).apply(model, layout)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.train()
        # For methods that train with chance of their own (gates).
        torch.manual_seed(2)
        inputs = {"use_cache": False} if case.family in ("gpt2", "llama", "qwen2", "t5", "bart") else {}
        loss_of(model, case.family, {**batch_of(case.family), **inputs}).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-4)


@each_plain_case
def test_trains_in_float32_on_a_bfloat16_base(case: Case) -> None:
    model, layout = fresh_model(case.family, dtype=torch.bfloat16)
    method = method_of(case)
    model = method.apply(model, layout)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    if case.method != "full":
        assert torch.bfloat16 in {p.dtype for p in model.parameters()}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    inputs = batch_of(case.family)
    if case.family == "vit":
        inputs["pixel_values"] = inputs["pixel_values"].to(next(iter(before.values())).dtype)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    for _ in range(2):
        loss_of(model, case.family, inputs).backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed <= trainable
    assert changed
    heads = {name for name in trainable if layout.canonical(name) in layout.head_parameters()}
    assert heads <= changed


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Logits of every case, rebuilt from its files by another process on a base with another random head."""
    folder = tmp_path_factory.mktemp("reload")
    for number, case in enumerate(CASES):
        run = trained(case)
        save_file(
            {name: tensor.contiguous() for name, tensor in trainable_state(run.model).items()}, folder / f"{number}.safetensors"
        )
        save_file(dict(run.method.state(run.model)), folder / f"{number}.method.safetensors")
        if case in ADAPTER_CASES:
            run.method.save_adapter(run.model, folder / str(number))
    cases = [[case.method, thawed(case.options), case.family] for case in CASES]
    (folder / "cases.json").write_text(json.dumps(cases))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "error::UserWarning", "-m", "tests.methods.reload", str(folder)]
    subprocess.run(command, cwd=root, env=environment, check=True, timeout=300)
    return load_file(folder / "logits.safetensors")


@each_case
def test_another_process_gets_equal_logits(case: Case, reloaded: dict[str, Tensor]) -> None:
    number = CASES.index(case)
    found = [name for name in reloaded if name.split()[0] == str(number)]
    assert len(found) == (3 if case in ADAPTER_CASES else 1)
    for name in found:
        torch.testing.assert_close(
            reloaded[name], trained(case).logits, atol=case.tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@each_case
def test_state_with_another_key_set_is_refused(case: Case) -> None:
    run = trained(case)
    state = trainable_state(run.model)
    lost = sorted(state)[0]
    shorter = {name: tensor for name, tensor in state.items() if name != lost}
    with pytest.raises(ModelError, match="is missing"):
        load_trainable(run.model, shorter)
    with pytest.raises(ModelError, match="belongs to no trained parameter"):
        load_trainable(run.model, {**state, "no.such.parameter": torch.zeros(1)})


@each_adapter_case
def test_adapter_file_without_a_key_is_refused(case: Case, tmp_path: Path) -> None:
    run = trained(case)
    run.method.save_adapter(run.model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[sorted(tensors)[-1]]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="is missing"):
        load_adapter(*fresh_model(case.family), tmp_path)


@each_adapter_case
def test_merges_or_says_that_it_cannot(case: Case) -> None:
    run = trained(case)
    model = copy.deepcopy(run.model)
    if not run.method.capabilities.merge:
        with pytest.raises((NotImplementedError, AttributeError, ValueError)):
            merge(model)
        return
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model, case.family), run.logits, atol=1e-5, rtol=0)
    with warnings.catch_warnings():
        # PEFT says so of each division by trained factors; how exact it is is checked here.
        warnings.filterwarnings("ignore", "Unmerge result can be inaccurate")
        model.unmerge_adapter()
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], parameter, atol=1e-6, rtol=0)
    merged = merge(model)
    torch.testing.assert_close(logits_of(merged, case.family), run.logits, atol=1e-5, rtol=0)
    plain = fresh_model(case.family)[0]
    assert dict(merged.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(merged.state_dict())
    torch.testing.assert_close(logits_of(plain, case.family), run.logits, atol=1e-5, rtol=0)


@each_adapter_case
def test_two_adapters_share_a_base(case: Case, tmp_path: Path) -> None:
    first = trained(case)
    model, layout = fresh_model(case.family, head_seed=3)
    method = method_of(case)
    model = method.apply(model, layout)
    train(model, method, case.family, 3, learning_rate=3e-2)
    second_logits = logits_of(model, case.family)
    first.method.save_adapter(first.model, tmp_path / "first")
    method.save_adapter(model, tmp_path / "second")
    base, layout = fresh_model(case.family, head_seed=4)
    base_logits = logits_of(base, case.family)
    both = load_adapter(base, layout, tmp_path / "first")
    both.load_adapter(tmp_path / "second", "second")
    for name, logits in (("second", second_logits), ("default", first.logits), ("second", second_logits)):
        both.set_adapter(name)
        torch.testing.assert_close(logits_of(both, case.family), logits, atol=case.tolerance, rtol=0)
    assert not torch.allclose(first.logits, second_logits, atol=1e-3)
    with both.disable_adapter():
        torch.testing.assert_close(logits_of(both, case.family), base_logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", TRAINING_METHODS)
def test_merged_half_precision_models_get_one_type(name: str) -> None:
    model, layout = fresh_model("bert", dtype=torch.bfloat16)
    model = make_method(name, {}, "bert").apply(model, layout)
    if METHODS.get(name).capabilities.merge:
        plain = merge(model) if METHODS.get(name).capabilities.adapter else model
        to_uniform_dtype(plain, torch.bfloat16)
        assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}
        assert logits_of(plain, "bert").dtype == torch.bfloat16


def test_adapters_hold_no_path_of_this_machine(tmp_path: Path) -> None:
    for name in METHODS.names():
        if METHODS.get(name).capabilities.adapter:
            model, layout = fresh_model("bert")
            model.name_or_path = str(tmp_path / "secret" / "my-model")
            method = make_method(name, {}, "bert")
            method.save_adapter(method.apply(model, layout), tmp_path / name)
            config = json.loads((tmp_path / name / "adapter_config.json").read_text())
            assert config["base_model_name_or_path"] == "my-model"
