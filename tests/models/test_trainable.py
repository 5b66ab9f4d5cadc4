from __future__ import annotations

import pytest
import torch
from torch import nn

from ftkit.errors import ModelError
from ftkit.models.layout import ModelLayout
from ftkit.models.trainable import load_trainable, shortened, to_uniform_dtype, train_only, trainable_state
from tests.methods.cases import batch_of, fresh_model, logits_of
from tests.tiny import tiny_model


def test_nothing_to_train_is_refused() -> None:
    model, layout = fresh_model("bert")
    with pytest.raises(ModelError, match="nothing to train in this BertForSequenceClassification"):
        train_only(model, [], layout)


def test_parameters_without_values_must_train() -> None:
    model, layout = fresh_model("bert")
    with pytest.raises(ModelError, match=r"no values for bert.pooler.dense.bias, bert.pooler.dense.weight"):
        train_only(model, ["classifier.weight", "classifier.bias"], layout)


def test_state_round_trip_is_exact_and_loading_is_all_or_nothing() -> None:
    model, layout = fresh_model("bert")
    train_only(model, layout.head_parameters(), layout)
    saved = {name: tensor.clone() for name, tensor in trainable_state(model).items()}
    assert saved.keys() == set(layout.head_parameters())
    with torch.no_grad():
        for tensor in trainable_state(model).values():
            tensor.add_(1)
    changed = {name: tensor.clone() for name, tensor in trainable_state(model).items()}
    wrong = {**saved, "classifier.bias": torch.zeros(7)}
    del wrong["classifier.weight"]
    with pytest.raises(ModelError) as caught:
        load_trainable(model, wrong)
    assert [problem.message for problem in caught.value.problems] == [
        "classifier.bias has the shape [7], the model needs [3]",
        "classifier.weight is missing",
    ]
    assert all(torch.equal(tensor, changed[name]) for name, tensor in trainable_state(model).items())
    load_trainable(model, saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in trainable_state(model).items())


def test_lenient_loading_takes_what_fits() -> None:
    model = nn.Linear(2, 2)
    load_trainable(model, {"bias": torch.ones(2), "other": torch.ones(1)}, strict=False)
    assert torch.equal(model.bias, torch.ones(2))


def test_many_problems_are_cut_short() -> None:
    with pytest.raises(ModelError) as caught:
        load_trainable(nn.Linear(1, 1), {f"x{number}": torch.ones(1) for number in range(30)})
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1].message == "and 12 more"


def test_batch_norm_statistics_belong_to_the_state() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
    model(torch.randn(4, 2))
    state = trainable_state(model)
    assert state.keys() == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    other = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
    load_trainable(other, state)
    assert torch.equal(other[1].running_mean, model[1].running_mean)


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "gpt2"])
def test_trained_parts_compute_in_float32_inside_a_bfloat16_model(family: str) -> None:
    model, layout = fresh_model(family, dtype=torch.bfloat16)
    exact, _ = fresh_model(family)
    block = f"{layout.blocks[0].name}."
    names = [name for name, _ in model.named_parameters() if name.startswith(block)] + layout.head_parameters()
    train_only(model, names, layout)
    assert {p.dtype for name, p in model.named_parameters() if name in names} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if name not in names} == {torch.bfloat16}
    logits = logits_of(model, family)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, logits_of(exact, family), atol=0.15, rtol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(**batch_of(family)).logits.float(), logits, atol=0.15, rtol=0.1)
    assert logits_of(to_uniform_dtype(model, torch.float32), family).dtype == torch.float32


def test_tied_weights_stay_tied() -> None:
    model = tiny_model("gpt2", "AutoModelForCausalLM").to(torch.bfloat16)
    layout = ModelLayout(model)
    train_only(model, layout.embedding_parameters(), layout)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.dtype == torch.float32
    model(input_ids=torch.tensor([[7, 8, 9]]), labels=torch.tensor([[7, 8, 9]])).loss.backward()
    assert model.transformer.wte.weight.grad is not None


def test_names_are_shortened() -> None:
    assert shortened(["b", "a"]) == "a, b"
    assert shortened([str(number) for number in range(8)]) == "0, 1, 2, 3, 4 and 3 more"


def test_an_output_layer_that_trains_does_not_change_the_type_of_the_embeddings() -> None:
    model = tiny_model("bert", "AutoModelForMaskedLM").to(torch.bfloat16)
    inputs = {"input_ids": torch.arange(7, 15)[None]}
    with torch.no_grad():
        before = model(**inputs).logits.float()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    train_only(model, ["cls.predictions.bias"], ModelLayout(model))
    torch.testing.assert_close(model(**inputs).logits.float(), before, rtol=0.05, atol=0.02)
