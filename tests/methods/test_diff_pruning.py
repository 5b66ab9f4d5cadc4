from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from ftkit.methods.diff_pruning import DiffPruning, Options
from ftkit.models.layout import ModelLayout
from ftkit.models.tensors import changeable_tensors
from ftkit.tuners.diff_pruning import sampled_gate, settled_gate
from tests.methods.cases import LABELS, batch_of, facts_of, fresh_model, logits_of, loss_of, make_method, train


def applied(family: str, **options: Any) -> tuple[DiffPruning, Any, ModelLayout]:
    """The method with random differences and gates."""
    model, layout = fresh_model(family)
    method = DiffPruning(Options(**options))
    wrapped: Any = method.apply(model, layout)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".diff_pruning_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if name.endswith("difference") else 1.5))
    return method, wrapped, layout


def pruning_of(wrapped: Any) -> Any:
    return wrapped.base_model.prunings["default"]


def hard_concrete(a: Tensor, u: Tensor | None = None) -> Tensor:
    """Louizos et al. 2018 with l = -1.5, r = 1.5, as Guo et al. 2021 write it."""
    s = torch.sigmoid(a if u is None else torch.log(u) - torch.log(1 - u) + a)
    return torch.minimum(torch.ones_like(s), torch.maximum(torch.zeros_like(s), s * 3.0 - 1.5))


def by_hand(wrapped: Any, layout: ModelLayout, count: int | None) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Changed weights of the plain model out of copies of w and a. count: only the largest of the whole model."""
    copies: dict[str, dict[str, Tensor]] = {}
    for name, part in pruning_of(wrapped).differences.items():
        copies[name] = {own: p.detach().clone().requires_grad_() for own, p in part.named_parameters()}
    changes = {}
    for name, own in copies.items():
        gate = hard_concrete(own["gate"])
        changes[name] = gate * own["difference"] * (hard_concrete(own["group"]) if "group" in own else 1.0)
    if count is not None:
        sizes = torch.cat([change.detach().abs().flatten() for change in changes.values()])
        least = sizes.topk(count).values[-1]
        changes = {name: torch.where(change.abs() >= least, change, 0.0) for name, change in changes.items()}
    return changes, copies


@pytest.mark.parametrize(("family", "structured"), [("bert", True), ("gpt2", True), ("t5", False), ("vit", True)])
def test_evaluation_equals_the_pruned_formula(family: str, structured: bool) -> None:
    _, wrapped, layout = applied(family, density=0.05, structured=structured)
    logits = wrapped.eval()(**batch_of(family)).logits
    nn.functional.cross_entropy(logits, LABELS).backward()

    changes, copies = by_hand(wrapped, layout, pruning_of(wrapped).count)
    plain, _ = fresh_model(family)
    weights = {name: parameter.detach() for name, parameter in plain.named_parameters()}
    summed = {name: weights[name] + change for name, change in changes.items()}
    expected = functional_call(plain, weights | summed, (), batch_of(family)).logits
    nn.functional.cross_entropy(expected, LABELS).backward()

    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for name, part in pruning_of(wrapped).differences.items():
        for own, parameter in part.named_parameters():
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found, copies[name][own].grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_training_gates_are_hard_concrete() -> None:
    a = torch.randn(2000, requires_grad=True)
    torch.manual_seed(7)
    gate = sampled_gate(a)
    torch.manual_seed(7)
    u = torch.rand(2000)
    b = a.detach().clone().requires_grad_()
    expected = hard_concrete(b, u)
    torch.testing.assert_close(gate, expected, atol=1e-5, rtol=0)
    gate.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3)
    assert {0.0, 1.0} <= set(gate.tolist())
    torch.testing.assert_close(settled_gate(a), hard_concrete(a))


def test_training_uses_gates_by_chance_and_evaluation_does_not() -> None:
    _, wrapped, _ = applied("bert")
    outputs = {}
    for training in (True, False):
        wrapped.train(training)
        for module in wrapped.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        outputs[training] = [wrapped(**batch_of("bert")).logits for _ in range(2)]
    assert not torch.equal(*outputs[True])
    assert torch.equal(*outputs[False])


@pytest.mark.parametrize("structured", [True, False])
def test_the_penalty_is_the_expected_number_of_changed_numbers(structured: bool) -> None:
    method, wrapped, _ = applied("bert", structured=structured, sparsity_penalty=1e-3)
    expected = 0.0
    for part in pruning_of(wrapped).differences.values():
        own = dict(part.named_parameters())
        offset = math.log(1.5 / 1.5)
        group = torch.sigmoid(own["group"] - offset).item() if structured else 1.0
        expected += 1e-3 * group * torch.sigmoid(own["gate"] - offset).sum().item()
    extra = method.extra_loss(wrapped)
    assert extra is not None
    assert extra.item() == pytest.approx(expected, rel=1e-5)
    extra.backward()
    assert all(part.gate.grad is not None for part in pruning_of(wrapped).differences.values())
    assert DiffPruning(Options(sparsity_penalty=0.0)).extra_loss(wrapped) is None


def test_a_high_penalty_closes_gates() -> None:
    model, layout = fresh_model("bert")
    method = DiffPruning(Options(sparsity_penalty=1.0, fixed_share=0.0))
    wrapped: Any = method.apply(model, layout)
    before = sum(part.expected_count().item() for part in pruning_of(wrapped).differences.values())
    train(wrapped, method, "bert", 20, learning_rate=0.5)
    after = sum(part.expected_count().item() for part in pruning_of(wrapped).differences.values())
    assert after < 0.05 * before
    assert all(part.settled().abs().max() == 0 for part in pruning_of(wrapped).differences.values())


def test_the_choice_is_fixed_for_the_last_steps() -> None:
    model, layout = fresh_model("bert")
    method = DiffPruning(Options(density=0.02, fixed_share=0.25))
    wrapped: Any = method.apply(model, layout)
    pruning, seen = pruning_of(wrapped), []
    method.training_begins(wrapped, 8)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for step in range(1, 9):
        wrapped.train()
        extra = method.extra_loss(wrapped)
        (loss_of(wrapped, "bert") + (0 if extra is None else extra)).backward()
        optimizer.step()
        before = pruning.values().clone() if step == 6 else None
        method.after_step(wrapped, step)
        if before is not None:
            torch.testing.assert_close(pruning.values(), before)
        optimizer.zero_grad()
        seen.append(None if pruning.fixed is None else pruning.fixed.clone())
    assert [positions is None for positions in seen] == [True] * 5 + [False] * 3
    assert torch.equal(seen[5], seen[7])
    assert len(seen[7].unique()) == pruning.count
    assert method.extra_loss(wrapped) is None
    # Training and evaluation now compute the same.
    for module in wrapped.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(wrapped.train()(**batch_of("bert")).logits, logits_of(wrapped, "bert"))


def test_choices_follow_a_fused_optimizer() -> None:
    """It changes parameters without counting up the versions by which a choice is otherwise known to be stale."""
    model, layout = fresh_model("bert")
    method = DiffPruning(Options(density=0.02))
    wrapped: Any = method.apply(model, layout)
    pruning = pruning_of(wrapped)
    method.training_begins(wrapped, 100)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=0.1, fused=True)
    for step in range(1, 4):
        wrapped.train()
        loss_of(wrapped, "bert").backward()
        optimizer.step()
        method.after_step(wrapped, step)
        optimizer.zero_grad()
        sizes = torch.cat([pruning.differences[name].settled().flatten().abs() for name in pruning.order.numbers])
        assert torch.equal(pruning.positions().long(), sizes.topk(pruning.count).indices.sort().values)


def test_the_state_takes_the_choice_back() -> None:
    method, wrapped, _ = applied("bert")
    open_logits = logits_of(wrapped, "bert")
    assert method.state(wrapped) == {}
    pruning_of(wrapped).fix()
    fixed_logits, state = logits_of(wrapped, "bert"), dict(method.state(wrapped))
    torch.testing.assert_close(fixed_logits, open_logits, atol=1e-6, rtol=0)
    method.restore(wrapped, {})
    assert pruning_of(wrapped).fixed is None
    method.restore(wrapped, state)
    assert torch.equal(logits_of(wrapped, "bert"), fixed_logits)


def test_the_file_is_sparse(tmp_path: Path) -> None:
    method, wrapped, layout = applied("bert", density=0.03)
    method.save_adapter(wrapped, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    count = max(1, round(0.03 * sum(changeable_tensors(layout, embeddings=True).values())))
    assert saved["base_model.sparse_change_parts.values"].shape == (count,)
    assert saved["base_model.sparse_change_parts.positions"].shape == (count,)
    assert not any("diff_pruning" in name for name in saved)


def test_gates_learn_at_the_rate_of_the_authors() -> None:
    method = make_method("diff-pruning", {}, "bert")
    rate = method.defaults(facts_of("bert"))["train.learning_rate"].value
    model, layout = fresh_model("bert")
    wrapped = method.apply(model, layout)
    factors = {
        name.rpartition(".")[2]: method.learning_rate_factor(name, layout)
        for name, _ in wrapped.named_parameters()
        if ".diff_pruning_" in name
    }
    assert factors == {"difference": 1.0, "gate": pytest.approx(0.1 / rate), "group": pytest.approx(0.1 / rate)}
    assert method.learning_rate_factor("base_model.model.classifier.modules_to_save.default.weight", layout) == 1.0


@pytest.mark.parametrize("options", [{"density": 0.0}, {"fixed_share": 1.0}, {"gate_lr_ratio": 0.0}, {"sparsity_penalty": -1.0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**options)
