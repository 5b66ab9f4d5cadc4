"""Hypernetwork adapters on rows of several sources: formula, generation, runs, predictions and adapters."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import ftkit
from ftkit.adapters.inspecting import inspect_adapter
from ftkit.adapters.listing import list_adapters
from ftkit.adapters.sources import read_trained
from ftkit.errors import DataError, FtkitError, ModelError
from ftkit.methods.hypernetwork import HypernetworkAdapters, Options
from ftkit.models.layout import ModelLayout
from ftkit.models.row_sources import all_of_source
from ftkit.run.observer import Observer
from ftkit.tuners.wrap import head_parameter_count
from tests.methods.adapter_reference import INSTALL
from tests.methods.cases import LABELS, SOURCES, batch_of, facts_of, fresh_model
from tests.methods.sourced_calls import check_refusals
from tests.methods.test_hypernetwork import SMALL, adapters_by_hand, network_of
from tests.small_runs import KINDS, save_varied
from tests.tiny import tiny_model

RecipeFile = Callable[..., Path]
METHOD = "{name: hypernetwork, reduction_factor: 4.0, source_column: origin}"
IDS = torch.tensor([2, 0, 1, 0])


def sourced(**options: Any) -> HypernetworkAdapters:
    method = HypernetworkAdapters(Options(**{**SMALL, "source_column": "origin", **options}))
    method.take_sources(SOURCES)
    return method


def randomized(wrapped: Any, deviation: float = 0.4) -> Any:
    """With random values for the network."""
    generator = torch.Generator().manual_seed(3)
    for parameter in network_of(wrapped).parameters():
        parameter.data.normal_(0, deviation, generator=generator)
    return wrapped.eval()


def inputs_of(family: str) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in batch_of(family).items()}


@pytest.mark.parametrize("generated_norm", [True, False])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "vit"])
def test_each_row_goes_through_the_adapters_of_its_source(family: str, generated_norm: bool) -> None:
    model, layout = fresh_model(family, dtype=torch.float64)
    wrapped = randomized(sourced(generated_norm=generated_norm).apply(model, layout).double())
    network, inputs = network_of(wrapped), inputs_of(family)
    found = wrapped(**inputs, source_ids=IDS).logits
    functional.cross_entropy(found, LABELS).backward()

    w = {name: parameter.detach().clone().requires_grad_() for name, parameter in network.named_parameters()}
    expected = []
    for row, source in enumerate(IDS.tolist()):
        plain, _ = fresh_model(family, dtype=torch.float64)
        INSTALL[family](plain, adapters_by_hand(w, w["task"][source], len(layout.blocks)), "houlsby")
        expected.append(plain(**{name: value[row : row + 1] for name, value in inputs.items()}).logits)
    functional.cross_entropy(torch.cat(expected), LABELS).backward()
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-8, rtol=0)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, w[name].grad, atol=1e-8, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    # All rows of one source are computed in another way.
    with torch.no_grad():
        alone = wrapped(**{name: value[1:2] for name, value in inputs.items()}, source_ids=IDS[1:2]).logits
    torch.testing.assert_close(alone, found[1:2], atol=1e-8, rtol=0)


def test_models_that_lay_positions_side_by_side_know_the_rows_too() -> None:
    """OPT's feed-forward parts see (rows x positions, width)."""
    from transformers import OPTConfig, OPTForSequenceClassification

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=16,
        max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    model = OPTForSequenceClassification(config).double().eval()
    wrapped = randomized(sourced().apply(model, ModelLayout(model)).double())
    inputs = batch_of("gpt2")
    together = wrapped(**inputs, source_ids=IDS).logits
    for row in range(4):
        alone = wrapped(**{name: value[row : row + 1] for name, value in inputs.items()}, source_ids=IDS[row : row + 1]).logits
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-8, rtol=0)
    other = wrapped(**inputs, source_ids=IDS.flip(0)).logits
    assert not torch.allclose(other, together, atol=1e-3)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_blocks_that_run_again_in_the_backward_pass_know_their_rows(family: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model: Any = randomized(sourced().apply(*fresh_model(family))).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        more = {"use_cache": False} if family == "t5" else {}
        # Two calls, then their backward passes: each has its own sources.
        losses = [
            functional.cross_entropy(model(**batch_of(family), **more, source_ids=ids).logits, LABELS) for ids in (IDS, 2 - IDS)
        ]
        losses[0].backward()
        losses[1].backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert gradients[0]["base_model.hypernetwork_networks.default.task"].abs().sum(1).gt(0).all()


def test_a_call_must_say_which_sources_its_rows_are_from() -> None:
    model, inputs = randomized(sourced().apply(*fresh_model("bert"))), batch_of("bert")
    check_refusals(model, inputs, IDS)
    with all_of_source(model, 1):
        implied = model(**inputs).logits
    torch.testing.assert_close(implied, model(**inputs, source_ids=torch.ones(4, dtype=torch.long)).logits)
    with pytest.raises(ModelError, match="the names of the sources are not known"):
        HypernetworkAdapters(Options(source_column="origin")).apply(*fresh_model("bert"))
    refused = replace(facts_of("bert"), model_type="xlnet")
    assert "leave `source_column` out" in sourced().refusal(refused)
    assert not HypernetworkAdapters(Options()).refusal(refused)


def test_parameters_are_one_task_more_for_each_source() -> None:
    layout = fresh_model("t5")[1]
    one, three = HypernetworkAdapters(Options(**SMALL)).parameter_count(layout), sourced().parameter_count(layout)
    assert three == one + 2 * SMALL["task_size"]
    generators = 7 * (2 * 16 * 4 + 4 + 16 + 2 * 16)
    expected = 5 * (3 + len(layout.blocks) + 2) + 16 * 7 + 8 * 6 + 2 * 6 + generators
    assert three == expected + head_parameter_count(layout)


def test_unloading_leaves_the_plain_model() -> None:
    model, layout = fresh_model("bert")
    expected = model(**batch_of("bert")).logits
    wrapped: Any = sourced().apply(model, layout)
    wrapped.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped.train()(**batch_of("bert"), source_ids=IDS)
    plain = wrapped.eval().base_model.unload()
    torch.testing.assert_close(plain(**batch_of("bert")).logits, expected)
    assert not any(type(value).__name__ == "_Remembering" for module in plain.modules() for value in vars(module).values())
    assert not plain._forward_pre_hooks
    assert not plain._forward_hooks


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("beams", [1, 3])
def test_plain_generation_takes_the_sources_of_its_rows(beams: int, family: str) -> None:
    base = tiny_model(family, "AutoModelForSeq2SeqLM" if family == "t5" else "AutoModelForCausalLM").eval()
    # As initialized, tiny models write one token whatever they read.
    torch.manual_seed(5)
    for parameter in base.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    model = randomized(sourced().apply(base, ModelLayout(base)), 1.0)

    def scores(*sources: int) -> list[Tensor]:
        """Of each step: (rows, beams, vocabulary)."""
        tokens, settings = torch.tensor([[8, 9, 10]] * len(sources)), {"return_dict_in_generate": True, "output_scores": True}
        ids, mask = torch.tensor(sources), torch.ones_like(tokens)
        options: dict[str, Any] = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, **settings}
        steps = model.generate(input_ids=tokens, attention_mask=mask, source_ids=ids, **options).scores
        return [step.view(len(sources), beams, -1) for step in steps]

    together = scores(2, 0, 1)
    for row, source in enumerate((2, 0, 1)):
        for found, step in zip(scores(source), together, strict=False):
            torch.testing.assert_close(found[0], step[row], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0][0], together[0][1], atol=1e-3)
    with pytest.raises(ModelError, match="does not say which"):
        model.generate(input_ids=torch.tensor([[8, 9]]), attention_mask=torch.ones(1, 2, dtype=torch.long), max_new_tokens=2)


def test_the_adapter_loads_by_plain_peft_beside_one_without_sources(tmp_path: Path) -> None:
    model = randomized(sourced().apply(*fresh_model("bert")))
    sourced().save_adapter(model, tmp_path / "several")
    method = HypernetworkAdapters(Options(**SMALL))
    other = randomized(method.apply(*fresh_model("bert")))
    method.save_adapter(other, tmp_path / "one")
    assert json.loads((tmp_path / "several/adapter_config.json").read_text())["sources"] == list(SOURCES)
    assert json.loads((tmp_path / "one/adapter_config.json").read_text())["sources"] is None
    loaded = PeftModel.from_pretrained(fresh_model("bert")[0], str(tmp_path / "one")).eval()
    loaded.load_adapter(str(tmp_path / "several"), "several")
    inputs = batch_of("bert")
    for _ in range(2):
        loaded.set_adapter("several")
        torch.testing.assert_close(loaded(**inputs, source_ids=IDS).logits, model(**inputs, source_ids=IDS).logits)
        loaded.set_adapter("default")
        torch.testing.assert_close(loaded(**inputs).logits, other(**inputs).logits)


# --- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(recipe_file: RecipeFile, tmp_path: Path) -> Any:
    path = recipe_file(method=METHOD, export="[adapter]")
    for name in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({**row, "origin": ["mail", "chat"][number // 3 % 2]}) + "\n" for number, row in enumerate(rows))
        (tmp_path / f"{name}.jsonl").write_text(text)
    return ftkit.load_recipe(path, ["train.max_steps=5"])


def test_a_run_on_two_sources(recipe: Any, tmp_path: Path) -> None:
    results = ftkit.train(recipe, output=tmp_path / "run").results
    facts = results["exports"]["adapter"]
    assert facts["max_abs_difference"] <= facts["tolerance"]
    table = results["splits"]["test"]["details"]["sources"]
    assert [(entry["source"], entry["rows"]) for entry in table] == [("chat", 6), ("mail", 7)]
    predictor = ftkit.load(tmp_path / "run")
    assert predictor.evaluate("test")["metrics"] == results["splits"]["test"]["metrics"]
    assert network_of(predictor.prepared.model).task.shape == (2, 64)
    config = json.loads((tmp_path / "run/export/adapter/adapter_config.json").read_text())
    assert config["sources"] == ["chat", "mail"]
    (entry,) = list_adapters([tmp_path / "run"])
    assert entry["method"] == "hypernetwork"
    layers = inspect_adapter(read_trained(tmp_path / "run"))["layers"]
    assert layers

    row = {"text": "w1 w2 w30"}
    both = [{**row, "origin": name} for name in ("mail", "chat")]
    one, other = predictor.predict(both)
    assert one["probabilities"] != other["probabilities"]
    assert next(iter(predictor.predict(both[1:])))["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    with pytest.raises(DataError, match=r"input, row 2.*origin.*no training row is from the source 'fax'.*'chat', 'mail'"):
        list(predictor.predict([both[0], {**row, "origin": "fax"}]))
    with pytest.raises(DataError, match=r"input, row 2.*the source of the row is not known"):
        list(predictor.predict([both[0], row]))

    # Another run on the same base takes turns with it.
    ftkit.train(ftkit.load_recipe(tmp_path / "recipe.yaml", ["train.max_steps=5", "seed=9"]), output=tmp_path / "other")
    asked = list(ftkit.load_adapters(tmp_path / "run", [tmp_path / "other"]).predict(both))
    alone = [list(ftkit.load(tmp_path / name).predict(both)) for name in ("run", "other")]
    expected = [alone[number][row] for row in range(2) for number in range(2)]
    assert [found["adapter"] for found in asked] == ["run", "other"] * 2
    assert [found["probabilities"] for found in asked] == [pytest.approx(one["probabilities"], abs=1e-6) for one in expected]


class Stopping(Observer):
    """Ends the process's run after a step, as Ctrl-C would."""

    def step(self, event: Any, **more: Any) -> None:
        if event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_with_checkpointing_is_resumed_bit_for_bit(recipe: Any, tmp_path: Path) -> None:
    recipe = ftkit.load_recipe(tmp_path / "recipe.yaml", ["train.max_steps=5", "train.gradient_checkpointing=true", "~export"])
    whole = ftkit.train(recipe, output=tmp_path / "whole").results
    with pytest.raises(FtkitError, match="SIGINT received"):
        ftkit.train(recipe, output=tmp_path / "cut", observer=Stopping())
    cut = ftkit.train(recipe, output=tmp_path / "cut", resume=True).results
    assert cut["splits"] == whole["splits"]
    one, two = (load_file(tmp_path / name / cut["weights"] / "trainable.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_texts_are_written_through_the_adapters_of_the_source(tmp_path: Path) -> None:
    family, auto_class, _, rows = KINDS["rewrites"]
    save_varied(tmp_path / "model", family, auto_class)
    origins = ["mail", "chat", "fax"]
    named: list[Mapping[str, Any]] = [{**row, "origin": origins[number % 3]} for number, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    recipe = {
        "model": str(tmp_path / "model"),
        "task": "{name: seq2seq, metrics: [loss, exact_match], generation: {max_new_tokens: 6, num_beams: 2}}",
        "data": "{train: rows.jsonl, split: {validation: 0.25}}",
        "method": METHOD,
        "train": "{max_steps: 2, batch_size: 4}",
    }
    (tmp_path / "recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in recipe.items()))
    ftkit.train(ftkit.load_recipe(tmp_path / "recipe.yaml"), output=tmp_path / "run")
    predictor = ftkit.load(tmp_path / "run")
    randomized(predictor.prepared.model, 1.0)
    asked = [{"source": row["source"], "origin": name} for row in rows[:3] for name in origins]
    together = [found["text"] for found in predictor.predict(asked, batch_size=9)]
    alone = [next(iter(predictor.predict([row], batch_size=1)))["text"] for row in asked]
    assert together == alone
    assert any(together[first] != together[first + 1] for first in (0, 3, 6))
