"""Language modeling: what is scored, that packing changes nothing, and that numbers are those of plain cross-entropy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional

from ftkit.data.building import table_from_rows
from ftkit.data.features import FeatureStore, encode_table
from ftkit.models.facts import ModelFacts
from ftkit.tasks.language_modeling import LanguageModeling, Options
from ftkit.tasks.parts.language_loss import IGNORED
from ftkit.training.evaluation import evaluate, predict_features
from tests.tiny import tiny_model, tiny_tokenizer

TEXTS = [
    " ".join(f"w{(start + step) % 41}" for step in range(length)) for start, length in ((0, 30), (3, 7), (9, 1), (5, 19), (20, 12))
]
ROWS = [{"text": text} for text in TEXTS]
FACTS = ModelFacts(kind="decoder", model_type="llama", hidden_size=16, block_count=2, max_positions=64, vocab_size=64, path=None)


def make(**options: Any) -> LanguageModeling:
    values = {"max_length": 8, "stride": 8, "metrics": ["perplexity", "bits_per_byte", "token_accuracy"], **options}
    values["generation"] = {"max_new_tokens": 4, **options.get("generation", {})}
    return LanguageModeling(Options(**values))


def encoded(task: LanguageModeling, training: bool = False) -> FeatureStore:
    table = table_from_rows(ROWS, "rows")
    return encode_table(table, task, tiny_tokenizer("llama"), processor_key="k", cache=False, training=training)


def bound(task: LanguageModeling, family: str = "llama") -> Any:
    model = tiny_model(family, "AutoModelForCausalLM")
    task.bind(model, tiny_tokenizer(family))
    return model


def summed_loss(task: LanguageModeling, model: Any, store: FeatureStore, size: int) -> tuple[float, int]:
    total, count = 0.0, 0
    for start in range(0, len(store), size):
        batch = task.collate(store.take(np.arange(start, min(start + size, len(store)))), tiny_tokenizer("llama"), training=True)
        total += float(task.loss(task.forward(model, batch), batch))
        count += task.target_count(batch)
    return total, count


def evaluation(task: LanguageModeling, model: Any, size: int = 3) -> Any:
    table = table_from_rows(ROWS, "rows")
    return evaluate(
        model,
        task,
        encoded(task),
        table,
        tiny_tokenizer("llama"),
        batch_size=size,
        max_tokens=None,
        accelerator=Accelerator(cpu=True),
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_packed_documents_have_the_loss_of_documents_alone(family: str) -> None:
    whole = make(max_length=64, stride=64)
    model = bound(whole, family)
    packed = make(max_length=64, stride=64, packing=True)
    packed.bind(model, tiny_tokenizer(family))
    alone = make(max_length=64, stride=64, packing=False)
    alone.bind(model, tiny_tokenizer(family))
    with torch.no_grad():
        blocks = encoded(packed, training=True)
        assert len(blocks) < len(ROWS)
        # The one document that goes on in the second block gives one target less there.
        first, count = summed_loss(packed, model, blocks, 2)
        second, most = summed_loss(alone, model, encoded(alone, training=True), 2)
    assert most == sum(len(text.split()) for text in TEXTS)
    assert count == most - (len(blocks) - 1)
    assert first < second


def test_a_packed_block_that_holds_all_documents_equals_them_exactly() -> None:
    rows = ROWS[1:3] + ROWS[4:]
    task, alone = make(max_length=64, stride=64), make(max_length=64, stride=64, packing=False)
    model = bound(task)
    alone.bind(model, tiny_tokenizer("llama"))
    tokenizer = tiny_tokenizer("llama")
    block = task.encode(rows, tokenizer, training=True)
    assert len(block) == 1
    assert block[0]["starts"] == [0, 8, 10]
    with torch.no_grad():
        together = task.collate([{**block[0], "example": 0}], tokenizer, training=True)
        apart = alone.collate([{**item, "example": item["row"]} for item in alone.encode(rows, tokenizer)], tokenizer)
        assert task.target_count(together) == alone.target_count(apart) == 20
        expected = float(alone.loss(alone.forward(model, apart), apart))
        assert float(task.loss(task.forward(model, together), together)) == pytest.approx(expected, rel=1e-5)


def test_loss_is_plain_cross_entropy_of_the_next_token() -> None:
    task = make(max_length=64, stride=64, packing=False)
    model, tokenizer = bound(task), tiny_tokenizer("llama")
    batch = task.collate([{**item, "example": item["row"]} for item in task.encode(ROWS[:2], tokenizer)], tokenizer)
    with torch.no_grad():
        expected = 0.0
        for row in ROWS[:2]:
            ids = torch.tensor([*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id])
            expected += float(functional.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="sum"))
        assert float(task.loss(task.forward(model, batch), batch)) == pytest.approx(expected, rel=1e-6)


def test_the_end_token_is_a_target_although_padding_looks_the_same() -> None:
    tokenizer = tiny_tokenizer("llama")
    tokenizer.pad_token = tokenizer.eos_token
    task = make(max_length=64, stride=64, packing=False)
    batch = task.collate([{**item, "example": item["row"]} for item in task.encode(ROWS[:2], tokenizer)], tokenizer)
    for row, length in enumerate((30, 7)):
        assert batch["targets"][row, length - 1] == tokenizer.eos_token_id
        assert (batch["targets"][row, length:] == IGNORED).all()
        assert batch["attention_mask"][row].sum() == length + 1
    without = make(max_length=64, stride=64, end_token=False).encode(ROWS[:1], tokenizer)
    assert without[0]["input_ids"][-1] != tokenizer.eos_token_id


@pytest.mark.parametrize(("stride", "missing"), [(8, True), (5, False), (1, False)])
def test_each_token_is_scored_once(stride: int, missing: bool) -> None:
    task = make(stride=stride)
    model = bound(task)
    found = evaluation(task, model)
    tokens = [sum(prediction["tokens"]) for prediction in found.predictions]
    counts = [len(text.split()) for text in TEXTS]
    expected = [count - (math.ceil((count + 1) / 8) - 1) for count in counts] if missing else counts
    assert tokens == expected
    size = [sum(prediction["bytes"]) for prediction in found.predictions]
    if not missing:
        assert size == [len(text) - len(text.split()[0]) for text in TEXTS]


@pytest.mark.parametrize("stride", [3, 8])
def test_metrics_do_not_depend_on_the_batch_size(stride: int) -> None:
    task = make(stride=stride)
    model = bound(task)
    one, three, seven = (evaluation(task, model, size).metrics for size in (1, 3, 7))
    assert one == pytest.approx(three, rel=1e-6)
    assert one == pytest.approx(seven, rel=1e-6)
    assert one["perplexity"] == pytest.approx(math.exp(one["loss"]), rel=1e-6)


def test_sliding_windows_give_the_perplexity_of_a_loop_over_them() -> None:
    task = make(stride=3)
    model, tokenizer = bound(task), tiny_tokenizer("llama")
    total, count = 0.0, 0
    with torch.no_grad():
        for row in ROWS:
            ids = torch.tensor([*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id])
            done = 0
            for start in range(0, len(ids), 3):
                end = min(start + 8, len(ids))
                targets = ids[start:end].clone()
                targets[: max(1, done - start)] = IGNORED
                logits = model(input_ids=ids[None, start:end]).logits[0, :-1]
                total += float(functional.cross_entropy(logits, targets[1:], ignore_index=IGNORED, reduction="sum"))
                count += int((targets[1:] != IGNORED).sum())
                done = end
                if end == len(ids):
                    break
    assert evaluation(task, model).metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-6)


def test_prediction_continues_the_text() -> None:
    task = make(max_length=16, stride=16)
    model, tokenizer = bound(task), tiny_tokenizer("llama")
    found, _, _ = predict_features(
        model, task, encoded(task), tokenizer, batch_size=2, max_tokens=None, accelerator=Accelerator(cpu=True), presenting=True
    )
    for prediction, row in zip(found, ROWS, strict=True):
        ids = tokenizer(row["text"], return_tensors="pt")["input_ids"]
        window = ids[:, 16 * (ids.shape[1] // 16) :] if ids.shape[1] > 15 else ids
        if window.shape[1] == 0:
            continue
        new = model.generate(window, attention_mask=torch.ones_like(window), max_new_tokens=4, do_sample=False)[
            0, window.shape[1] :
        ]
        expected = tokenizer.decode(new.tolist(), skip_special_tokens=True)
        shown = task.present(prediction, row)
        assert shown["continuation"] == expected
        assert shown["tokens"] == sum(prediction["tokens"])


def test_a_text_as_long_as_the_model_takes_can_still_be_continued() -> None:
    task = make(max_length=64, stride=64)
    model, tokenizer = bound(task, "gpt2"), tiny_tokenizer("gpt2")
    store = encode_table(
        table_from_rows([{"text": " ".join(["w1"] * 63)}], "rows"), task, tokenizer, processor_key="k", cache=False
    )
    found = task.generate(model, store.take([0]), tokenizer)
    assert len(found[0]["continuation"].split()) <= 4


def test_inspection_shows_documents_and_context() -> None:
    tokenizer = tiny_tokenizer("llama")
    packed = make(max_length=64, stride=64).encode(ROWS[1:3], tokenizer, training=True)[0]
    notes = [note for _, note in make().inspect(packed, tokenizer)]
    assert [index for index, note in enumerate(notes) if note == "document begins"] == [0, 8]
    second = make(stride=5).encode(ROWS[:1], tokenizer)[1]
    assert [note for _, note in make().inspect(second, tokenizer)][:4] == ["document begins", "context", "context", ""]


def test_defaults_and_refusals() -> None:
    task = LanguageModeling(Options())
    defaults = task.defaults(FACTS)
    assert (defaults["task.max_length"].value, defaults["task.stride"].value) == (64, 64)
    assert LanguageModeling(Options(max_length=32)).defaults(FACTS)["task.stride"].value == 32
    assert "takes at most 64" in LanguageModeling(Options(max_length=65)).refusal(FACTS)
    assert "more than max_length, 64" in LanguageModeling(Options(stride=65)).refusal(FACTS)
    assert "would not be scored" in LanguageModeling(Options(max_length=16, stride=17)).check_options()
    assert "no metric 'f1'" in LanguageModeling(Options(metrics=["f1"])).check_options()


def test_description_counts_documents() -> None:
    assert make().describe(ROWS)["documents"] == 5
    assert make().describe(ROWS)["characters_in_all"] == sum(map(len, TEXTS))
