from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

import ftkit
from ftkit.errors import InterruptedRunError
from ftkit.methods.adalora import AdaLoRA, Options
from ftkit.tuners.wrap import load_adapter
from tests.methods.cases import LABELS, batch_of, facts_of, fresh_model, logits_of, loss_of
from tests.methods.formulas import assert_follows_formula, trained_parts
from tests.run.test_train import RecipeFile, StopAt


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_equals_the_formula(family: str) -> None:
    def weight(frozen: Tensor, own: dict[str, Tensor]) -> Tensor:
        # alpha / r0 = 8 / 4; PEFT adds 1e-5 to r0.
        return frozen + 8.0 / (4.0 + 1e-5) * own["lora_B"] @ torch.diag(own["lora_E"].flatten()) @ own["lora_A"]

    assert_follows_formula(AdaLoRA(Options(rank=2, initial_rank=4, alpha=8.0)), family, "lora_", weight)


def test_the_penalty_is_the_mean_distance_from_orthogonality() -> None:
    model, layout = fresh_model("bert")
    method = AdaLoRA(Options(orthogonality=0.3, targets=["query"]))
    model = method.apply(model, layout)
    distances = []
    for own in trained_parts(model, layout, "lora_").values():
        rows, columns = own["lora_A"].detach(), own["lora_B"].detach()
        for product in (rows @ rows.T, columns.T @ columns):
            distances.append(((product - torch.eye(12)) ** 2).sum() ** 0.5)
    found = method.extra_loss(model)
    assert found is not None
    torch.testing.assert_close(found.detach(), 0.3 * torch.stack(distances).mean())
    found.backward()
    assert AdaLoRA(Options(orthogonality=0.0)).extra_loss(model) is None


class Importance:
    """Zhang et al. 2023, equations 8 to 11, kept beside a training run."""

    def __init__(self) -> None:
        self.mean: dict[tuple[str, str], Tensor] = {}
        self.uncertainty: dict[tuple[str, str], Tensor] = {}

    def see(self, parts: dict[str, dict[str, Tensor]], beta: float) -> None:
        for path, own in parts.items():
            for kind, weight in own.items():
                now = (weight.detach() * weight.grad).abs()  # type: ignore[operator]
                key, zero = (path, kind), torch.zeros_like(now)
                self.mean[key] = beta * self.mean.get(key, zero) + (1 - beta) * now
                off = (now - self.mean[key]).abs()
                self.uncertainty[key] = beta * self.uncertainty.get(key, zero) + (1 - beta) * off

    def scores(self, parts: dict[str, Any]) -> dict[str, Tensor]:
        """One score for each triplet of each layer."""
        found = {}
        for path in parts:
            value, row, column = (self.mean[path, kind] * self.uncertainty[path, kind] for kind in ("lora_E", "lora_A", "lora_B"))
            found[path] = value.flatten() + row.mean(dim=1) + column.mean(dim=0)
        return found


def budget(step: int, total: int, first: int, last: int, initial: int, final: int) -> int:
    """Equation 12: constant, then down by a cubic law, then constant."""
    if step <= first:
        return initial
    if step >= total - last:
        return final
    return int(final + (initial - final) * (1 - (step - first) / (total - last - first)) ** 3)


@pytest.mark.parametrize("interval", [1, 3])
def test_triplets_are_taken_by_the_papers_schedule_and_score(interval: int) -> None:
    total, first, last, beta = 30, 6, 12, 0.85
    model, layout = fresh_model("bert")
    method = AdaLoRA(
        Options(rank=2, initial_rank=4, initial_ratio=0.2, final_ratio=0.4, interval=interval, targets=["query", "ffn_in"])
    )
    model = method.apply(model, layout)
    method.training_begins(model, total)
    parts, reference = trained_parts(model, layout, "lora_"), Importance()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    layers = len(parts)
    kept: dict[str, Tensor] = {}
    for step in range(1, total + 1):
        loss_of(model, "bert").backward()
        optimizer.step()
        if step < total - last:
            reference.see(parts, beta)
        method.after_step(model, step)
        optimizer.zero_grad()
        allocates = (first < step < total - last and step % interval == 0) or step == total - last
        if allocates:
            scores = reference.scores(parts)
            count = budget(step, total, first, last, 4 * layers, 2 * layers)
            threshold = torch.cat(list(scores.values())).sort(descending=True).values[count - 1]
            kept = {path: own >= threshold for path, own in scores.items()}
            assert sum(int(own.sum()) for own in kept.values()) == count
        if allocates or step > total - last:
            for path, own in parts.items():
                assert torch.equal(own["lora_E"].detach().flatten() != 0, kept[path]), (step, path)
        elif step <= first:
            assert all((own["lora_E"] != 0).all() for own in parts.values())
    assert sum(int((own["lora_E"] != 0).sum()) for own in parts.values()) == 2 * layers
    assert len({int(own.sum()) for own in kept.values()}) > 1, "ranks differ between layers"


@pytest.mark.parametrize("total", [1, 2, 3, 10])
def test_short_runs_reach_the_final_budget_too(total: int) -> None:
    model, layout = fresh_model("bert")
    method = AdaLoRA(Options(rank=2, initial_rank=3, targets=["value"]))
    model = method.apply(model, layout)
    method.training_begins(model, total)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(1, total + 1):
        loss_of(model, "bert").backward()
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
    parts = trained_parts(model, layout, "lora_")
    assert sum(int((own["lora_E"] != 0).sum()) for own in parts.values()) == 2 * len(parts)


def test_an_adapter_saved_between_two_allocations_loses_nothing(tmp_path: Path) -> None:
    model, layout = fresh_model("bert")
    method = AdaLoRA(Options(rank=2, initial_rank=4, initial_ratio=0.0, final_ratio=0.0, interval=4))
    model = method.apply(model, layout)
    method.training_begins(model, 40)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(1, 19):
        loss_of(model, "bert").backward()
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
    allocated = model.peft_config["default"].rank_pattern  # type: ignore[index, union-attr]
    assert any(not all(kept) for kept in allocated.values())
    logits = logits_of(model.eval(), "bert")
    method.save_adapter(model, tmp_path)
    assert model.peft_config["default"].rank_pattern == allocated  # type: ignore[index, union-attr]
    torch.testing.assert_close(logits_of(load_adapter(*fresh_model("bert", 5), tmp_path), "bert"), logits, atol=1e-6, rtol=0)


def test_saved_files_hold_only_what_is_left(tmp_path: Path) -> None:
    model, layout = fresh_model("bert")
    method = AdaLoRA(Options(rank=2, initial_rank=4, targets=["query", "key"]))
    model = method.apply(model, layout)
    with torch.no_grad():
        for number, own in enumerate(trained_parts(model, layout, "lora_").values()):
            own["lora_E"].copy_(torch.tensor([[1.0], [0.0], [2.0], [0.0]]) if number else torch.zeros(4, 1))
    logits = logits_of(model, "bert")
    method.save_adapter(model, tmp_path)
    shapes = sorted(
        tuple(tensor.shape) for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items() if "lora_E" in name
    )
    # PEFT takes an empty matrix for a damaged one, so that one triplet of value zero stays.
    assert shapes == [(1, 1), (2, 1), (2, 1), (2, 1)]
    torch.testing.assert_close(logits_of(load_adapter(*fresh_model("bert"), tmp_path), "bert"), logits, atol=1e-6, rtol=0)


def test_steps_that_fp16_skips_and_frozen_blocks_do_not_spoil_the_scores() -> None:
    model, layout = fresh_model("bert")
    method = AdaLoRA(Options(rank=2, initial_rank=3, initial_ratio=0.0, targets=["value"]))
    model = method.apply(model, layout)
    method.training_begins(model, 10)
    for number, own in enumerate(trained_parts(model, layout, "lora_").values()):
        for weight in own.values():
            weight.grad = None if number else torch.full_like(weight, float("inf"))
    method.after_step(model, 1)
    nn.functional.cross_entropy(model(**batch_of("bert")).logits, LABELS).backward()
    method.after_step(model, 2)
    assert all(bool(tensor.float().isfinite().all()) for tensor in method.state(model).values())


TRAIN = "{epochs: 3.0, batch_size: 8, learning_rate: 1e-2, evaluate_every: {steps: 6}, checkpoint_every: {steps: 2}}"


@pytest.mark.parametrize("cut", [5, 9])
def test_resume_inside_an_epoch_is_bit_exact(recipe_file: RecipeFile, tmp_path: Path, cut: int) -> None:
    method = "{name: adalora, rank: 2, initial_rank: 4, initial_ratio: 0.2, final_ratio: 0.3}"
    recipe = ftkit.load_recipe(recipe_file(method=method, train=TRAIN, export="[adapter, merged]"))
    ftkit.train(recipe, output=tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        ftkit.train(recipe, output=tmp_path / "cut", observer=StopAt(cut, lambda: signal.raise_signal(signal.SIGTERM)))
    ftkit.train(recipe, output=tmp_path / "cut", resume=True)
    last = sorted((tmp_path / "whole" / "checkpoints").glob("step-*"))[-1].name
    for file in ("trainable", "method", "optimizer"):
        whole, resumed = (load_file(tmp_path / run / "checkpoints" / last / f"{file}.safetensors") for run in ("whole", "cut"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), file
        assert file != "method" or any(name.startswith("kept|") for name in whole)
    trained = load_file(tmp_path / "whole" / "checkpoints" / last / "trainable.safetensors")
    values = [tensor for name, tensor in trained.items() if ".lora_E." in name]
    assert sum(int((tensor != 0).sum()) for tensor in values) == 2 * len(values)


def test_defaults() -> None:
    assert AdaLoRA(Options(rank=4)).defaults(facts_of("bert"))["method.initial_rank"].value == 6
    assert AdaLoRA(Options(rank=1)).defaults(facts_of("bert"))["method.initial_rank"].value == 2
    assert AdaLoRA(Options()).layer_count(768, 3072) == 12 * (768 + 3072 + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4, "initial_rank": 4}, "initial_rank must be above rank, which is 4, not 4"),
        ({"initial_ratio": 0.6, "final_ratio": 0.4}, "their sum must be below 1"),
        ({"beta1": 1.0}, "less than 1"),
        ({"interval": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options(**options)
