"""Multitask prompt tuning on rows of several sources: formula, runs, predictions, adapters and the transfer that follows."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import ftkit
from ftkit.errors import DataError, FtkitError, ModelError, RecipeError
from ftkit.methods.multitask_prompt_tuning import MultitaskPromptTuning, Options
from ftkit.methods.parts.prompts import prompt_of
from ftkit.run.observer import Observer
from ftkit.run.planning import inspect_rows, plan_report
from ftkit.tuners.prompt_transfer import decompose
from ftkit.tuners.wrap import head_parameter_count
from tests.methods.cases import SOURCES, batch_of, fresh_model
from tests.methods.sourced_calls import check_refusals
from tests.small_runs import KINDS, save_varied

RecipeFile = Callable[..., Path]
LENGTH, WIDTH = 4, 16
METHOD = "{name: multitask-prompt-tuning, length: 4, source_column: origin}"
IDS = torch.tensor([2, 0, 1, 0])


def multitask() -> MultitaskPromptTuning:
    method = MultitaskPromptTuning(Options(length=LENGTH, source_column="origin"))
    method.take_sources(SOURCES)
    return method


def varied(family: str = "bert") -> Any:
    model = multitask().apply(*fresh_model(family)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in prompt_of(model).parameters():
            parameter.uniform_(0.5, 1.5)
    return model


def write_origins(folder: Path) -> None:
    """Gives the rows of the shared recipe a source each; what a label means depends on it."""
    for name in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({**row, "origin": ["mail", "chat"][number // 3 % 2]}) + "\n" for number, row in enumerate(rows))
        (folder / f"{name}.jsonl").write_text(text)


def test_each_row_is_read_behind_the_prompt_of_its_source() -> None:
    model, prompt = varied(), None
    prompt = prompt_of(model)
    base, layout = fresh_model("bert")
    inputs = batch_of("bert")
    found = model(**inputs, source_ids=IDS).logits
    expected = []
    head = model.base_model.model.classifier.modules_to_save["default"]
    for row, source in enumerate(IDS.tolist()):
        vectors = prompt.shared * torch.outer(prompt.rows[source], prompt.columns[source])
        embedded = torch.cat([vectors[None], base.bert.embeddings.word_embeddings(inputs["input_ids"][row : row + 1])], dim=1)
        mask = torch.cat([torch.ones(1, LENGTH, dtype=torch.long), inputs["attention_mask"][row : row + 1]], dim=1)
        states = base.bert(inputs_embeds=embedded, attention_mask=mask).last_hidden_state[:, LENGTH:]
        expected.append(head(base.bert.pooler(states)))
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in prompt.named_parameters()}
    prompt.zero_grad()
    torch.cat(expected).square().sum().backward()
    for name, parameter in prompt.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)
    rest = head_parameter_count(layout)
    assert multitask().parameter_count(layout) == LENGTH * WIDTH + 3 * (LENGTH + WIDTH) + rest


def test_a_call_must_say_which_sources_its_rows_are_from() -> None:
    model, inputs = varied(), batch_of("bert")
    check_refusals(model, inputs, IDS)
    with pytest.raises(ModelError, match="the names of the sources are not known"):
        MultitaskPromptTuning(Options(source_column="origin")).apply(*fresh_model("bert"))


@pytest.mark.parametrize("beams", [1, 3])
def test_plain_generation_takes_the_sources_of_its_rows(beams: int, tmp_path: Path) -> None:
    from ftkit.models.layout import ModelLayout
    from tests.tiny import tiny_model

    base = tiny_model("llama", "AutoModelForCausalLM").eval()
    # As initialized, tiny models write one token whatever the prompt says.
    torch.manual_seed(5)
    for parameter in base.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    model: Any = multitask().apply(base, ModelLayout(base)).eval()
    torch.manual_seed(3)
    for parameter in prompt_of(model).parameters():
        parameter.data.normal_(0, 2)
    tokens = torch.tensor([[8, 9, 10]] * 3)
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(tokens),
        "max_new_tokens": 6,
        "num_beams": beams,
        "do_sample": False,
    }
    together = model.generate(input_ids=tokens, source_ids=torch.tensor([2, 0, 1]), **options)
    options["attention_mask"] = torch.ones(1, 3, dtype=torch.long)
    for row, source in enumerate((2, 0, 1)):
        alone = model.generate(input_ids=tokens[:1], source_ids=torch.tensor([source]), **options)
        width = min(alone.shape[1], together.shape[1])
        assert alone[0, :width].tolist() == together[row, :width].tolist()
    assert len({tuple(row) for row in together.tolist()}) > 1


# --- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sourced(recipe_file: RecipeFile, tmp_path: Path) -> Path:
    path = recipe_file(method=METHOD, export="[adapter]")
    write_origins(tmp_path)
    return path


def test_a_run_on_two_sources(sourced: Path, tmp_path: Path) -> None:
    recipe = ftkit.load_recipe(sourced, ["train.max_steps=5"])
    results = ftkit.train(recipe, output=tmp_path / "run").results
    facts = results["exports"]["adapter"]
    assert facts["max_abs_difference"] <= facts["tolerance"]
    table = results["splits"]["test"]["details"]["sources"]
    assert [(entry["source"], entry["rows"]) for entry in table] == [("chat", 6), ("mail", 7)]
    right = sum(entry["rows"] * entry["accuracy"] for entry in table)
    assert right == pytest.approx(13 * results["splits"]["test"]["metrics"]["accuracy"])
    predictor = ftkit.load(tmp_path / "run")
    assert predictor.task.sources == ("chat", "mail")
    assert predictor.evaluate("test")["metrics"] == results["splits"]["test"]["metrics"]
    prompt = prompt_of(predictor.prepared.model)
    assert prompt.rows.shape == (2, LENGTH)
    assert not torch.equal(prompt.rows[0], prompt.rows[1])
    config = json.loads((tmp_path / "run/export/adapter/adapter_config.json").read_text())
    assert config["sources"] == ["chat", "mail"]

    row = {"text": "w1 w2 w30"}
    both = [{**row, "origin": name} for name in ("mail", "chat")]
    one, other = predictor.predict(both)
    assert one["probabilities"] != other["probabilities"]
    assert next(iter(predictor.predict(both[1:])))["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    with pytest.raises(DataError, match=r"input, row 2.*origin.*no training row is from the source 'fax'.*'chat', 'mail'"):
        list(predictor.predict([both[0], {**row, "origin": "fax"}]))
    with pytest.raises(DataError, match=r"input, row 2.*the source of the row is not known"):
        list(predictor.predict([both[0], row]))
    with pytest.raises(DataError, match="no column 'origin'"):
        list(predictor.predict([row]))
    with pytest.raises(RecipeError, match="a text alone is no row here: text-classification of this run needs text, origin"):
        list(predictor.predict(["w1 w2"]))
    skipped = list(predictor.predict([both[0], {**row, "origin": "fax"}], skip_errors=True))
    assert skipped[0]["label"]
    assert "no training row is from the source 'fax'" in skipped[1]["error"]
    (tmp_path / "unknown.jsonl").write_text(json.dumps({**row, "label": "calm", "origin": "fax"}) + "\n")
    with pytest.raises(DataError, match=r"unknown.jsonl, line 1.*'fax'"):
        predictor.evaluate(data=str(tmp_path / "unknown.jsonl"))

    # What comes after: the transfer to one task, and another run on several sources.
    adapter = tmp_path / "run/export/adapter"
    saved = {name.rpartition(".")[2]: value for name, value in load_file(adapter / "adapter_model.safetensors").items()}
    method = MultitaskPromptTuning(Options(length=LENGTH, sources=[str(adapter)]))
    model = method.apply(*fresh_model("bert"))
    method.training_begins(model, 1)
    torch.testing.assert_close(prompt_of(model)(), saved["shared"] * torch.outer(saved["rows"].mean(0), saved["columns"].mean(0)))
    method = MultitaskPromptTuning(Options(length=LENGTH, sources=[str(adapter)] * 2))
    model = method.apply(*fresh_model("bert"))
    method.training_begins(model, 1)
    prompts = torch.stack([saved["shared"] * torch.outer(saved["rows"][t], saved["columns"][t]) for t in (0, 1, 0, 1)])
    torch.testing.assert_close(prompt_of(model).shared, decompose(prompts)[0])
    method = MultitaskPromptTuning(Options(length=LENGTH, sources=[str(adapter)], source_column="origin"))
    method.take_sources(SOURCES)
    model = method.apply(*fresh_model("bert"))
    method.training_begins(model, 1)
    torch.testing.assert_close(prompt_of(model).rows, saved["rows"].mean(0).expand(3, -1))


def test_plan_and_inspect_show_sources_and_the_column_counts_for_the_cache(sourced: Path, tmp_path: Path) -> None:
    recipe = ftkit.load_recipe(sourced, ["~export"])
    measured = plan_report(recipe)
    assert measured["splits"]["train"]["description"]["sources"] == {"chat": 24, "mail": 24}
    assert inspect_rows(recipe, split="test", rows=1)[0]["tokens"][0] == ["mail", "source"]
    notes: list[str] = []

    class Notes(Observer):
        def note(self, text: str) -> None:
            notes.append(text)

    ftkit.train(recipe, output=tmp_path / "one", observer=Notes())
    assert any("reused from the cache" in note for note in notes)
    text = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(text.replace('"mail"', '"post"', 1))
    notes.clear()
    ftkit.train(recipe, output=tmp_path / "two", observer=Notes())
    assert not any(note.startswith("train:") and "reused" in note for note in notes)


class Stopping(Observer):
    """Ends the process's run after a step, as Ctrl-C would."""

    def step(self, event: Any, **more: Any) -> None:
        if event.step == 4:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_is_resumed_within_an_epoch_bit_for_bit(sourced: Path, tmp_path: Path) -> None:
    recipe = ftkit.load_recipe(sourced, ["~export"])
    whole = ftkit.train(recipe, output=tmp_path / "whole").results
    with pytest.raises(FtkitError, match="SIGINT received"):
        ftkit.train(recipe, output=tmp_path / "cut", observer=Stopping())
    cut = ftkit.train(recipe, output=tmp_path / "cut", resume=True).results
    assert cut["splits"] == whole["splits"]
    one, two = (load_file(tmp_path / name / cut["weights"] / "trainable.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_a_user_does_wrong(recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file(method=METHOD)
    with pytest.raises(DataError, match="no column 'origin'"):
        ftkit.train(ftkit.load_recipe(path), output=tmp_path / "run")
    clash = ftkit.load_recipe(path, ["method.source_column=text"])
    with pytest.raises(RecipeError, match=r"its column 'text' cannot also be `source_column`.*source_of_text"):
        ftkit.train(clash, output=tmp_path / "run")
    rows = [{"text": f"w1 w{number % 40}", "label": ["a", "b"][number % 2], "origin": str(number)} for number in range(1001)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    many = ftkit.load_recipe(path, ["data.train=many.jsonl", "~data.validation", "~data.test"])
    with pytest.raises(DataError, match=r"origin has 1,001 values, and at most 1,000"):
        ftkit.train(many, output=tmp_path / "run")
    mapped = recipe_file(method=METHOD, data="{train: many.jsonl, columns: {origin: label}, split: {test: 0.5}}")
    with pytest.raises(DataError, match="label"):
        ftkit.train(ftkit.load_recipe(mapped), output=tmp_path / "run")


# --- tasks that generate -----------------------------------------------------------------------------------------------


def written_run(folder: Path, kind: str, task: str | None = None) -> ftkit.Predictor:
    family, auto_class, usual, rows = KINDS[kind]
    save_varied(folder / "model", family, auto_class)
    sourced = [{**row, "origin": ["mail", "chat", "fax"][number % 3]} for number, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sourced))
    method = {"name": "multitask-prompt-tuning", "length": 3, "source_column": "origin"}
    recipe = {
        "model": str(folder / "model"),
        "task": task or usual,
        "data": "{train: rows.jsonl, split: {validation: 0.25}}",
        "method": json.dumps(method),
        "train": json.dumps({"max_steps": 4, "batch_size": 4, "learning_rate": 0.5}),
        "export": "[adapter]",
    }
    (folder / "recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in recipe.items()))
    ftkit.train(ftkit.load_recipe(folder / "recipe.yaml"), output=folder / "run")
    return ftkit.load(folder / "run")


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("rewrites", "{name: seq2seq, metrics: [loss, exact_match], generation: {max_new_tokens: 6, num_beams: 2}}"),
        ("converses", None),
        ("continues", "{name: language-modeling, max_length: 8, packing: true, generation: {max_new_tokens: 5}}"),
    ],
)
def test_texts_are_written_behind_the_prompt_of_the_source(kind: str, task: str | None, tmp_path: Path) -> None:
    predictor = written_run(tmp_path, kind, task)
    prompt = prompt_of(predictor.prepared.model)
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.normal_(0, 2, generator=torch.Generator().manual_seed(1))
    rows = [{**row, "origin": name} for row in KINDS[kind][3][:3] for name in ("mail", "chat", "fax")]
    rows = [{name: value for name, value in row.items() if name not in ("target", "output")} for row in rows]
    together = list(predictor.predict(rows, batch_size=9))
    alone = [next(iter(predictor.predict([row], batch_size=1))) for row in rows]
    shown = {"rewrites": "text", "converses": "text", "continues": "continuation"}[kind]
    shown = shown if shown in together[0] else next(name for name, value in together[0].items() if isinstance(value, str))
    assert [found[shown] for found in together] == [found[shown] for found in alone]
    assert any(together[first][shown] != together[first + 1][shown] for first in (0, 3, 6))
    assert "source_ids=torch.tensor([0])" in "\n".join(predictor.task.code_example())
    session = predictor.session()
    if session.commands:
        with pytest.raises(DataError, match=r"the source is not known.*/source NAME: 'chat', 'fax', 'mail'"):
            list(session.answer("w1 w2"))
        with pytest.raises(DataError, match="there is no source 'post'"):
            session.command("source", "post")
        assert session.command("source", "fax") == "what follows is of the source fax"
        "".join(session.answer("w1 w2"))
    else:
        assert session.asked[-1] == "origin"
        typed = {name: rows[0][name] for name in session.asked}
        assert "".join(session.answer(typed)).strip() == alone[0][shown].strip()


def test_packed_blocks_are_of_one_source(tmp_path: Path) -> None:
    predictor = written_run(tmp_path, "continues", "{name: language-modeling, max_length: 8, packing: true}")
    task, processor = predictor.task, predictor.prepared.processor
    rows = [{"text": "w1" if number % 2 else "w2", "origin": ["mail", "chat"][number % 2]} for number in range(40)]
    features = task.encode(rows, processor, training=True)
    assert len(features) < 20
    tokens: dict[int, set[str]] = {0: set(), 2: set()}
    for feature in features:
        tokens[feature["source_id"]] |= set(processor.convert_ids_to_tokens([int(token) for token in feature["input_ids"]]))
    assert {"w1", "w2"} & tokens[0] == {"w1"}
    assert {"w1", "w2"} & tokens[2] == {"w2"}
    assert sum(len(feature["starts"]) for feature in features) >= 40


def test_the_adapter_loads_by_plain_peft_and_names_its_sources(tmp_path: Path) -> None:
    model = varied()
    multitask().save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(fresh_model("bert")[0], str(tmp_path)).eval()
    torch.testing.assert_close(loaded(**batch_of("bert"), source_ids=IDS).logits, model(**batch_of("bert"), source_ids=IDS).logits)
    assert loaded.peft_config["default"].sources == list(SOURCES)
