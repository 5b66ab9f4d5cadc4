from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from ftkit.errors import ModelError
from ftkit.methods.fish_mask import FishMask, Options, kept_count
from ftkit.models.tensors import changeable_tensors
from ftkit.tuners.fisher import equal_shares
from ftkit.tuners.wrap import load_adapter
from tests.methods.cases import LABELS, batch_of, fresh_model, logits_of, loss_of


def halves_of(family: str) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Two batches of two examples."""
    batch = batch_of(family)
    return [({name: value[rows] for name, value in batch.items()}, LABELS[rows]) for rows in (slice(0, 2), slice(2, 4))]


def fisher_by_hand(family: str) -> dict[str, Tensor]:
    """Squared gradients of plain parameters, summed over the two batches."""
    plain, _ = fresh_model(family)
    total = {name: torch.zeros_like(parameter) for name, parameter in plain.named_parameters()}
    for inputs, labels in halves_of(family):
        plain.zero_grad()
        nn.functional.cross_entropy(plain(**inputs).logits, labels).backward()
        for name, parameter in plain.named_parameters():
            total[name] += 0 if parameter.grad is None else parameter.grad.square()
    return total


def prepared(family: str, **options: Any) -> tuple[Any, dict[str, int]]:
    model, layout = fresh_model(family)
    method = FishMask(Options(**options))
    wrapped: Any = method.apply(model, layout)

    def loss(inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(wrapped(**inputs).logits, labels)

    method.prepare(wrapped, [lambda i=inputs, y=labels: loss(i, y) for inputs, labels in halves_of(family)])
    wrapped.zero_grad()
    return wrapped, changeable_tensors(layout, embeddings=method.options.embeddings)


def part_of(wrapped: Any) -> Any:
    return wrapped.base_model.sparse_change_parts["default"]


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "vit"])
def test_the_numbers_with_the_largest_fisher_information_are_chosen(family: str) -> None:
    wrapped, tensors = prepared(family, density=0.03)
    scores = torch.cat([fisher_by_hand(family)[name].flatten() for name in tensors])
    positions = part_of(wrapped).positions.long()
    assert len(positions) == kept_count(tensors, 0.03) == len(positions.unique())
    left_out = torch.ones(len(scores), dtype=torch.bool)
    left_out[positions] = False
    assert scores[positions].min() >= scores[left_out].max() * (1 - 1e-4)
    assert [name for name, p in wrapped.named_parameters() if p.requires_grad and "modules_to_save" not in name] == [
        "base_model.sparse_change_parts.default.values"
    ]


def test_each_tensor_gets_its_share() -> None:
    wrapped, tensors = prepared("bert", density=0.03, selection="per-tensor")
    fisher, begin = fisher_by_hand("bert"), 0
    positions = part_of(wrapped).positions.long()
    for name, size in tensors.items():
        inside = positions[(positions >= begin) & (positions < begin + size)] - begin
        assert abs(len(inside) - 0.03 * size) <= 1
        if len(inside):
            best = fisher[name].flatten().topk(len(inside)).values
            torch.testing.assert_close(fisher[name].flatten()[inside].sort(descending=True).values, best, atol=1e-7, rtol=1e-3)
        begin += size


def test_shares_add_up() -> None:
    assert equal_shares([10, 10, 10], 4) == [2, 1, 1]
    assert sum(equal_shares([3, 999, 17, 1], 11)) == 11


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "deberta-v2", "bart"])
def test_equals_a_model_with_the_changed_numbers(family: str) -> None:
    wrapped, tensors = prepared(family, density=0.05)
    part = part_of(wrapped)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        part.values.copy_(torch.randn(part.values.shape, generator=generator) * 0.3)
    logits = wrapped(**batch_of(family)).logits
    nn.functional.cross_entropy(logits, LABELS).backward()

    plain, _ = fresh_model(family)
    weights = {name: parameter.detach() for name, parameter in plain.named_parameters()}
    change = torch.zeros(sum(tensors.values()))
    change[part.positions.long()] = part.values.detach()
    change.requires_grad_()
    pieces = change.split(list(tensors.values()))
    summed = {name: weights[name] + piece.view_as(weights[name]) for name, piece in zip(tensors, pieces, strict=True)}
    expected = functional_call(plain, weights | summed, (), batch_of(family)).logits
    nn.functional.cross_entropy(expected, LABELS).backward()
    assert change.grad is not None
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(part.values.grad, change.grad[part.positions.long()], atol=1e-5, rtol=1e-4)


def test_shared_and_bare_tensors_and_the_head_are_left_alone() -> None:
    _, layout = fresh_model("t5")
    tensors = changeable_tensors(layout, embeddings=True)
    assert not any("shared" in name or "embed_tokens" in name or "classif" in name for name in tensors)
    _, layout = fresh_model("bert")
    everything, without = (changeable_tensors(layout, embeddings=chosen) for chosen in (True, False))
    assert {name for name in everything if name not in without} == {
        f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    }


def test_the_file_is_sparse(tmp_path: Path) -> None:
    model, layout = fresh_model("bert")
    method = FishMask(Options(density=0.02, batches=1))
    wrapped = method.apply(model, layout)
    method.prepare(wrapped, [lambda: loss_of(wrapped, "bert")])
    method.save_adapter(wrapped, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    count = kept_count(changeable_tensors(layout, embeddings=True), 0.02)
    sparse = {name: tensor for name, tensor in saved.items() if "sparse_change" in name}
    assert {(name.rpartition(".")[2], tuple(tensor.shape)) for name, tensor in sparse.items()} == {
        ("values", (count,)),
        ("positions", (count,)),
    }
    assert set(saved) - set(sparse) == {name for name in saved if "classifier" in name or "pooler" in name}


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    from ftkit.models.layout import ModelLayout
    from tests.tiny import tiny_model

    model, layout = fresh_model("bert")
    method = FishMask(Options())
    method.save_adapter(method.apply(model, layout), tmp_path)
    other = tiny_model("bert", vocab_size=70)
    with pytest.raises(ModelError, match="was trained on a model whose"):
        load_adapter(other, ModelLayout(other), tmp_path)


def test_a_base_in_bfloat16_is_chosen_from_too() -> None:
    model, layout = fresh_model("bert", dtype=torch.bfloat16)
    method = FishMask(Options(density=0.02, batches=1))
    wrapped: Any = method.apply(model, layout)
    before = part_of(wrapped).positions.clone()
    method.prepare(wrapped, [lambda: loss_of(wrapped, "bert")])
    assert not torch.equal(part_of(wrapped).positions, before)
    assert logits_of(wrapped, "bert").isfinite().all()
    base = wrapped.base_model.model.bert.encoder.layer[0].output.dense.base_layer.weight
    assert base.dtype == torch.bfloat16
    assert not base.requires_grad
    assert base.grad is None


@pytest.mark.parametrize("options", [{"density": 0.0}, {"density": 1.5}, {"batches": 0}, {"selection": "row"}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**options)
